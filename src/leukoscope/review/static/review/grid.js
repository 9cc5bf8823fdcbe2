// The cells in groups of one class: drawn once, moved where their class changes.
import { make, percent } from "../api.js";
import { before, changed, described, labels, named, passes, rivalWords, shown, state } from "./state.js";

export const groups = document.getElementById("groups");
const sections = new Map();  // label -> {section, list, title}
const elements = new Map();  // cell id -> element
let size = 96;

function sectionOf(label) {
  if (sections.has(label)) return sections.get(label);
  const key = state.keys[label];
  const count = make("span", { class: "quiet" });
  const name = make("h2", {}, named(label));
  const all = make("button", { type: "button", class: "plain small-button", "data-all": label }, "Select all");
  const list = make("div", { class: "cells", role: "listbox", "aria-multiselectable": "true", "aria-label": named(label) });
  const head = make("div", { class: "group-head" }, name, key ? make("kbd", {}, key.toUpperCase()) : null, count, state.editable ? all : null);
  const section = make("section", { class: "group", "data-label": label }, head, list);
  const made = { section, list, count };
  sections.set(label, made);
  const order = (other) => (labels.indexOf(other) + 1) || labels.length + 1;
  const after = [...groups.children].find((one) => one.dataset.label !== undefined && order(one.dataset.label) > order(label));
  groups.insertBefore(section, after ?? null);
  return made;
}

const mark = (kind, sign, words) => make("span", { class: `mark ${kind}`, title: words }, sign);

function dress(element, cell) {
  element.setAttribute("aria-label", described(cell));
  const marks = element.querySelector(".marks");
  marks.replaceChildren(...[
    cell.flag === "doubtful" ? mark("doubtful", "?", "doubtful") : null,
    cell.flag === "novel" ? mark("novel", "!", "novel: unlike the cells the model has learned from") : null,
    cell.quality.length ? mark("quality", "~", `poor picture: ${cell.quality.join(", ")}`) : null,
    cell.comment ? mark("comment", "“", cell.comment) : null,
  ].filter(Boolean));
  const said = element.querySelector(".said");
  said.replaceChildren(...[
    changed(cell) ? make("span", { class: "was", title: `the model said ${named(cell.predicted)}, ${percent(cell.confidence)}` }, `was ${named(cell.predicted)}`) : make("span", {}, percent(cell.confidence)),
    cell.label !== null ? make("span", { class: "tick", title: "looked at" }) : null,
  ].filter(Boolean));
  element.querySelector(".rivals").textContent = rivalWords(cell);
  element.hidden = !passes(cell);
}

function build(cell) {
  const element = make("div", { class: "cell", role: "option", id: `cell-${cell.id}`, tabindex: "-1", "aria-selected": "false", draggable: state.editable ? "true" : null, "data-id": cell.id },
    make("img", { src: `/api/v1/cells/${cell.id}/thumbnail?size=${size}`, alt: "", loading: "lazy", decoding: "async", draggable: "false" }),
    ...["marks", "said", "rivals"].map((part) => make("div", { class: part, "aria-hidden": "true" })));
  elements.set(cell.id, element);
  return element;
}

/** Draw cells that are new, move those whose class changed, bring all of them up to date. */
export function put(cells) {
  const lists = new Map();
  for (const cell of cells) {
    const { list } = sectionOf(shown(cell));
    const element = elements.get(cell.id) ?? build(cell);
    dress(element, cell);
    if (element.parentElement === list) continue;
    const had = document.activeElement === element;
    if (!lists.has(list)) lists.set(list, [...list.children]);
    const others = lists.get(list);
    let at = others.length;
    while (at > 0 && before(cell, state.cells.get(Number(others[at - 1].dataset.id)))) at -= 1;
    list.insertBefore(element, others[at] ?? null);
    others.splice(at, 0, element);
    if (had) element.focus({ preventScroll: true });
  }
  heads();
}

function heads() {
  for (const { section, list, count } of sections.values()) {
    const here = list.children.length;
    const seen = [...list.children].filter((one) => !one.hidden).length;
    section.hidden = seen === 0;
    count.textContent = seen === here ? `${here}` : `${seen} of ${here}`;
  }
  document.getElementById("nothing").hidden = visible().length > 0;
  if (state.focus === null || elements.get(state.focus)?.hidden) rove(visible()[0] ?? null);
}

/** Which cells pass the filter changed. */
export function sift() {
  for (const [id, element] of elements) element.hidden = !passes(state.cells.get(id));
  heads();
}

export const visible = () => [...groups.querySelectorAll(".cell:not([hidden])")].map((one) => Number(one.dataset.id));
export const elementOf = (id) => elements.get(id);

function rove(id) {
  elements.get(state.focus)?.setAttribute("tabindex", "-1");
  state.focus = id;
  elements.get(id)?.setAttribute("tabindex", "0");
}

export function focus(id, { scroll = true } = {}) {
  if (id === null || id === undefined || !elements.has(id)) return;
  rove(id);
  elements.get(id).focus({ preventScroll: true });
  if (scroll) elements.get(id).scrollIntoView({ block: "nearest" });
}

/** The cell above (-1) or below (1) the one in focus: the nearest one of the next row. */
export function across(id, direction) {
  const all = visible();
  const here = elements.get(id).getBoundingClientRect();
  let row = null;
  let best = null;
  for (let i = all.indexOf(id) + direction; i >= 0 && i < all.length; i += direction) {
    const there = elements.get(all[i]).getBoundingClientRect();
    if (Math.abs(there.top - here.top) < 4) continue;
    if (row === null) row = there.top;
    if (Math.abs(there.top - row) > 4) break;
    const distance = Math.abs(there.left - here.left);
    if (best === null || distance < best.distance) best = { id: all[i], distance };
  }
  return best?.id ?? null;
}

export function select(ids, { add = false } = {}) {
  const old = new Set(state.selected);
  if (!add) state.selected.clear();
  for (const id of ids) state.selected.add(id);
  for (const id of new Set([...old, ...ids])) elements.get(id)?.setAttribute("aria-selected", `${state.selected.has(id)}`);
  groups.dispatchEvent(new CustomEvent("chosen"));
}

export function toggle(id) {
  if (state.selected.has(id)) state.selected.delete(id); else state.selected.add(id);
  elements.get(id)?.setAttribute("aria-selected", `${state.selected.has(id)}`);
  groups.dispatchEvent(new CustomEvent("chosen"));
}

export function resize(chosen) {
  groups.dataset.size = chosen;
  const wanted = (chosen === "large" ? 168 : chosen === "small" ? 76 : 104) * devicePixelRatio > 130 ? 256 : 96;
  if (wanted === size) return;
  size = wanted;
  for (const [id, element] of elements) element.firstChild.src = `/api/v1/cells/${id}/thumbnail?size=${size}`;
}

/** Others' work shows for some seconds. */
export function glow(ids) {
  for (const id of ids) {
    const element = elements.get(id);
    element?.classList.add("theirs");
    setTimeout(() => element?.classList.remove("theirs"), 4000);
  }
}
