// Before anything is drawn, so that a page does not flash in the other colours.
const chosen = localStorage.getItem("farebox-theme");
if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
