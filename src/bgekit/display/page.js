"use strict";
// Sort a table by a click on a column's head: numbers from the largest, texts from the first letter, then reversed.
const numberIn = (cell) => {
  const found = cell.textContent.replace(/,/g, "").match(/[+-]?\d+(\.\d+)?/);
  return found ? parseFloat(found[0]) : -Infinity;
};
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  if (body.rows.length < 3) continue; // There is nothing to sort.
  table.tHead.rows[0].querySelectorAll("th").forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numeric;
      const order = (a, b) =>
        numeric ? numberIn(a.cells[place]) - numberIn(b.cells[place])
                : a.cells[place].textContent.localeCompare(b.cells[place].textContent);
      for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a))));
    });
  });
}
// A link to a folded task unfolds it; so does printing for all of them.
const unfold = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.querySelector("details")) target.querySelector("details").open = true;
};
addEventListener("hashchange", unfold);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
unfold();
