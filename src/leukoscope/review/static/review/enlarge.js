// One cell, large: heat map, scale, what the model weighed, cells to compare, where it lies.
import { get, make, percent } from "../api.js";
import { comment } from "./acts.js";
import { focus, visible } from "./grid.js";
import { changed, flagWords, named, shown, state } from "./state.js";

export const dialog = document.getElementById("enlarge");
const parts = Object.fromEntries([...dialog.querySelectorAll("[data-part]")].map((one) => [one.dataset.part, one]));
let current = null;
let heat = false;
let read = { text: "", revision: -1 };  // the comment as the reviewer began from it

function fill(cell) {
  parts.words.value = cell.comment;
  read = { text: parts.words.value, revision: cell.revision };
}

function store() {
  const text = parts.words.value.trim();
  if (text !== read.text.trim()) comment(current, text, read.revision);
  read.text = parts.words.value;
}

const NICE = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];

/** A bar of a round length, in micrometres where a pixel's are known. */
function scale() {
  const { image } = parts;
  const cell = state.cells.get(current);
  // A heat map may be of another size than the cell's own picture.
  parts.scale.hidden = !image.naturalWidth || image.naturalWidth !== cell?.width;
  if (parts.scale.hidden) return;
  const pixel = Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
  const per = state.pixelSize ? pixel / state.pixelSize : pixel;
  const length = NICE.findLast((n) => n * per <= image.clientWidth / 3) ?? 1;
  parts.scale.firstElementChild.style.width = `${length * per}px`;
  parts.scale.lastElementChild.textContent = `${length} ${state.pixelSize ? "µm" : "px"}`;
}

