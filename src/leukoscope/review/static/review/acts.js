// What the reviewer does reaches the server one act after the other; what others did comes back.
import { away, get, post, tell, tellProblem, whisper } from "../api.js";
import { focus, glow, put, visible } from "./grid.js";
import { count } from "./differential.js";
import { labels, named, shown, state } from "./state.js";

const EVERY = 2000;
const base = `cases/${state.caseId}`;
let queue = Promise.resolve();
let seen = -1;  // the newest revision of the case that an answer named
let said = false;  // whether it was told that the server is out of reach

/** What the server said of cells, unless an answer that overtook this one said newer things. */
function take(cells) {
  const fresh = cells.filter((cell) => !(state.cells.get(cell.id)?.revision > cell.revision));
  for (const cell of fresh) state.cells.set(cell.id, cell);
  put(fresh);
}

function tools({ undo, redo, revision }) {
  seen = Math.max(seen, revision ?? -1);
  if (undo !== undefined) state.undo = undo;
  if (redo !== undefined) state.redo = redo;
  document.dispatchEvent(new CustomEvent("acted"));
}

export async function load() {
  const found = await get(`${base}/cells`);
  state.revision = found.revision;
  take(found.cells);
  follow().catch(tellProblem);  // what can be undone: nobody waits for it
  count();
}

/** How it stands on the server, all of it: after a refusal, what was shown too early goes back. */
async function reload() {
  const found = await get(`${base}/cells`);
  state.stale = false;
  take(found.cells.filter((cell) => !state.pending.has(cell.id)));
  count();
}

function act(ids, { seen, ...what }) {
  const { early, path, body, words } = what;
  if (!ids.length) return;
  for (const id of ids) state.pending.set(id, (state.pending.get(id) ?? 0) + 1);
  const cells = ids.map((id) => state.cells.get(id));
  if (early) {
    for (const cell of cells) early(cell);
    put(cells);
  }
  queue = queue.then(async () => {
    try {
      // Revisions are read when its turn has come: the act before has raised them.
      const revisions = Object.fromEntries(ids.map((id) => [id, state.cells.get(id).revision]));
      const done = await post(path, body({ ...revisions, ...seen }));
      release(ids);
      const late = done.cells.filter((cell) => state.pending.has(cell.id));
      for (const cell of late) state.cells.get(cell.id).revision = cell.revision;
      take(done.cells.filter((cell) => !state.pending.has(cell.id)));
      tools(done);
      if (words) whisper(words);
      count();
    } catch (problem) {
      release(ids);
      await refused(problem, () => act(ids, problem.status === 409 ? what : { seen, ...what }));
    }
  });
  return queue;
}

function release(ids) {
  for (const id of ids) {
    const left = (state.pending.get(id) ?? 1) - 1;
    if (left) state.pending.set(id, left); else state.pending.delete(id);
  }
}

async function refused(problem, again) {
  await reload().catch(() => { state.stale = true; });
  if (problem.status === 409 && state.editable) {
    tell(`${problem.message}. Yours was not stored.`, { bad: true, seconds: 30, act: { label: "Store mine", run: again } });
  } else if (away(problem)) {
    tell("The server can't be reached; your last change was not stored.", { bad: true, seconds: 30, act: { label: "Try again", run: again } });
  } else tellProblem(problem);
}

const cellsWord = (n) => (n === 1 ? "1 cell" : `${n} cells`);

/** The cell to go on with once these have got their label. */
function next(ids) {
  const all = visible();
  const last = Math.max(...ids.map((id) => all.indexOf(id)));
  const chosen = new Set(ids);
  const label = shown(state.cells.get(all[last]));
  const free = (id) => !chosen.has(id);
  const same = (id) => free(id) && shown(state.cells.get(id)) === label;
  const later = all.slice(last + 1);
  const earlier = all.slice(0, last).reverse();
  return later.find(same) ?? earlier.find(same) ?? later.find(free) ?? earlier.find(free) ?? all[last];
}

export function relabel(ids, label, { go = true } = {}) {
  if (!state.editable || !ids.length || !labels.includes(label)) return;
  const on = next(ids);
  act(ids, {
    early: (cell) => { cell.label = label; },
    path: `${base}/labels`, body: (cells) => ({ label, cells }),
    words: `${cellsWord(ids.length)}: ${named(label)}`,
  });
  if (go) focus(on);
}

export function confirm(ids, { go = true } = {}) {
  if (!state.editable || !ids.length) return;
  const on = next(ids);
  act(ids, {
    early: (cell) => { cell.label = cell.predicted; },
    path: `${base}/confirm`, body: (cells) => ({ cells }), words: `${cellsWord(ids.length)} confirmed`,
  });
  if (go) focus(on);
}

/** `revision`: the cell's when the comment that this one replaces was read. */
export function comment(id, text, revision) {
  if (!state.editable) return undefined;
  return act([id], {
    early: (cell) => { cell.comment = text; },
    path: `cells/${id}/comment`, body: (cells) => ({ text, revision_seen: cells[id] }), words: "Comment stored",
    seen: { [id]: revision },
  });
}

/** since: what had been seen when it was sent the first time, where that got no answer. */
export function takeBack(kind, since) {
  if (!state.editable) return;
  queue = queue.then(async () => {
    const known = since ?? seen;
    try {
      const done = await post(`${base}/${kind}${known < 0 ? "" : `?seen=${known}`}`);
      take(done.cells);
      tools(done);
      count();
      focus(done.change.cells[0]);
      whisper(`${kind === "undo" ? "Taken back" : "Done again"}: ${cellsWord(done.change.cells.length)}`);
    } catch (problem) {
      if (problem.status === 409) tell(problem.message + ".", { bad: true });
      else tell(`${problem.message} ${away(problem) ? "" : problem.fix}`, { bad: true, act: away(problem) ? { label: "Try again", run: () => takeBack(kind, known) } : null });
    }
  });
}

/** What others did since; own acts have been shown already. */
async function follow() {
  const found = await get(`${base}/changes?since=${state.revision}`);
  if (state.stale) await reload();
  if (found.revision <= state.revision) return tools(found);
  state.revision = found.revision;
  if (found.cells.some((cell) => cell.model_id !== state.model)) return void location.reload();
  take(found.cells.filter((cell) => !state.pending.has(cell.id)));
  tools(found);
  for (const change of found.changes.filter((one) => one.by !== state.me)) report(change);
  if (found.changes.length) count();
  if ((found.state === "open") !== state.open) location.reload();
  return undefined;
}

function report(change) {
  const n = cellsWord(change.cells.length);
  const what = { label: `${n}: ${change.label ? named(change.label) : "confirmed"}`, comment: "a comment", undo: `took back ${n}`, redo: `${n} again`, read: `${n} were read`, sign: "signed the case", amend: "amended the case" }[change.kind];
  if (change.kind !== "read") tell(`${change.by}: ${what}`);
  glow(change.cells);
}

export function keepUp() {
  addEventListener("beforeunload", (event) => { if (state.pending.size) event.preventDefault(); });
  setInterval(async () => {
    if (document.hidden) return;
    try {
      await follow();
      said = false;
    } catch (problem) {
      if (!said) tellProblem(problem);
      said = true;
    }
  }, EVERY);
}
