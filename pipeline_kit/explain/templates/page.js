"use strict";
const root = document.documentElement;
const tip = document.getElementById("tip");
const redraws = [];

// Text goes into the page by textContent only, so nothing in it is ever read as markup.
function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function isolated(name, text) {
  const made = element(name);
  made.append(element("bdi", text));
  return made;
}

function showTip(target, facts) {
  const list = element("dl");
  for (const [key, value] of facts) list.append(element("dt", key), isolated("dd", value));
  tip.replaceChildren(list);
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  const below = box.bottom + own.height + 8 < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - own.height - 6)}px`;
  if (shown) shown.removeAttribute("aria-describedby");
  target.setAttribute("aria-describedby", "tip");
  shown = target;
}
let shown = null;
function hideTip() {
  tip.hidden = true;
  if (shown) shown.removeAttribute("aria-describedby");
  shown = null;
}

const words = (node) => node.textContent.trim();
function chipFacts(chip) {
  const list = chip.closest("ol");
  const table = list.nextElementSibling.querySelector("table");
  const row = table.tBodies[0].rows[[...list.children].indexOf(chip.parentNode)];
  return [...table.tHead.rows[0].cells]
    .map((head, i) => [words(head), words(row.cells[i])])
    .filter(([, value]) => value !== "");
}
function cellFacts(cell) {
  const table = cell.closest("table");
  const row = cell.parentNode.cells[0];
  const column = table.tHead.rows[0].cells[cell.cellIndex];
  if (table.classList.contains("heat")) {
    if (cell.classList.contains("range")) return [];
    return [[words(table.tHead.rows[0].cells[0]), words(row)], ["place", String(cell.cellIndex - 1)],
      ["token", words(column)], [table.dataset.grid, words(cell)]];
  }
  const facts = [["text", words(row)], ["column", words(column)], ["token", words(cell.querySelector("b"))],
    ["id", words(cell.querySelector("i"))], ["mask", words(cell.querySelector("u"))]];
  const type = cell.querySelector("s");
  return type ? [...facts, ["type", words(type)]] : facts;
}
const factsOf = (node) => (node.matches(".chip") ? chipFacts(node) : cellFacts(node));
const telling = (node) => node instanceof Element && node.closest(".chip, [role=grid] tbody td");
function tell(event) {
  const target = telling(event.target);
  const facts = target ? factsOf(target) : [];
  if (facts.length) showTip(target, facts);
  else if (event.type === "pointerover") hideTip();
}
document.addEventListener("pointerover", tell);
document.addEventListener("focusin", tell);
document.addEventListener("focusout", hideTip);
document.addEventListener("scroll", () => { if (shown !== document.activeElement) hideTip(); }, { passive: true, capture: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

// One stop of the tab key for each list of chips and each grid; arrows move within.
function rove(lines, first) {
  for (const node of lines.flat()) node.tabIndex = -1;
  if (first) first.tabIndex = 0;
}
function step(lines, from, key, whole) {
  let y = lines.findIndex((line) => line.includes(from));
  let x = lines[y].indexOf(from);
  if (key === "ArrowRight") x += 1;
  else if (key === "ArrowLeft") x -= 1;
  else if (key === "ArrowDown") y += 1;
  else if (key === "ArrowUp") y -= 1;
  else if (key === "Home") { x = 0; y = whole ? 0 : y; }
  else if (key === "End") x = lines[y].length - 1;
  else return null;
  const line = lines[Math.max(0, Math.min(y, lines.length - 1))];
  return line[Math.max(0, Math.min(x, line.length - 1))];
}
function roving(container, find) {
  const first = find()[0];
  rove(find(), first && first[0]);
  container.addEventListener("keydown", (event) => {
    const from = telling(event.target);
    if (!from || event.altKey || event.ctrlKey || event.metaKey) return;
    const lines = find();
    const key = lines.length === 1 ? event.key.replace("Down", "Right").replace("Up", "Left") : event.key;
    const to = step(lines, from, key, lines.length === 1);
    if (!to) return;
    event.preventDefault();
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
    to.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

// Says where a grid scrolls: how many of its columns are out of sight on either side.
function scrolls(box) {
  const note = element("p", "", "more");
  const heads = [...box.querySelectorAll("thead th:not(.corner)")];
  box.after(note);
  function count() {
    const edge = box.getBoundingClientRect();
    const corner = box.querySelector(".corner");
    const left = corner ? corner.getBoundingClientRect().right : edge.left;
    const middles = heads.map((head) => head.getBoundingClientRect()).map((at) => (at.left + at.right) / 2);
    const hidden = [["left", middles.filter((x) => x < left).length], ["right", middles.filter((x) => x > edge.right).length]];
    const told = hidden.filter(([, n]) => n).map(([side, n]) => `${n} more column${n > 1 ? "s" : ""} on the ${side}`);
    note.hidden = box.scrollWidth <= box.clientWidth;
    note.textContent = ["The table scrolls sideways", ...told].join(", ");
  }
  box.addEventListener("scroll", count, { passive: true });
  redraws.push(count);
  count();
}

// Makes what is new in a part of the page answer to pointer and keys; what stood there before is forgotten.
function enliven(part) {
  hideTip();
  redraws.length = 0;
  for (const list of part.querySelectorAll("[data-chips]")) roving(list, () => [[...list.querySelectorAll(".chip")]]);
  for (const table of part.querySelectorAll("[role=grid]")) {
    const cells = (row) => [...row.cells].filter((cell) => cell.tagName === "TD" && !cell.classList.contains("range"));
    roving(table, () => [...table.tBodies[0].rows].map(cells));
  }
  part.querySelectorAll(".scroll").forEach(scrolls);
  watchAttention(part);
}

document.addEventListener("change", (event) => {
  const field = event.target.closest("fieldset[data-switch]");
  if (!field) return;
  const table = field.closest(".tools").nextElementSibling.querySelector("table");
  table.dataset[field.dataset.switch] = event.target.value;
  redraws.forEach((draw) => draw());
});
document.getElementById("theme").addEventListener("change", (event) => {
  if (event.target.value) root.dataset.theme = event.target.value;
  else delete root.dataset.theme;
  redraws.forEach((draw) => draw());
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((draw) => draw()));
