// The dialog: everything about one run, and what was observed for each of its images. Built as elements, never as markup.

const dialog = document.getElementById("detail");

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const badge = ({ text, sign, meaning, alarm }) =>
  element("span", { class: alarm ? "badge alarm" : "badge", title: meaning }, `${sign} ${text}`);

const data = (id) => JSON.parse(document.getElementById(id).textContent);

function facts(groups) {
  const parts = groups.map(([title, lines]) =>
    element("section", {}, element("h4", {}, title), element("dl", {},
      ...lines.flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]))));
  return element("div", { class: "facts" }, ...parts);
}

function folded(title, text) {
  return element("details", {}, element("summary", {}, title), element("pre", { tabindex: "0" }, text));
}

// what the images of a run can be narrowed to: name -> whether a row belongs; r is the radius that is asked for
const CHOICES = {
  certify: {
    "all images": () => true,
    "certified at r": (row, r) => row.answer === row.label && row.radius >= r,
    "not certified at r": (row, r) => !(row.answer === row.label && row.radius >= r),
    "wrong, abstained or failed": (row) => row.answer !== row.label,
  },
  attack: {
    "all images": () => true,
    "wrong at least once": (row) => row.wrong > 0,
    "always right": (row) => row.wrong === 0,
    "wrong in most answers": (row) => 2 * row.wrong >= row.of,
  },
};

function evidence({ task, columns, rows }, radius) {
  const choices = CHOICES[task];
  const select = element("select", {}, ...Object.keys(choices).map((name) => element("option", {}, name)));
  const at = element("input", { type: "number", min: "0", step: "any", value: radius ?? 0 });
  const count = element("output"), body = element("tbody");
  const heads = columns.map((name) => element("th", { scope: "col", "aria-sort": "none" },
    element("button", { type: "button" }, name)));
  const table = element("table", { id: "evidence" }, element("thead", {}, element("tr", {}, ...heads)), body);
  const cell = (value) => {
    const text = value === null ? "–" : String(value), number = typeof value === "number";
    const shown = number && !Number.isInteger(value) ? value.toFixed(4) : text;
    return element("td", { class: number ? "number" : "", title: number ? text : "", "data-value": text }, shown);
  };
  const drawn = rows.map((row) => [Object.fromEntries(columns.map((name, i) => [name, row[i]])),
    element("tr", {}, ...row.map(cell))]);
  drawn.forEach(([row, line]) => line.classList.toggle("wrong", task === "certify" ? row.answer !== row.label : row.wrong > 0));
  body.append(...drawn.map(([, line]) => line));
  const update = () => {
    let kept = 0;
    for (const [row, line] of drawn) {
      line.hidden = !choices[select.value](row, Number(at.value));
      kept += !line.hidden;
    }
    count.textContent = `${kept} of ${rows.length} images = ${(100 * kept / rows.length).toFixed(1)} %`;
  };
  if (radius !== undefined && task === "certify") select.value = "certified at r";
  const form = element("form", { class: "filters", "aria-label": "Filter the images" }, element("label", {}, "show ", select));
  if (task === "certify") form.append(element("label", {}, "r = ", at));
  form.append(count);
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
  sortable(table);
  const note = task === "certify" ? "Votes are class:count. Radii are shown with four digits, filtered and sorted with all of them." :
    "Answers are class:count over all evaluations; failures are counted on the draws that chose among the examples.";
  return element("section", {}, element("h3", {}, "Evidence of each image"), element("p", { class: "quiet" }, note), form,
    element("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Evidence of each image" }, table));
}

function open(number, radius) {
  const holder = document.getElementById(`data-run-${number}`);
  if (!holder) return;
  const run = JSON.parse(holder.textContent), content = dialog.querySelector(".content");
  document.getElementById("detail-title").textContent = run.name;
  content.replaceChildren(
    element("p", {}, run.title, " ", ...run.badges.map(badge)),
    element("p", { class: "hash" }, run.place),
    ...(run.evidence.rows.length ? [evidence(run.evidence, radius)] : [element("p", {}, "No image is recorded.")]),
    element("h3", {}, "What made it"), facts(run.facts),
    ...(run.config ? [folded("config.yaml, as resolved", run.config)] : []),
    folded("run.json, without the list of images", run.header));
  if (!dialog.open) dialog.showModal();
  content.scrollTop = 0;
  history.replaceState(null, "", `#run-${number}`);
}

dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // outside of its content
dialog.addEventListener("close", () => history.replaceState(null, "", "#"));
const main = document.getElementById("main");
main.addEventListener("click", (event) => {
  const cell = event.target.closest("button.open, td[data-radius], td[data-run]");
  if (!cell) return;
  const number = cell.dataset.run ?? cell.closest("tr").dataset.run;
  if (number !== undefined) open(number, cell.dataset.radius && Number(cell.dataset.radius));
});
// From the name of a row, arrow keys go from cell to cell, so that Tab need not stop at each of them.
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
main.addEventListener("keydown", (event) => {
  const cell = event.target.closest("tbody :is(td, th)");
  if (!cell || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Enter" && event.target === cell) {
    event.preventDefault(); // or it would press the first button of the dialog
    cell.click();
  }
  if (!(event.key in STEPS)) return;
  const [down, right] = STEPS[event.key], rows = [...cell.closest("tbody").rows].filter((row) => !row.hidden);
  const next = rows[rows.indexOf(cell.parentElement) + down]?.cells[cell.cellIndex + right];
  if (!next) return;
  event.preventDefault();
  next.tabIndex = -1;
  (next.querySelector("button, summary") ?? next).focus();
});
const linked = () => { const found = /^#run-(\d+)$/.exec(location.hash); if (found) open(found[1]); };
window.addEventListener("hashchange", linked);
