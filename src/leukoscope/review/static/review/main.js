// Keys, mouse and touch of the review screen.
import { make, tell, tellProblem } from "../api.js";
import * as acts from "./acts.js";
import * as enlarge from "./enlarge.js";
import { across, elementOf, focus, groups, resize, select, sift, toggle, visible } from "./grid.js";
import { FILTERS, described, flagWords, labelOfKey, named, shown, state } from "./state.js";

const byId = (id) => document.getElementById(id);
const help = byId("help");
const one = byId("one");
const keys = document.querySelector(".keys");

const chosen = () => {
  const large = enlarge.opened();
  if (large !== null) return [large];
  return state.selected.size ? visible().filter((id) => state.selected.has(id)) : state.focus === null ? [] : [state.focus];
};

// --- what is chosen -------------------------------------------------------------------------------

function tellChosen() {
  const ids = chosen();
  const place = keys?.querySelector(".chosen");
  if (place) place.textContent = state.selected.size ? `${state.selected.size} selected` : ids.length ? `Cell ${ids[0]}` : "No cell";
  const cell = state.cells.get(ids.at(-1));
  if (!cell) return one.replaceChildren();
  const flags = flagWords(cell).map((words) => make("p", { class: "small" }, words));
  one.replaceChildren(
    make("h2", {}, `Cell ${cell.id}: ${named(shown(cell))}`),
    make("div", { class: "this-cell" },
      make("img", { src: `/api/v1/cells/${cell.id}/thumbnail?size=256`, alt: "" }),
      make("div", {}, enlarge.probabilities(cell, 4), ...flags, cell.comment ? make("p", { class: "small quiet" }, `“${cell.comment}”`) : null)));
  return undefined;
}

function refresh() {
  for (const kind of ["undo", "redo"]) if (byId(kind)) byId(kind).disabled = !state[kind];
  const all = [...state.cells.values()];
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.querySelector(".count").textContent = all.filter(FILTERS[button.dataset.filter]).length;
  }
  const novel = all.filter(FILTERS.novel).length;
  byId("strange").hidden = all.length < 10 || novel <= all.length / 2;
  tellChosen();
  enlarge.refresh();
}

function assign(label) {
  const ids = chosen();
  if (enlarge.opened() !== null) return acts.relabel(ids, label, { go: false });
  select([]);
  return acts.relabel(ids, label);
}

function approve() {
  const ids = chosen();
  if (enlarge.opened() !== null) return acts.confirm(ids, { go: false });
  select([]);
  return acts.confirm(ids);
}

/** On to the next flagged cell that nobody has looked at. */
function lookNext() {
  const all = visible();
  const from = enlarge.opened() ?? state.focus;
  const at = all.indexOf(from);
  const to = [...all.slice(at + 1), ...all.slice(0, at + 1)].find((id) => FILTERS.look(state.cells.get(id)));
  if (to === undefined) return void tell("Every flagged cell that passes the filter has been looked at.");
  if (enlarge.opened() !== null) enlarge.open(to); else { select([]); focus(to); }
}

function write() {
  if (enlarge.opened() === null) enlarge.open(chosen().at(-1) ?? null);
  enlarge.write();
}

const ACTS = {
  z: () => acts.takeBack("undo"), y: () => acts.takeBack("redo"), k: approve, n: lookNext, c: write,
  h: () => (enlarge.opened() !== null ? enlarge.warm() : enlarge.open(chosen().at(-1) ?? null, { warm: true })),
  "?": () => help.showModal(), "/": () => byId("search").focus(),
  enter: () => (enlarge.opened() !== null ? enlarge.dialog.close() : enlarge.open(chosen().at(-1) ?? null)),
};

// --- keys -----------------------------------------------------------------------------------------

let anchor = null;

function move(event) {
  if (enlarge.opened() !== null) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); enlarge.step(by); }
    return;
  }
  const all = visible();
  const at = all.indexOf(state.focus);
  const to = {
    ArrowLeft: () => all[at - 1], ArrowRight: () => all[at + 1], Home: () => all[0], End: () => all.at(-1),
    ArrowUp: () => across(state.focus, -1), ArrowDown: () => across(state.focus, 1),
  }[event.key]();
  event.preventDefault();
  if (to === undefined || to === null) return;
  if (event.shiftKey) {
    anchor ??= state.focus;
    const [from, until] = [all.indexOf(anchor), all.indexOf(to)].sort((a, b) => a - b);
    select(all.slice(from, until + 1));
  } else anchor = null;
  focus(to);
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (typing) {
    if (event.key === "Escape" && !enlarge.dialog.open) focus(state.focus);
    return;
  }
  if (help.open) return;
  const control = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  if (control && ["z", "y"].includes(key)) {
    event.preventDefault();
    ACTS[key === "z" && event.shiftKey ? "y" : key]();
  } else if (control && key === "a" && state.focus !== null && !enlarge.dialog.open) {
    event.preventDefault();
    const label = shown(state.cells.get(state.focus));
    select(visible().filter((id) => shown(state.cells.get(id)) === label));
  } else if (control || event.altKey) return;
  else if (["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) {
    if (event.target.closest(".cell, dialog, body") && state.focus !== null) move(event);
  } else if (event.key === " " && event.target.closest(".cell")) {
    event.preventDefault();
    toggle(state.focus);
  } else if (event.key === "Escape") select([]);
  // Letters act on cells only: what is dictated or slipped elsewhere must not (WCAG 2.1.4).
  else if (event.target !== document.body && !event.target.closest("#groups, .keys, dialog")) return;
  else if (key === "enter" && event.target.closest("button, a, summary")) return;
  else if (ACTS[key]) {
    event.preventDefault();
    ACTS[key]();
  } else if (labelOfKey(key)) {
    event.preventDefault();
    assign(labelOfKey(key));
  }
});

