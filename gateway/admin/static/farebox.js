"use strict";

// Dark or light: the system's choice until somebody presses the button.
const themeButton = document.getElementById("theme");
if (themeButton) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const label = () => { themeButton.textContent = isDark() ? "Light" : "Dark"; };
  themeButton.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem("farebox-theme", next);
    label();
    document.dispatchEvent(new Event("farebox:theme"));
  });
  system.addEventListener("change", label);
  themeButton.hidden = false;
  label();
}

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

// Empty filters would only make the address long.
document.addEventListener("submit", (event) => {
  if (event.target.method !== "get") return;
  for (const field of event.target.elements) if (field.name && field.value === "") field.disabled = true;
});
addEventListener("pageshow", () => {
  for (const field of document.querySelectorAll("form[method=get] [disabled]")) field.disabled = false;
});

// Times are UTC in the page, and the reader's own once a script may help.
const clock = new Intl.DateTimeFormat(undefined, {
  month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});
function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    if (time.dataset.local) continue;
    time.dataset.local = "1";
    if (!time.textContent.endsWith("ago")) time.textContent = clock.format(new Date(time.dateTime));
  }
}
localTimes(document);
document.addEventListener("htmx:afterSwap", (event) => localTimes(event.target));

// Rows that move: only rows that are different are replaced, so that what has the focus keeps it.
function putRows(body, html) {
  const fresh = document.createElement("tbody");
  fresh.innerHTML = html;
  localTimes(fresh);
  const known = new Map([...body.rows].map((row) => [row.id, row]));
  const rows = [...fresh.rows].map((row) => {
    const before = known.get(row.id);
    if (before && before.dataset.text === row.textContent) return before;
    row.dataset.text = row.textContent;
    if (before && before.dataset.text !== undefined) row.classList.add("moved");
    return row;
  });
  const isSame = rows.length === body.rows.length && rows.every((row, at) => row === body.rows[at]);
  if (!isSame) body.replaceChildren(...rows);
}

for (const table of document.querySelectorAll("[data-live]")) {
  const state = document.querySelector("[data-live-state]");
  let source = null;
  const open = () => {
    source = new EventSource(table.dataset.live);
    source.addEventListener("rows", (event) => {
      putRows(table.tBodies[0], event.data);
      if (state) state.hidden = false;
    });
  };
  // A page that nobody looks at asks for nothing.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source?.close();
    else open();
  });
  addEventListener("pagehide", () => source?.close());
  for (const row of table.tBodies[0].rows) row.dataset.text = row.textContent;
  open();
}
