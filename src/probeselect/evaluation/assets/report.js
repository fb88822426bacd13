"use strict";
function sort(head) {
  const table = head.closest("table"), body = table.tBodies[0];
  const column = head.cellIndex, falling = head.getAttribute("aria-sort") === "ascending";
  const key = (row) => row.cells[column].dataset.sort;
  const order = (a, b) => {
    const x = key(a), y = key(b), known = (x !== "") - (y !== "");
    if (known || x === "") return -known;
    const gap = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return falling ? -gap : gap;
  };
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  body.append(...[...body.rows].sort(order));
}
function act(selector, what) {
  for (const element of document.querySelectorAll(selector)) {
    element.addEventListener("click", () => what(element));
    element.addEventListener("keydown", (event) => { if (event.key === "Enter") what(element); });
  }
}
act("th", sort);
act("figure img", (image) => image.closest("figure").classList.toggle("large"));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelector("figure.large")?.classList.remove("large");
});
