// Before anything is drawn, so that a page does not flash in the other colours.
const storedTheme = localStorage.getItem("farebox-theme");
if (storedTheme === "dark" || storedTheme === "light") document.documentElement.dataset.theme = storedTheme;
