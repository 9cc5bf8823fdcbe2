// What the review screen knows: the case, its cells, what is chosen. Nothing here touches the page.
const place = document.getElementById("review");
const given = JSON.parse(place.dataset.config);

export const state = {
  ...given,  // caseId, me, model, classes, names, extra, keys, editable, heatMaps, pixelSize
  cells: new Map(),
  revision: -1,
  selected: new Set(),
  focus: null,
  pending: new Map(),  // cell id -> acts of ours on their way
  stale: false,  // whether something is shown that the server has refused or not heard of
  undo: false,
  redo: false,
  filter: { flag: "", label: "", text: "" },
};

export const labels = [...state.classes, ...state.extra];
const byKey = new Map(Object.entries(state.keys).filter(([, key]) => key).map(([label, key]) => [key, label]));
export const labelOfKey = (key) => byKey.get(key.toLowerCase());

export const shown = (cell) => cell.label ?? cell.predicted;
export const named = (label) => state.names[label] ?? label.replaceAll("_", " ");
export const changed = (cell) => cell.label !== null && cell.label !== cell.predicted;

const FLAGS = ["novel", "doubtful", ""];
export function before(a, b) {
  const [one, two] = [FLAGS.indexOf(a.flag), FLAGS.indexOf(b.flag)];
  return one !== two ? one < two : a.confidence !== b.confidence ? a.confidence < b.confidence : a.id < b.id;
}

export const FILTERS = {
  "": () => true,
  look: (cell) => cell.flag !== "" && cell.label === null,
  doubtful: (cell) => cell.flag === "doubtful",
  novel: (cell) => cell.flag === "novel",
  quality: (cell) => cell.quality.length > 0,
  changed,
  comment: (cell) => cell.comment !== "",
};

export function passes(cell) {
  const { flag, label, text } = state.filter;
  if (!FILTERS[flag](cell) || (label && shown(cell) !== label)) return false;
  if (!text) return true;
  return [`${cell.id}`, cell.field_name, cell.comment, shown(cell), named(shown(cell)), cell.predicted, ...cell.quality]
    .some((words) => words.toLowerCase().includes(text));
}

/** Other classes that the model doesn't rule out. */
export const rivals = (cell) => cell.prediction_set.filter((label) => label !== shown(cell));

/** What else it may be, in few words. */
export function rivalWords(cell) {
  if (changed(cell)) return "";
  if (rivals(cell).length) return `or ${rivals(cell).map(named).join(", ")}`;
  return cell.flag === "doubtful" ? "no class fits" : "";
}

const FLAG_WORDS = { doubtful: "doubtful", novel: "unlike the cells the model has learned from" };
export const flagWords = (cell) => [
  FLAG_WORDS[cell.flag],
  cell.flag === "doubtful" && cell.prediction_set.length === 0 ? "fits no class well" : null,
  rivals(cell).length ? `${cell.prediction_set.includes(shown(cell)) ? "may also be" : "could rather be"} ${rivals(cell).map(named).join(", ")}` : null,
  ...cell.quality.map((fault) => `picture: ${fault}`),
].filter(Boolean);

export function described(cell) {
  return [
    `Cell ${cell.id}`, named(shown(cell)), changed(cell) ? "" : `${Math.round(100 * cell.confidence)} % ${rivalWords(cell)}`.trim(),
    changed(cell) ? `was ${named(cell.predicted)}` : cell.label !== null ? "confirmed" : "not looked at",
    FLAG_WORDS[cell.flag], ...cell.quality.map((fault) => `picture: ${fault}`), cell.comment ? `comment: ${cell.comment}` : null,
  ].filter(Boolean).join(", ");
}
