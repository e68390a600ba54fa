"use strict";

// Dark or light: the system's choice until somebody presses the button.
const themeButton = document.getElementById("theme");
if (themeButton) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const updateLabel = () => { themeButton.textContent = isDark() ? "Light" : "Dark"; };
  themeButton.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem("farebox-theme", next);
    updateLabel();
    document.dispatchEvent(new Event("farebox:theme"));
  });
  system.addEventListener("change", updateLabel);
  themeButton.hidden = false;
  updateLabel();
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

// Times are UTC in the page, and the reader's own once a script may help. Of runs the day is said when it is another one.
const hour = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const dateTimeFormat = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", ...hour });
const timeFormat = new Intl.DateTimeFormat(undefined, hour);
function localizeTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    if (time.dataset.local) continue;
    time.dataset.local = "1";
    const at = new Date(time.dateTime);
    const isToday = time.closest(".runs") && at.toDateString() === new Date().toDateString();
    if (!time.textContent.endsWith("ago")) time.textContent = (isToday ? timeFormat : dateTimeFormat).format(at);
  }
}
localizeTimes(document);
const zone = document.getElementById("zone");
if (zone) zone.textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
document.addEventListener("htmx:afterSwap", (event) => localizeTimes(event.target));

// Rows that move: only cells that are different are replaced, and only rows that come first are moved, so that what has the focus
// keeps it. A row is marked when its own
// figures move; those of budgets that it shares with others move with every call of theirs.
const receivedHtml = new WeakMap(); // cell → its HTML as it came
function updateRows(body, html) {
  const incoming = document.createElement("tbody");
  incoming.className = "runs";
  incoming.innerHTML = html;
  for (const cell of incoming.querySelectorAll("td")) receivedHtml.set(cell, cell.innerHTML);
  localizeTimes(incoming);
  const known = new Map([...body.rows].map((row) => [row.id, row]));
  const rows = [...incoming.rows].map((row) => updateCells(known.get(row.id), row));
  for (const row of [...body.rows]) if (!rows.includes(row)) row.remove();
  rows.forEach((row, at) => { if (body.rows[at] !== row) body.insertBefore(row, body.rows[at] ?? null); });
}
const ownText = (cell) => cell.textContent.replace(cell.querySelector(".tight")?.textContent ?? "", "");
function updateCells(before, row) {
  if (!before) return row;
  let hasChanged = false;
  [...row.cells].forEach((cell, at) => {
    const old = before.cells[at];
    if (receivedHtml.get(old) === receivedHtml.get(cell)) return;
    hasChanged ||= receivedHtml.has(old) && ownText(old) !== ownText(cell) && row.id !== "of-project";
    old.replaceWith(cell);
  });
  if (hasChanged) {
    before.classList.remove("moved");
    void before.offsetWidth; // begins the animation anew
    before.classList.add("moved");
  }
  return before;
}

for (const table of document.querySelectorAll("[data-live]")) {
  const state = document.querySelector("[data-live-state]");
  let source = null;
  const connect = () => {
    source = new EventSource(table.dataset.live);
    source.addEventListener("rows", (event) => {
      updateRows(table.tBodies[0], event.data);
      if (state) state.hidden = false;
    });
  };
  // A page that nobody looks at asks for nothing.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source?.close();
    else connect();
  });
  addEventListener("pagehide", () => source?.close());
  for (const cell of table.tBodies[0].querySelectorAll("td:not(:has(time))")) receivedHtml.set(cell, cell.innerHTML);
  connect();
}

