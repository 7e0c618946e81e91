// The page's chart, its choices, and the tables that follow them. Without this script the page shows
// all tables and no chart. Vega, Vega-Lite and vega-embed stand in the page before it.
"use strict";

const data = JSON.parse(document.getElementById("chart-data").textContent);
const looks = new Map(data.methods.map((method) => [method.id, method]));
const dark = matchMedia("(prefers-color-scheme: dark)");
const shown = new Set(data.methods.filter((method) => method.main).map((method) => method.id));
const FIRST_SPARSITY = 80; // in percent; where a task lacks it, the largest that most methods have
const charts = new Map(); // element → what vega-embed made in it
const byId = (id) => document.getElementById(id);

const number = (value, digits) => (value === null ? "–" : value.toFixed(digits));
const withSpread = (point) =>
  point.spread === null ? number(point.mean, 2) : `${number(point.mean, 2)} ± ${number(point.spread, 2)}`;
const colour = (method) => {
  const own = looks.get(method)?.colour ?? "#000000";
  return dark.matches ? `color-mix(in srgb, ${own} 55%, white)` : own;
};

// What is chosen

const task = () => data.tasks.find((one) => one.title === byId("task").value);
const budget = () => Number(byId("budget").value || Infinity);
const affordable = (point) =>
  budget() === Infinity || (point.cost !== null && Math.round(10 * point.cost) / 10 <= budget());
const byMerit = (a, b) => (task().lower ? a.mean - b.mean : b.mean - a.mean); // the better one first
const points = () =>
  task().points.filter((point) => shown.has(point.method) && affordable(point) && point.mean !== null);
const atSparsity = () => points().filter((point) => point.sparsity === Number(byId("sparsity").value));

function fillTask() {
  const methods = new Set(task().points.map((point) => point.method));
  for (const label of byId("methods").querySelectorAll("label")) {
    label.hidden = !methods.has(label.querySelector("input").value);
  }
  const before = Number(byId("sparsity").value);
  const counts = new Map();
  for (const point of task().points) counts.set(point.sparsity, (counts.get(point.sparsity) ?? 0) + 1);
  const sparsities = [...counts.keys()].sort((a, b) => a - b);
  const fullest = Math.max(...counts.values());
  const first = sparsities.includes(FIRST_SPARSITY) ? FIRST_SPARSITY : sparsities.findLast((one) => counts.get(one) === fullest);
  const chosen = sparsities.includes(before) ? before : first;
  byId("sparsity").replaceChildren(
    ...sparsities.map((one) => new Option(`${one} %`, one, one === chosen, one === chosen)),
  );
}

// The chart

function range(values) {
  const known = values.filter((value) => value !== null && Number.isFinite(value));
  if (!known.length) return [0, 1];
  const low = Math.min(...known), high = Math.max(...known);
  const margin = 0.06 * (high - low || 1);
  return [low - margin, high + margin];
}

const ends = (point) => ({
  ...point,
  low: point.mean - (point.spread ?? 0),
  high: point.mean + (point.spread ?? 0),
});

const tooltip = () => [
  { field: "name", title: "method" },
  { field: "sparsity", title: "sparsity (%)" },
  { field: "value", title: task().metric },
  { field: "seeds", title: "seeds" },
  { field: "steps", title: "steps, search included", format: ".0f" },
  { field: "cost", title: "FLOPs ÷ dense", format: ".2f" },
  { field: "teraflops", title: "training TFLOP", format: ".3~s" },
  { field: "cosine", title: "cosine with the one-shot mask", format: ".3f" },
  { field: "command", title: "command" },
];

function denseLayers(domain) {
  if (!task().dense) return [];
  const dense = { ...ends(task().dense), title: "dense" };
  const y = (field) => ({ field, type: "quantitative", scale: { domain, zero: false } });
  const ink = getComputedStyle(document.body).color;
  return [
    { data: { values: [dense] }, mark: { type: "rect", opacity: 0.1, color: ink }, encoding: { y: y("low"), y2: { field: "high" } } },
    { data: { values: [dense] }, mark: { type: "rule", strokeDash: [5, 3], color: ink }, encoding: { y: y("mean") } },
  ];
}

function specification(description, layer) {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  const axis = { labelColor: of("--faint"), titleColor: of("--ink"), gridColor: of("--line"), domainColor: of("--line"), tickColor: of("--line"), titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 13 };
  return {
    description, width: "container", height: 340, background: null, layer, autosize: { type: "fit", contains: "padding" },
    config: { axis, view: { stroke: null }, font: "system-ui, sans-serif", text: { color: of("--ink") } },
  };
}

function looksOf(some) {
  const methods = [...new Set(some.map((point) => point.method))];
  const scale = (values) => ({ domain: methods, range: methods.map(values) });
  return {
    color: { field: "method", type: "nominal", legend: null, scale: scale(colour) },
    shape: { field: "method", type: "nominal", legend: null, scale: scale((method) => looks.get(method).shape) },
  };
}

