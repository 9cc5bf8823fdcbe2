// The JSON API as functions, and how its answers are told to the user.
const token = document.querySelector('meta[name="csrf-token"]')?.content ?? "";

export class ApiError extends Error {
  constructor(status, { code = "", message = "", fix = "", field = null } = {}, wait = 0) {
    super(message || `The server answered ${status}.`);
    Object.assign(this, { status, code, fix, field, wait });
  }
}

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** Ask; what the server has no time for (429: nothing was done) is asked again when it says. */
export async function send(method, path, body, options = {}) {
  for (let tries = 1; ; tries += 1) {
    try { return await ask(method, path, body, options); } catch (problem) {
      if (problem.status !== 429 || problem.wait > 3 || tries > 3) throw problem;
      await pause(1000 * problem.wait);
    }
  }
}

async function ask(method, path, body, { raw = false, signal, key } = {}) {
  const headers = { Accept: "application/json", "X-CSRF-Token": token };
  if (body !== undefined) headers["Content-Type"] = raw ? "application/octet-stream" : "application/json";
  if (key) headers["Idempotency-Key"] = key;  // sent again, it makes nothing twice
  let answer;
  try {
    answer = await fetch(`/api/v1/${path}`, {
      method, headers, signal, body: body === undefined || raw ? body : JSON.stringify(body),
    });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new ApiError(0, { code: "offline", message: "The server can't be reached.", fix: "Nothing was lost; it is tried again." });
  }
  const said = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
  if (answer.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
  if (!answer.ok) throw new ApiError(answer.status, said.error, Number(answer.headers.get("Retry-After")));
  return said;
}

/** The server is down for a while, or its proxy says so: what was sent may have been done. */
export const away = (problem) => [0, 502, 503, 504].includes(problem.status);

export const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

export const get = (path, options) => send("GET", path, undefined, options);
export const post = (path, body = {}) => send("POST", path, body);

/** What is said lies in the open dialog: behind it nothing can be read or pressed. */
function inFront(id) {
  const place = document.getElementById(id);
  const host = document.querySelector("dialog[open]") ?? document.body;
  if (place.parentElement !== host) host.append(place);
  return place;
}
document.addEventListener("close", ({ target }) => {
  for (const place of target.querySelectorAll?.("#toasts, #live") ?? []) document.body.append(place);
}, true);

/** Say something to those who see and to those who listen; `act` is {label, run}. */
export function tell(text, { bad = false, act = null, seconds = bad ? 12 : 5 } = {}) {
  const place = inFront("toasts");
  const toast = document.createElement("div");
  toast.className = bad ? "toast bad" : "toast";
  const words = document.createElement("span");
  words.textContent = text;
  toast.append(words);
  const button = (label, run) => {
    const made = document.createElement("button");
    made.type = "button";
    made.className = "plain";
    made.textContent = label;
    made.addEventListener("click", () => { toast.remove(); run?.(); });
    toast.append(made);
  };
  if (act) button(act.label, act.run);
  button("Close");
  while (place.children.length > 3) place.firstChild.remove();
  place.append(toast);
  setTimeout(() => toast.remove(), seconds * 1000);
}

/** For those who listen only. */
export function whisper(text) {
  inFront("live").textContent = text;
}

export const tellProblem = (problem) => tell([problem.message, problem.fix].filter(Boolean).join(" "), { bad: true });

/** An element: make("p", {class: "quiet"}, "text", child). Null attributes are left out. */
export function make(tag, attributes = {}, ...children) {
  const drawn = ["svg", "rect", "line", "circle", "title"].includes(tag);
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const percent = (share, digits = 0) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`);
