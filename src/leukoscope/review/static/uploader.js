// Uploads in pieces: a file that was cut off is continued where it stopped, also after a reload.
import { away, get, make, newKey, pause, send, tell, tellProblem } from "./api.js";

const PIECE = 4 * 1024 * 1024;
const AT_ONCE = 2;
const drop = document.getElementById("drop");
const list = document.getElementById("files");
const summary = document.getElementById("sending");
const caseId = drop?.dataset.case;
const rows = [];
const waiting = [];
let active = 0;
let before = [];  // uploads of this case that an earlier visit began

const kind = () => document.querySelector('input[name="kind"]:checked')?.value ?? "auto";
const megabytes = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

class Row {
  constructor(file, path) {
    this.file = file;
    this.path = path;
    this.state = "waiting";
    this.key = newKey();
    this.bar = make("progress", { max: Math.max(1, file.size), value: 0, "aria-label": `${path} sent` });
    this.words = make("span", { class: "quiet" }, "waiting");
    this.button = make("button", { type: "button", class: "small-button plain" }, "Stop");
    this.button.addEventListener("click", () => this.toggle());
    this.element = make("li", {}, make("span", { class: "name", title: path }, path), this.bar, this.words, this.button);
    list.append(this.element);
  }

  show(state, words = state) {
    this.state = state;
    this.words.textContent = words;
    const over = ["done", "duplicate", "failed"].includes(state);
    for (const part of [this.button, this.bar]) part.classList.toggle("gone", over);
    this.button.textContent = state === "stopped" ? "Continue" : "Stop";
    if (over) list.append(this.element);  // what is on its way stays on top
    summarise();
  }

  toggle() {
    if (this.state === "stopped") {
      waiting.push(this);
      this.show("waiting");
      pump();
    } else {
      this.show("stopped", `stopped at ${megabytes(this.bar.value)}`);
      this.abort?.abort();
    }
  }

  async run() {
    this.show("sending");
    // Another folder's 1.jpg of the same size is another file: where it isn't certain, it is sent anew.
    const alike = before.filter((u) => u.name === this.path && u.size === this.file.size && u.state === "receiving");
    const known = alike.length === 1 ? alike[0] : undefined;
    before = before.filter((u) => u !== known);
    const upload = this.upload ?? known ?? await this.announced();
    if (!upload) return undefined;  // stopped while it waited
    this.upload = upload;
    let at = upload.received ?? 0;
    let failures = 0;
    while (this.state === "sending") {
      this.abort = new AbortController();
      const { signal } = this.abort;
      try {
        if (at >= this.file.size) return this.over(await send("POST", `uploads/${upload.id}/finish`, {}, { signal }));
        const said = await send("PUT", `uploads/${upload.id}?offset=${at}`, this.file.slice(at, at + PIECE), { raw: true, signal });
        at = said.received;
        failures = 0;
      } catch (problem) {
        if (problem.name === "AbortError") break;
        if (problem.status === 429) {
          await this.waited(problem);
          continue;
        }
        if ((!away(problem) && problem.status !== 409) || problem.field === "state") throw problem;
        failures += 1;
        await this.later(problem, failures);
        at = await this.received(at);
      }
      upload.received = at;
      this.bar.value = at;
      if (this.state === "sending") this.words.textContent = `${megabytes(at)} of ${megabytes(this.file.size)}`;
    }
    return undefined;
  }

  /** The server's word that the file may come; as long as it has enough to do, this waits. */
  async announced() {
    const what = { name: this.path, size: this.file.size, kind: kind() };
    for (let failures = 0; this.state === "sending";) {
      try { return await send("POST", `cases/${caseId}/uploads`, what, { key: this.key }); } catch (problem) {
        if (problem.status === 429) {
          await this.waited(problem);
          continue;
        }
        if (!away(problem)) throw problem;
        failures += 1;
        await this.later(problem, failures);
      }
    }
    return null;
  }

  async waited({ wait }) {
    this.words.textContent = "waits: the server has much to read; goes on by itself";
    await pause(1000 * Math.max(1, wait));
  }

