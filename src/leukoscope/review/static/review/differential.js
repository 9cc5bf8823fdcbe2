// The live differential: model and reviewer side by side, with intervals, and their agreement.
import { get, make, percent } from "../api.js";
import { FILTERS, named, state } from "./state.js";

const body = document.getElementById("counts");
const agreement = document.getElementById("agreement");
let asked = 0;
let timer = 0;

const range = (share) => (share.low === null ? "" : `${Math.round(100 * share.low)}–${Math.round(100 * share.high)}`);

function bars(model, reviewer, most) {
  const svg = make("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const [share, reader, y] of [[model, "model", 3], [reviewer, "reviewer", 13]]) {
    if (!share || share.share === null) continue;
    svg.append(make("rect", { class: `bar-${reader}`, x: 0, y, height: 8, width: (100 * share.share) / most }));
    svg.append(make("line", { class: "whisker", x1: (100 * share.low) / most, x2: (100 * share.high) / most, y1: y + 4, y2: y + 4, "vector-effect": "non-scaling-stroke" }));
  }
  return svg;
}

function share(found) {
  if (!found) return make("td", { class: "num" }, "0");
  if (found.share === null) return make("td", { class: "num" }, `${found.count}`);
  return make("td", { class: "num", title: `${found.count} cells` }, percent(found.share, 1), make("br"), make("small", {}, range(found)));
}

function draw({ model, reviewer, agreement: all, looked_at: a }) {
  const said = new Map(model.map((one) => [one.name, one]));
  const most = Math.max(0.01, ...[...model, ...reviewer].map((one) => one.high ?? 0));
  body.replaceChildren(...reviewer.map((one) => {
    const other = said.get(one.name);
    const row = make("tr", {}, make("th", { scope: "row" }, named(one.name)), share(other), share(one));
    if (one.share === null) row.firstChild.append(make("small", {}, "beside the count"));
    row.append(make("td", {}, one.share === null ? "" : bars(other, one, most)));
    return row;
  }));
  const cells = [...state.cells.values()];
  const flagged = cells.filter((cell) => cell.flag !== "");
  const left = flagged.filter(FILTERS.look).length;
  agreement.replaceChildren(...[
    make("p", {}, a.n ? `Model and reviewer agree on ${a.agreed} of the ${a.n} cells looked at: ${percent(a.share, 1)} (${range(a)} %)` + (a.kappa === null ? "." : `, kappa ${a.kappa.toFixed(2)}.`) : all.n ? "No cell has been looked at, so agreement isn't known." : "There are no cells yet."),
    all.n > a.n ? make("p", { class: "quiet small" }, `The other ${all.n - a.n} of ${all.n} cells count as the model read them.`) : null,
    make("label", { for: "flagged", class: "small" }, left ? `Flagged cells: ${flagged.length - left} of ${flagged.length} looked at` : flagged.length ? `All ${flagged.length} flagged cells were looked at` : "No cell is flagged"),
    make("progress", { id: "flagged", max: Math.max(1, flagged.length), value: flagged.length ? flagged.length - left : 1 }),
  ].filter(Boolean));
}

/** Fetch and draw it soon; many changes in a row ask once. */
export function count() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    const turn = ++asked;
    const found = await get(`cases/${state.caseId}/differential`).catch(() => null);
    if (found && turn === asked) draw(found);
  }, 120);
}