export function probabilities(cell, most = 5) {
  const rows = Object.entries(cell.probs).sort((a, b) => b[1] - a[1]).slice(0, most);
  return make("div", { class: "probs" }, ...rows.flatMap(([label, p]) => [
    make("span", {}, named(label)),
    make("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, make("rect", { class: "bar-model", x: 0, y: 0, height: 10, width: 100 * p })),
    make("span", { class: "num" }, p < 0.001 ? "<0.1 %" : percent(p, 1)),
  ]));
}

function size({ width, height }) {
  const pixels = `${width} × ${height} px`;
  if (!state.pixelSize) return pixels;
  const [w, h] = [width, height].map((n) => (n * state.pixelSize).toFixed(1));
  return `${w} × ${h} µm (${pixels})`;
}

export function facts(cell) {
  const list = make("dl", { class: "facts small" });
  const add = (name, ...words) => list.append(make("dt", {}, name), make("dd", {}, ...words));
  add("Reviewer", cell.label === null ? "not looked at yet" : changed(cell) ? `${named(cell.label)}, changed` : `${named(cell.label)}, confirmed`);
  add("Model", `${named(cell.predicted)}, ${percent(cell.confidence, 1)}`);
  add("Possible", cell.prediction_set.length ? cell.prediction_set.map(named).join(", ") : "no class fits well");
  if (cell.novelty !== null) add("Novelty", `${cell.novelty.toFixed(2)}${cell.novelty > 1 ? ": unlike the cells the model has learned from" : " (above 1 is novel)"}`);
  add("Picture", `${size(cell)}, ${cell.quality.length ? cell.quality.join(", ") : "no fault found"}`);
  add("File", cell.field_name);
  return list;
}

async function references(cell) {
  const first = shown(cell);
  const rival = Object.entries(cell.probs).sort((a, b) => b[1] - a[1]).map(([label]) => label).find((label) => label !== first);
  parts.references.replaceChildren();
  for (const label of [first, rival].filter((one) => one && state.classes.includes(one))) {
    const list = make("ul", { class: "references" });
    parts.references.append(make("section", {}, make("h3", {}, `Reference: ${named(label)}`), list));
    get(`cells/${cell.id}/references?label=${encodeURIComponent(label)}&limit=5`).then(({ references: found }) => {
      if (current !== cell.id) return;
      if (!found.length) list.replaceWith(make("p", { class: "quiet small" }, "None yet: they come from signed cases, or from the laboratory's own folder."));
      if (found.length > 1 && found.some((one) => one.distance !== null)) list.after(make("p", { class: "quiet small" }, "Most like this cell first."));
      list.append(...found.map((one) => make("li", {}, make("img", { src: one.cell_id ? `/api/v1/cells/${one.cell_id}/thumbnail?size=256` : one.url, alt: `A reference cell: ${named(label)}`, loading: "lazy" }))));
    }).catch(() => {});
  }
}

function field(cell) {
  parts.field.replaceChildren();
  if (cell.x === null) return;
  const image = make("img", { src: `/api/v1/uploads/${cell.upload_id}/image`, alt: `The field of view ${cell.field_name}, this cell framed` });
  const svg = make("svg", { "aria-hidden": "true", preserveAspectRatio: "none" });
  const box = { x: cell.x, y: cell.y, width: cell.box_width, height: cell.box_height };
  svg.append(make("rect", box), make("rect", box));
  image.addEventListener("load", () => svg.setAttribute("viewBox", `0 0 ${image.naturalWidth} ${image.naturalHeight}`));
  parts.field.append(make("h3", {}, "Where it lies in its field"), make("div", { class: "in-field" }, image, svg));
}

function draw() {
  const cell = state.cells.get(current);
  parts.title.textContent = `Cell ${cell.id}: ${named(shown(cell))}`;
  parts.flags.replaceChildren(...flagWords(cell).map((words) => make("span", { class: "chip warn" }, words)));
  parts.facts.replaceChildren(facts(cell), make("h3", {}, "What the model weighed"), probabilities(cell, 6));
  parts.heat?.setAttribute("aria-pressed", `${heat}`);
  for (const button of parts.classes?.children ?? []) button.setAttribute("aria-pressed", `${cell.label === button.dataset.label}`);
  // Pictures are kept for good: by its model's number a heat map of an earlier reading isn't taken for this one's.
  const source = heat ? `/api/v1/cells/${cell.id}/heatmap?label=${encodeURIComponent(cell.predicted)}&model=${cell.model_id}` : `/api/v1/cells/${cell.id}/image`;
  if (parts.image.getAttribute("src") !== source) parts.image.src = source;
  parts.image.alt = heat ? `Cell ${cell.id} under its heat map for ${named(cell.predicted)}` : `Cell ${cell.id}`;
  parts.explain.hidden = !heat;
  parts.explain.textContent = `Warm colours: where the model sees evidence for ${named(cell.predicted)}.`;
  // What others write shows, unless it would wipe out what is being written here.
  if (parts.words && parts.words.value === read.text && cell.comment !== read.text && !state.pending.has(cell.id)) fill(cell);
}

export function open(id, { warm = false } = {}) {
  if (id === null || !state.cells.has(id)) return;
  if (!dialog.open) heat = warm && state.heatMaps;
  if (parts.words && dialog.open) store();
  current = id;
  if (parts.words) fill(state.cells.get(id));
  draw();
  references(state.cells.get(id));
  field(state.cells.get(id));
  if (!dialog.open) {
    dialog.showModal();
    parts.view.focus();
  }
  dialog.querySelector(".body").scrollTop = 0;
}

export const opened = () => (dialog.open ? current : null);
export const refresh = () => { if (dialog.open) draw(); };
export function warm() {
  if (!state.heatMaps) return;
  heat = !heat;
  draw();
}
export function step(by) {
  const all = visible();
  const at = all.indexOf(current);
  const to = at < 0 ? all[0] : all[at + by];
  if (to !== undefined) open(to);
}
export const write = () => { parts.words?.focus(); };

parts.image.addEventListener("load", scale);
addEventListener("resize", () => { if (dialog.open) scale(); });
parts.image.addEventListener("error", () => {
  if (!heat) return;
  parts.explain.textContent = "No heat map: this case was read by another model than the one that is served now.";
  parts.explain.hidden = false;
  parts.image.src = `/api/v1/cells/${current}/image`;
});
parts.heat?.addEventListener("click", warm);
parts.previous.addEventListener("click", () => step(-1));
parts.next.addEventListener("click", () => step(1));
parts.shut.addEventListener("click", () => dialog.close());
parts.store?.addEventListener("click", store);
dialog.addEventListener("close", () => {
  if (parts.words) store();
  focus(current);
});