function overSparsity() {
  const values = points().map((point) => ({ ...ends(point), value: withSpread(point) }));
  const dense = task().dense ? [ends(task().dense)] : [];
  const domain = range([...values, ...dense].flatMap((point) => [point.low, point.high]));
  const { color, shape } = looksOf(values);
  const sparsities = [...new Set(task().points.map((point) => point.sparsity))].sort((a, b) => a - b);
  const x = {
    field: "sparsity", type: "quantitative", title: "sparsity (%)",
    scale: { domain: [sparsities[0] - 3, sparsities.at(-1) + 3], nice: false },
    axis: { values: sparsities, grid: false },
  };
  const y = { field: "mean", type: "quantitative", title: task().metric, scale: { domain, zero: false } };
  const band = { x, y: { ...y, field: "low" }, y2: { field: "high" }, color };
  return specification(`${task().metric} over sparsity on ${task().title}; the table below has the numbers`, [
    ...denseLayers(domain),
    { data: { values }, layer: [
      { mark: { type: "area", opacity: 0.16 }, encoding: band },
      { mark: { type: "rule", opacity: 0.6 }, encoding: band },
      { mark: { type: "line", strokeWidth: 2 }, encoding: { x, y, color } },
      { mark: { type: "point", filled: true, size: 70, opacity: 1 }, encoding: { x, y, color, shape, tooltip: tooltip() } },
    ] },
  ]);
}

// Points that would lie on each other move sideways, at most as far as they must.
function setApart(values, width, height, costs, domain) {
  const across = (cost) => (width * Math.log(cost / costs[0])) / Math.log(costs[1] / costs[0]);
  const placed = [];
  for (const point of [...values].sort((a, b) => b.mean - a.mean)) {
    const top = (height * (domain[1] - point.mean)) / (domain[1] - domain[0]);
    for (let step = 0; ; step = step > 0 ? -step : 1 - step) {
      const left = across(point.cost) + 9 * step;
      if (placed.every((other) => Math.abs(other.left - left) >= 12 || Math.abs(other.top - top) >= 12)) {
        placed.push({ left, top });
        point.place = costs[0] * Math.exp((left / width) * Math.log(costs[1] / costs[0]));
        break;
      }
    }
  }
}

function paretoFront(values) {
  const front = [];
  for (const point of [...values].sort((a, b) => a.cost - b.cost || byMerit(a, b))) {
    if (!front.length || byMerit(point, front.at(-1)) < 0) front.push(point);
  }
  return front;
}

function overCost(width) {
  const values = atSparsity().filter((point) => point.cost !== null).map((point) => ({ ...ends(point), value: withSpread(point) }));
  const dense = task().dense ? [ends(task().dense)] : [];
  const domain = range([...values, ...dense].flatMap((point) => [point.low, point.high]));
  const most = Math.max(2, ...values.map((point) => point.cost));
  const costs = [0.8 * Math.min(1, ...values.map((point) => point.cost)), 1.25 * most];
  setApart(values, width, 300, costs, domain);
  const front = paretoFront(values);
  const { color, shape } = looksOf(values);
  const x = {
    field: "place", type: "quantitative", title: "training FLOPs ÷ dense fine-tuning (log scale)",
    scale: { type: "log", domain: costs, nice: false },
    axis: { values: [0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20].filter((one) => one < costs[1]), format: "~g", grid: false },
  };
  const y = { field: "mean", type: "quantitative", title: task().metric, scale: { domain, zero: false } };
  const text = { field: "name", type: "nominal" };
  const half = Math.sqrt(costs[0] * costs[1]);
  const label = (left) => ({
    data: { values: front.filter((point) => (point.place < half) === left) },
    mark: { type: "text", align: left ? "left" : "right", dx: left ? 6 : -6, dy: -10, fontSize: 12 },
    encoding: { x, y, text },
  });
  return specification(`${task().metric} over training cost on ${task().title} at ${byId("sparsity").value} % sparsity, with the Pareto front; the table below has the numbers`, [
    ...denseLayers(domain),
    { data: { values: front }, mark: { type: "line", interpolate: "step-after", strokeWidth: 1.5, opacity: 0.5, color: getComputedStyle(document.body).color }, encoding: { x, y } },
    { data: { values }, layer: [
      { mark: { type: "rule", opacity: 0.6 }, encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color } },
      { mark: { type: "point", filled: true, size: 90, opacity: 1 }, encoding: { x, y, color, shape, tooltip: tooltip() } },
    ] },
    label(true), label(false),
  ]);
}

async function draw(id, spec) {
  charts.get(id)?.finalize();
  charts.set(id, null);
  const made = await vegaEmbed(byId(id), spec, { actions: false, renderer: "svg", mode: "vega-lite", tooltip: { theme: dark.matches ? "dark" : "light" } });
  charts.set(id, made);
}

// The numbers behind it, for those who do not hover

