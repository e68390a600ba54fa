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

// Columns for each day. The table below holds the same figures for whoever has no script.
function drawChart(box) {
  const { days, values } = JSON.parse(box.dataset.chart);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const money = "money" in box.dataset;
  const shown = (value) => value == null ? "" : (money ? "$" : "") + value.toLocaleString("en", { maximumFractionDigits: money ? 6 : 0 });
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  box.replaceChildren();
  new uPlot({
    width: box.clientWidth, height: 270, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
    cursor: { points: { show: false }, drag: { x: false, y: false } },
    scales: { x: { range: (_, low, high) => [low - 43200, high + 43200] }, y: { range: (_, low, high) => [Math.min(0, low), high > 0 ? high * 1.08 : 1] } },
    axes: [{ ...axis, size: 28, values: (_, splits) => splits.map((at) => new Date(at * 1000).toLocaleDateString(undefined, { month: "short", day: "numeric", timeZone: "UTC" })) }, { ...axis, size: 84, values: (_, splits) => splits.map(shown) }],
    series: [
      { label: "day", value: (_, at) => at == null ? "" : new Date(at * 1000).toISOString().slice(0, 10) },
      { label: box.dataset.title, fill: colour("--accent"), stroke: colour("--accent"), width: 0, points: { show: false }, value: (_, value) => shown(value), paths: uPlot.paths.bars({ size: [0.72, 48], radius: 0.12 }) },
    ],
  }, [days, values], box);
}
const charts = [...document.querySelectorAll("[data-chart]")];
if (charts.length && window.uPlot) {
  const drawAll = () => charts.forEach(drawChart);
  drawAll();
  document.addEventListener("farebox:theme", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let wait = 0;
  addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(drawAll, 150); });
}