// Columns for each day, one part upon the other. The table below holds the same figures for whoever has no script.
function drawChart(box) {
  const { days, parts, is_money: money } = JSON.parse(box.dataset.chart);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const cents = { minimumFractionDigits: 2, maximumFractionDigits: 2 };
  const formatExact = (value) => !money ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : "$" + value.toLocaleString("en", value && value < 1 ? { maximumSignificantDigits: 3 } : cents);
  const formatCompact = (value) => (money ? "$" : "") + value.toLocaleString("en", value && value < 1 ? { maximumSignificantDigits: 2 } : { notation: value >= 1e4 ? "compact" : "standard", maximumFractionDigits: 2 });
  const day = (at, form) => new Date(at * 1000).toLocaleDateString(undefined, { ...form, timeZone: "UTC" });
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px Inter, system-ui, sans-serif" };
  const stacked = parts.map((_, at) => days.map((_, on) => parts.slice(0, at + 1).reduce((sum, part) => sum + part.values[on], 0)));
  const list = document.createElement("ul");
  list.className = "parts";
  // What the day under the pointer used, or all days together.
  const showDay = (index) => {
    const dayOrTotal = (values) => index == null ? values.reduce((sum, value) => sum + value, 0) : values[index];
    const rows = parts.length < 2 ? [] : parts.map((part, at) => [at + 1, part.name || box.dataset.title, dayOrTotal(part.values)]);
    list.replaceChildren(...[[0, index == null ? "together" : day(days[index], { weekday: "short", month: "short", day: "numeric" }), dayOrTotal(stacked.at(-1) ?? [0])], ...rows].map(([at, name, value]) => {
      const item = document.createElement("li"), figure = document.createElement("b"), dot = document.createElement("i");
      if (at) { dot.className = `c${at}`; item.append(dot); }
      figure.textContent = ` ${formatExact(value)}`;
      item.append(name, figure);
      return item;
    }));
  };
  box.replaceChildren();
  const bars = uPlot.paths.bars({ size: [0.72, 48], radius: 0.12 });
  const series = parts.map((_, at) => ({ fill: colour(`--c${at + 1}`), stroke: colour(`--c${at + 1}`), width: 0, points: { show: false }, paths: bars }));
  // The tallest is drawn first, so that each part covers all but its own.
  new uPlot({
    width: box.clientWidth, height: 240, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"), legend: { show: false },
    cursor: { points: { show: false }, drag: { x: false, y: false }, y: false },
    hooks: { setCursor: [(plot) => showDay(plot.cursor.idx)] },
    scales: { x: { range: (_, low, high) => [low - 43200, high + 43200] }, y: { range: (_, low, high) => [Math.min(0, low), high > 0 ? high * 1.08 : 1] } },
    axes: [{ ...axis, size: 28, grid: { show: false }, values: (_, splits) => splits.map((at) => day(at, { month: "short", day: "numeric" })) }, { ...axis, size: 62, values: (_, splits) => splits.map(formatCompact) }],
    series: [{}, ...series.reverse()],
  }, [days, ...stacked.reverse()], box);
  stacked.reverse();
  box.append(list);
  showDay(null);
}
const charts = [...document.querySelectorAll("[data-chart]")];
if (charts.length && window.uPlot) {
  const drawCharts = () => charts.forEach(drawChart);
  drawCharts();
  document.addEventListener("farebox:theme", drawCharts);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
  let resizeTimer = 0;
  addEventListener("resize", () => { clearTimeout(resizeTimer); resizeTimer = setTimeout(drawCharts, 150); });
}

// Settings: what was edited is marked, and the way on is offered once there is something to look at.
for (const form of document.querySelectorAll("form[data-changes]")) {
  const bar = form.querySelector(".bottom"), count = form.querySelector("[data-count]");
  const isEdited = (field) => field.type === "checkbox" ? field.checked !== field.defaultChecked
    : field.options ? ![...field.options].every((option) => option.selected === (option.defaultSelected || (!field.querySelector("[selected]") && option.index === 0)))
    : field.value !== field.defaultValue;
  const markEdited = () => {
    const fields = [...form.elements].filter((field) => field.name && field.type !== "hidden");
    const edited = fields.filter(isEdited);
    for (const field of fields) field.closest(".setting, td")?.classList.toggle("edited", edited.includes(field));
    if (!bar) return;
    bar.hidden = edited.length === 0;
    count.textContent = `${edited.length} edited`;
  };
  form.addEventListener("input", markEdited);
  form.addEventListener("change", markEdited);
  addEventListener("pageshow", markEdited);
  markEdited();
}

// A bar of the time line leads to its call, and opens it.
function openLinkedCall() {
  const call = location.hash.startsWith("#call-") && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (call) call.querySelector("details").open = true;
}
addEventListener("hashchange", openLinkedCall);
openLinkedCall();

// On a phone the pages are a row that scrolls: centre the current one. Not with scrollIntoView, after which some browsers begin the
// keyboard's order behind that link and pass over "Skip to the content".
const current = document.querySelector(".side [aria-current]");
if (current) {
  const row = current.closest("nav");
  row.scrollLeft += current.getBoundingClientRect().left - row.getBoundingClientRect().left - (row.clientWidth - current.clientWidth) / 2;
}