  async later(problem, failures) {
    if (failures > 8) throw problem;
    this.words.textContent = "server out of reach, trying again";
    await pause(Math.min(500 * 2 ** failures, 8000));
  }

  over({ state, error }) {
    if (state === "duplicate") this.show("duplicate", "already in this case");
    else if (state === "failed") this.show("failed", error || "can't be read");
    else this.show("done", "received");
  }

  async received(otherwise) {
    try {
      const { uploads } = await get(`cases/${caseId}/uploads`);
      return uploads.find((u) => u.id === this.upload.id)?.received ?? otherwise;
    } catch { return otherwise; }
  }
}

function summarise() {
  const n = (state) => rows.filter((row) => row.state === state).length;
  const parts = [`${n("done")} of ${rows.length} files received`];
  if (n("duplicate")) parts.push(`${n("duplicate")} already here`);
  if (n("failed")) parts.push(`${n("failed")} failed`);
  if (n("stopped")) parts.push(`${n("stopped")} stopped`);
  summary.textContent = rows.length ? parts.join(", ") : "";
  list.parentElement.hidden = rows.length === 0;
}

async function pump() {
  while (active < AT_ONCE && waiting.length) {
    const row = waiting.shift();
    if (row.state !== "waiting") continue;
    active += 1;
    row.run().catch((problem) => {
      if (row.upload && problem.field !== "state") before.push(row.upload);  // chosen again, it continues
      row.show("failed", [problem.message, problem.fix].filter(Boolean).join(" "));
    }).finally(() => { active -= 1; pump(); });
  }
  if (active === 0 && waiting.length === 0) htmx.trigger("#progress", "refresh");
}

/** files: [file, its path in what was chosen]. */
function add(files) {
  for (const [file, path] of files) {
    if (file.name.startsWith(".")) continue;
    const row = new Row(file, path.replace(/^\//, "").slice(-255).normalize("NFC").trim());
    rows.push(row);
    waiting.push(row);
  }
  summarise();
  pump();
}

/** A file that won't come any more would keep its case from being signed. */
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-give-up]");
  if (!button || !confirm(`Give up ${button.dataset.name}? What has arrived of it is deleted.`)) return;
  const id = button.dataset.giveUp;
  const row = rows.find((one) => one.upload?.id === id);
  row?.show("failed", "given up");
  row?.abort?.abort();
  before = before.filter((u) => u.id !== id);
  await send("DELETE", `uploads/${id}`).catch(tellProblem);
  htmx.trigger("#progress", "refresh");
});

/** All files of what was dropped with their paths, folders opened. */
async function filesOf(items) {
  const found = [];
  const open = async (entry) => {
    if (entry.isFile) return void found.push([await new Promise((yes, no) => entry.file(yes, no)), entry.fullPath]);
    const reader = entry.createReader();
    for (;;) {  // a reader gives at most 100 entries at a time
      const batch = await new Promise((yes, no) => reader.readEntries(yes, no));
      if (!batch.length) return undefined;
      for (const inner of batch) await open(inner);
    }
  };
  for (const entry of [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)) await open(entry);
  return found;
}

if (drop) {
  for (const name of ["pick-files", "pick-folder"]) {
    const input = document.getElementById(name);
    input.addEventListener("change", () => { add([...input.files].map((file) => [file, file.webkitRelativePath || file.name])); input.value = ""; });
  }
  for (const type of ["dragover", "dragenter"]) drop.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const type of ["dragleave", "drop"]) drop.addEventListener(type, () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    try { add(await filesOf(event.dataTransfer.items)); } catch (problem) { tellProblem(problem); }
  });
  addEventListener("beforeunload", (event) => { if (active) event.preventDefault(); });
  get(`cases/${caseId}/uploads`).then(({ uploads }) => {
    before = uploads;
    const cut = uploads.filter((u) => u.state === "receiving").length;
    if (cut) tell(`${cut} file${cut > 1 ? "s were" : " was"} cut off earlier. Choose the same files again: they continue where they stopped.`, { seconds: 15 });
  }).catch(tellProblem);
}