function fillNumbers() {
  const front = new Set(paretoFront(atSparsity().filter((point) => point.cost !== null)).map((point) => point.method));
  const rows = atSparsity().sort(byMerit).map((point) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = point.name;
    const command = document.createElement("code");
    command.textContent = point.command;
    const texts = [
      withSpread(point), point.seeds, number(point.steps, 0), number(point.cost, 2), number(point.teraflops, 1),
      number(point.cosine, 3), front.has(point.method) ? "yes" : "no", command,
    ];
    row.append(head, ...texts.map((text) => {
      const cell = document.createElement("td");
      cell.append(text);
      return cell;
    }));
    return row;
  });
  byId("numbers").querySelector("tbody").replaceChildren(...rows);
  byId("metric").textContent = task().metric;
  const [best] = atSparsity().sort(byMerit);
  const within = budget() === Infinity ? "" : ` within ${budget()} fine-tuning${budget() === 1 ? "" : "s"}`;
  const where = `At ${byId("sparsity").value} % sparsity${within}`;
  const gap = best && task().dense ? ` (${number(best.mean - task().dense.mean, 2).replace("-", "−")} from dense)` : "";
  byId("summary").textContent = best
    ? `${where} the best of the methods shown is ${best.name}: ${withSpread(best)}${gap}.`
    : `${where} none of the methods shown has a result.`;
}

// Tables: those of the chosen task, sortable by each column

function showTables() {
  for (const figure of document.querySelectorAll("[data-task]")) {
    figure.hidden = !byId("all-tasks").checked && figure.dataset.task !== task().task;
  }
  for (const section of document.querySelectorAll("main > section")) {
    const tables = [...section.querySelectorAll(".tables > figure")];
    section.hidden = tables.length > 0 && tables.every((figure) => figure.hidden);
    document.querySelector(`nav a[href="#${section.id}"]`).hidden = section.hidden;
  }
  makeScrollable();
}

function makeScrollable() {
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

function sortBy(table, column, header) {
  const descending = header.getAttribute("aria-sort") !== "descending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[table.tBodies.length - 1];
  const key = (row) => {
    const text = row.cells[column].textContent.trim();
    const value = parseFloat(text.replaceAll("−", "-").replaceAll(",", ""));
    return text === "–" ? null : Number.isNaN(value) || column === 0 ? text : value;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => (a === null) - (b === null) || (descending ? compare(b, a) : compare(a, b)));
  body.append(...rows.map(([, row]) => row));
}

function makeSortable(table) {
  const heads = table.tHead.rows;
  const last = heads[heads.length - 1];
  const columns = [heads[0].cells[0], ...[...last.cells].slice(heads.length > 1 ? 0 : 1)];
  columns.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(table, column, header));
    header.append(button);
  });
}

// A link to a folded section opens it

function unfold(name) {
  const folded = byId(name)?.querySelector(":scope > details");
  if (folded) folded.open = true;
}

for (const link of document.querySelectorAll("nav a")) {
  link.addEventListener("click", () => unfold(link.hash.slice(1)));
}
unfold(location.hash.slice(1));

// Begin

function fillChoices() {
  const groups = new Map();
  for (const one of data.tasks) {
    const group = groups.get(one.group) ?? Object.assign(document.createElement("optgroup"), { label: one.group });
    group.append(new Option(one.title, one.title, false, one.title === data.chosen));
    groups.set(one.group, group);
  }
  byId("task").replaceChildren(...groups.values());
  byId("budget").replaceChildren(
    new Option("any", ""),
    ...data.budgets.map((one) => new Option(`${one} fine-tuning${one === 1 ? "" : "s"} at most`, one)),
  );
  byId("methods").replaceChildren(...data.methods.map((method) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    const swatch = document.createElement("span");
    Object.assign(box, { type: "checkbox", value: method.id, checked: shown.has(method.id) });
    swatch.className = "swatch";
    swatch.style.background = colour(method.id);
    label.append(box, swatch, method.name);
    return label;
  }));
}

function choose(which) {
  for (const box of byId("methods").querySelectorAll("input")) {
    box.checked = which === "all" || (which === "main" && looks.get(box.value).main);
  }
  readMethods();
}

function readMethods() {
  shown.clear();
  for (const box of byId("methods").querySelectorAll("input:checked")) shown.add(box.value);
  update();
}

function update() {
  fillNumbers();
  makeScrollable();
  const drawn = [["over-sparsity", overSparsity()], ["over-cost", overCost(byId("over-cost").clientWidth - 60)]];
  return Promise.all(drawn.map(([id, spec]) => draw(id, spec)));
}

for (const table of document.querySelectorAll("table")) makeSortable(table);
if (data.tasks.length) {
  for (const part of document.querySelectorAll(".scripted")) part.hidden = false;
  fillChoices();
  fillTask();
  byId("task").addEventListener("change", () => { fillTask(); showTables(); update(); });
  byId("all-tasks").addEventListener("change", showTables);
  for (const id of ["budget", "sparsity"]) byId(id).addEventListener("change", update);
  byId("methods").addEventListener("change", readMethods);
  for (const button of document.querySelectorAll("button[data-choose]")) {
    button.addEventListener("click", () => choose(button.dataset.choose));
  }
  dark.addEventListener("change", () => {
    for (const swatch of document.querySelectorAll(".swatch")) {
      swatch.style.background = colour(swatch.previousElementSibling.value);
    }
    update();
  });
  addEventListener("resize", makeScrollable);
  document.addEventListener("toggle", makeScrollable, true);
  showTables();
  update();
}
