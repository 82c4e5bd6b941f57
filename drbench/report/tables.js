"use strict";
// Sorting and filtering of the tables that are in the page. Texts are only ever set as text.

const values = (row, column) => {
  const cell = row.cells[column];
  const value = cell.dataset.value ?? (/^[–\s]*$/.test(cell.textContent) ? undefined : cell.textContent);
  return value === undefined || value === "" || Number.isNaN(Number(value)) ? value : Number(value);
};

const order = new Intl.Collator("en", { numeric: true });

function compare(a, b, sign) {
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // missing: always last
  return sign * (typeof a === "number" && typeof b === "number" ? a - b : order.compare(a, b));
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort"), numeric = head.classList.contains("number");
      const first = numeric ? "descending" : "ascending"; // largest number first, A before Z
      const direction = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
      heads.forEach((each) => each.setAttribute("aria-sort", each === head ? direction : "none"));
      const body = table.tBodies[0], sign = direction === "ascending" ? 1 : -1;
      const keyed = [...body.rows].map((row) => [values(row, column), row]);
      keyed.sort((a, b) => compare(a[0], b[0], sign)).forEach(([, row]) => body.append(row));
    });
  });
}

function filtering(form) {
  const groups = [...document.querySelectorAll(`#tables-${form.dataset.of} .group`)];
  const { images, noise, text, unmarked } = form.elements;
  const update = () => {
    let shown = 0, all = 0;
    for (const group of groups) {
      const chosen = [images, noise].every((each) => !each.value || each.value === group.dataset[each.name]);
      let kept = 0;
      for (const row of group.querySelectorAll("tbody tr")) {
        const named = row.cells[0].textContent.toLowerCase().includes(text.value.trim().toLowerCase());
        row.hidden = !(chosen && named && !(unmarked.checked && "marked" in row.dataset));
        kept += !row.hidden;
        all += 1;
      }
      group.hidden = !kept;
      shown += kept;
    }
    form.querySelector("output").textContent = shown === all ? `${all} rows` : `${shown} of ${all} rows`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
}

document.querySelectorAll("table:not(.plain)").forEach(sortable);
document.querySelectorAll("form.filters[data-of]").forEach(filtering);