// --- mouse and touch ------------------------------------------------------------------------------

const idOf = (target) => {
  const cell = target.closest?.(".cell");
  return cell ? Number(cell.dataset.id) : null;
};

groups.addEventListener("click", (event) => {
  const all = event.target.closest("[data-all]");
  if (all) return select(visible().filter((id) => shown(state.cells.get(id)) === all.dataset.all));
  const id = idOf(event.target);
  if (id === null) return undefined;
  if (event.shiftKey && state.focus !== null) {
    const order = visible();
    const [from, until] = [order.indexOf(anchor ?? state.focus), order.indexOf(id)].sort((a, b) => a - b);
    select(order.slice(from, until + 1), { add: event.ctrlKey || event.metaKey });
  } else if (event.ctrlKey || event.metaKey) {
    toggle(id);
    anchor = id;
  } else {
    select([id]);
    anchor = id;
  }
  return focus(id, { scroll: false });
});
groups.addEventListener("dblclick", (event) => enlarge.open(idOf(event.target)));
groups.addEventListener("focusin", (event) => {
  const id = idOf(event.target);
  if (id !== null && id !== state.focus) focus(id, { scroll: false });
  tellChosen();
});
groups.addEventListener("chosen", tellChosen);

/** A rubber band, drawn from where there is no cell. */
groups.addEventListener("pointerdown", (event) => {
  if (event.pointerType !== "mouse" || event.button || event.target.closest(".cell, button")) return;
  const start = { x: event.clientX, y: event.clientY, scroll: scrollY };
  const had = event.ctrlKey || event.shiftKey ? new Set(state.selected) : new Set();
  let band = null;
  const drag = (now) => {
    const top = start.y - (scrollY - start.scroll);
    const box = { left: Math.min(start.x, now.clientX), right: Math.max(start.x, now.clientX), top: Math.min(top, now.clientY), bottom: Math.max(top, now.clientY) };
    if (!band && box.right - box.left + box.bottom - box.top < 8) return;
    if (!band) { band = make("div", { class: "band" }); document.body.append(band); }
    Object.assign(band.style, { left: `${box.left}px`, top: `${box.top}px`, width: `${box.right - box.left}px`, height: `${box.bottom - box.top}px` });
    select(visible().filter((id) => {
      const r = elementOf(id).getBoundingClientRect();
      return had.has(id) || (r.left < box.right && r.right > box.left && r.top < box.bottom && r.bottom > box.top);
    }));
  };
  const stop = () => {
    removeEventListener("pointermove", drag);
    if (!band) select([...had]);
    band?.remove();
  };
  addEventListener("pointermove", drag);
  addEventListener("pointerup", stop, { once: true });
});

let dragged = [];
groups.addEventListener("dragstart", (event) => {
  const id = idOf(event.target);
  if (id === null || !state.editable) return event.preventDefault();
  if (!state.selected.has(id)) select([id]);
  dragged = chosen();
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("text/plain", dragged.join(" "));
  for (const each of dragged) elementOf(each).classList.add("dragged");
  return undefined;
});
document.addEventListener("dragend", () => {
  for (const each of dragged) elementOf(each)?.classList.remove("dragged");
  document.querySelectorAll(".over").forEach((each) => each.classList.remove("over"));
  dragged = [];
});
const target = (event) => (dragged.length ? event.target.closest?.("[data-label]") : null);
document.addEventListener("dragover", (event) => {
  const over = target(event);
  document.querySelectorAll(".over").forEach((each) => each !== over && each.classList.remove("over"));
  if (!over) return;
  event.preventDefault();
  over.classList.add("over");
});
document.addEventListener("drop", (event) => {
  const over = target(event);
  if (!over) return;
  event.preventDefault();
  const ids = dragged;
  select([]);
  acts.relabel(ids, over.dataset.label);
});

keys?.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.label) assign(button.dataset.label);
  else ACTS[button.dataset.act]?.();
});
enlarge.dialog.addEventListener("click", (event) => {
  const button = event.target.closest(".classes [data-label]");
  if (button) assign(button.dataset.label);
});
byId("show-help").addEventListener("click", () => help.showModal());
byId("shut-help").addEventListener("click", () => help.close());

// --- what is shown --------------------------------------------------------------------------------

document.querySelector(".filters").addEventListener("click", (event) => {
  const button = event.target.closest("[data-filter]");
  if (!button) return;
  for (const each of document.querySelectorAll("[data-filter]")) each.setAttribute("aria-pressed", `${each === button}`);
  state.filter.flag = button.dataset.filter;
  select([]);
  sift();
});
byId("class").addEventListener("change", (event) => { state.filter.label = event.target.value; sift(); });
byId("search").addEventListener("input", (event) => { state.filter.text = event.target.value.trim().toLowerCase(); sift(); });
byId("size").addEventListener("change", (event) => { localStorage.setItem("cell-size", event.target.value); resize(event.target.value); });

const size = localStorage.getItem("cell-size") ?? "medium";
byId("size").value = size;
resize(size);
if (matchMedia("(max-width: 64rem)").matches) byId("panel").open = false;
document.addEventListener("acted", refresh);

acts.load().then(() => {
  byId("loading").hidden = true;
  sift();
  refresh();
  const wanted = Number(location.hash.slice(6));
  focus(state.cells.has(wanted) ? wanted : visible()[0], { scroll: state.cells.has(wanted) });
  acts.keepUp();
}).catch(tellProblem);
