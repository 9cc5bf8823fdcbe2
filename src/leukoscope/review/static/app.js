// What every page shares: theme, times in the reader's zone, questions before acts, htmx's problems.
import { tell, tellProblem } from "./api.js";

const root = document.documentElement;
const dark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

document.getElementById("theme")?.addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});

function local(within) {
  for (const time of within.querySelectorAll("time[datetime]:not([data-done])")) {
    const at = new Date(time.dateTime);
    time.title = time.textContent;
    time.textContent = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    time.dataset.done = "";
  }
}

local(document);
document.addEventListener("htmx:afterSwap", (event) => local(event.target.parentElement ?? document));

document.addEventListener("htmx:responseError", (event) => {
  let said = {};
  try { said = JSON.parse(event.detail.xhr.responseText).error; } catch { said = { message: "That didn't work." }; }
  tellProblem(said);
});
document.addEventListener("htmx:sendError", () => tell("The server can't be reached.", { bad: true }));

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.ask;
  if (question && !confirm(question)) event.preventDefault();
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const field = document.getElementById(button.dataset.copy);
  await navigator.clipboard?.writeText(field.value ?? field.textContent).catch(() => field.select?.());
  tell("Copied.");
});
