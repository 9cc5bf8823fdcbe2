// Runs before the page is painted, so that a chosen light or dark never flashes.
const chosen = localStorage.getItem("theme");
if (chosen) document.documentElement.dataset.theme = chosen;
