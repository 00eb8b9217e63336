// Behind page.js in one script, whose functions it uses.
const few = (weight) => (weight >= 0.001 || weight === 0 ? weight.toFixed(3) : weight.toExponential(0));

async function unpack(layer, bits) {
  const bytes = Uint8Array.from(atob(layer.data), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = await new Response(stream).arrayBuffer();
  const whole = bits === 16 ? new Uint16Array(raw) : new Uint8Array(raw);
  const most = bits === 16 ? 65535 : 255;
  return Float32Array.from(whole, (value) => (value / most) ** 2);
}

// A layer is unpacked when it is first looked at: a page of 512 tokens holds a hundred maps of a quarter million weights.
function attention(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const canvas = figure.querySelector("canvas");
  const readout = figure.querySelector(".readout");
  const [layerBox, headBox] = figure.querySelectorAll("select");
  const unpacked = new Map();
  let map = null, height = 0, width = 0, at = null, frame = null;

  const spell = (place, count) => (count === data.tokens.length ? data.tokens[place] : String(place));
  async function choose() {
    const layer = data.layers[layerBox.value];
    const wanted = `${layerBox.value} ${headBox.value}`;
    if (!unpacked.has(layer)) unpacked.set(layer, unpack(layer, data.bits));
    const weights = await unpacked.get(layer);
    if (wanted !== `${layerBox.value} ${headBox.value}`) return;
    const [heads, rows, columns] = layer.shape;
    const size = rows * columns;
    if (Number(headBox.value) >= 0) map = weights.subarray(headBox.value * size, (Number(headBox.value) + 1) * size);
    else {
      map = new Float32Array(size);
      for (let h = 0; h < heads; h += 1) for (let i = 0; i < size; i += 1) map[i] += weights[h * size + i] / heads;
    }
    [height, width] = [rows, columns];
    draw();
    if (at) read();
    else readout.lastElementChild.textContent = `The largest weight is ${few(map.reduce((a, b) => Math.max(a, b), 0))}.`;
    figure.dataset.drawn = wanted;
  }
  function draw() {
    if (!map) return;
    const labelled = Math.max(width, height) <= 40;
    const [left, top, right] = labelled ? [92, 78, 36] : [0, 0, 0];
    const room = Math.max(120, Math.min(figure.clientWidth, 560) - left - right);
    const cell = labelled ? Math.max(7, Math.min(26, Math.floor(room / width))) : room / width;
    const ratio = devicePixelRatio || 1;
    const [w, h] = [left + cell * width + right, top + cell * height];
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
    canvas.style.width = `${w}px`;
    canvas.style.height = `${h}px`;
    frame = { left, top, cell };
    const style = getComputedStyle(figure);
    const [full, none] = [style.color, style.backgroundColor].map((text) => text.match(/[\d.]+/g).slice(0, 3).map(Number));
    const most = map.reduce((a, b) => Math.max(a, b), 1e-9);
    const picture = new ImageData(width, height);
    for (let i = 0; i < map.length; i += 1) {
      const share = Math.sqrt(map[i] / most);
      for (let c = 0; c < 3; c += 1) picture.data[4 * i + c] = none[c] + share * (full[c] - none[c]);
      picture.data[4 * i + 3] = 255;
    }
    const small = document.createElement("canvas");
    [small.width, small.height] = [width, height];
    small.getContext("2d").putImageData(picture, 0, 0);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.imageSmoothingEnabled = cell < 1;
    pen.drawImage(small, left, top, cell * width, cell * height);
    const ink = getComputedStyle(readout).color;
    pen.strokeStyle = ink;
    pen.globalAlpha = 0.35;
    pen.strokeRect(left + 0.5, top + 0.5, cell * width - 1, cell * height - 1);
    pen.globalAlpha = 1;
    if (labelled) label(pen, ink, left, top, cell);
    if (at) {
      pen.lineWidth = 1.5;
      pen.strokeRect(left, top + at[0] * cell, cell * width, Math.max(cell, 2));
      pen.strokeRect(left + at[1] * cell, top + at[0] * cell, Math.max(cell, 3), Math.max(cell, 3));
    }
  }
  function label(pen, ink, left, top, cell) {
    const cut = (text) => (text.length > 11 ? `${text.slice(0, 10)}…` : text);
    pen.fillStyle = ink;
    pen.font = `${Math.min(12, Math.max(9, cell))}px ui-monospace, monospace`;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (let y = 0; y < height; y += 1) pen.fillText(cut(spell(y, height)), left - 6, top + (y + 0.5) * cell, left - 8);
    pen.textAlign = "left";
    for (let x = 0; x < width; x += 1) {
      pen.save();
      pen.translate(left + (x + 0.5) * cell, top - 5);
      pen.rotate(-Math.PI / 3);
      pen.fillText(cut(spell(x, width)), 0, 0, top);
      pen.restore();
    }
  }
  function read() {
    const [y, x] = at;
    const line = map.subarray(y * width, (y + 1) * width);
    const head = headBox.selectedOptions[0].textContent;
    const text = element("p");
    text.append(`${layerBox.selectedOptions[0].textContent}, ${Number(headBox.value) < 0 ? head : `head ${head}`}: `,
      isolated("b", spell(y, height)), ` (${y}) attends to `, isolated("b", spell(x, width)), ` (${x}) with `, element("b", few(line[x])));
    const table = element("table", undefined, "bars");
    const body = table.createTBody();
    const order = [...line.keys()].sort((a, b) => line[b] - line[a]).slice(0, 8);
    for (const key of order) {
      const row = body.insertRow();
      const name = isolated("th", spell(key, width));
      name.scope = "row";
      row.append(name, element("td", few(line[key]), "num"), bar(line[key]));
    }
    readout.replaceChildren(text, element("p", "It attends most to:", "note"), table);
  }
  function bar(share) {
    const space = "http://www.w3.org/2000/svg";
    const drawing = document.createElementNS(space, "svg");
    drawing.setAttribute("class", "bar");
    drawing.setAttribute("aria-hidden", "true");
    for (const [name, size] of [["track", 100], ["fill", 100 * share]]) {
      const rect = document.createElementNS(space, "rect");
      rect.setAttribute("class", name);
      rect.setAttribute("width", `${size}%`);
      rect.setAttribute("height", "100%");
      drawing.append(rect);
    }
    const cell = element("td", undefined, "chart");
    cell.append(drawing);
    return cell;
  }
  function point(y, x) {
    if (!map) return;
    at = [Math.max(0, Math.min(y, height - 1)), Math.max(0, Math.min(x, width - 1))];
    draw();
    read();
  }
  canvas.addEventListener("pointermove", (event) => {
    if (!frame) return;
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - frame.left, event.clientY - box.top - frame.top].map((v) => Math.floor(v / frame.cell));
    if (x >= 0 && y >= 0 && x < width && y < height && !(at && at[0] === y && at[1] === x)) point(y, x);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    point(at ? at[0] + move[0] : 0, at ? at[1] + move[1] : 0);
  });
  layerBox.addEventListener("change", () => {
    const heads = data.layers[layerBox.value].shape[0];
    const old = headBox.value;
    headBox.replaceChildren(headBox.options[0], ...Array.from({ length: heads }, (_, i) => new Option(String(i + 1), String(i))));
    headBox.value = Number(old) < heads ? old : "-1";
    choose();
  });
  headBox.addEventListener("change", choose);
  redraws.push(draw);
  return choose;
}

let figures = new Map();
const watch = new IntersectionObserver((seen) => {
  for (const entry of seen) {
    if (!entry.isIntersecting) continue;
    watch.unobserve(entry.target);
    figures.get(entry.target)();
  }
}, { rootMargin: "400px" });
const idle = window.requestIdleCallback || ((work) => setTimeout(work, 200));
function watchAttention(part) {
  watch.disconnect();
  const own = figures = new Map([...part.querySelectorAll("[data-attention]")].map((figure) => [figure, attention(figure)]));
  own.forEach((_, figure) => watch.observe(figure));
  // So that a printed page has them all: the browser gives no time for it when printing starts.
  const later = [...own.keys()];
  idle(async function next() {
    const figure = later.shift();
    if (!figure || own !== figures) return;
    if (!figure.dataset.drawn) await own.get(figure)();
    idle(next);
  });
}
// What stands in a closed part has no width; it is drawn again when the part is opened.
document.addEventListener("toggle", () => redraws.forEach((draw) => draw()), true);
let wait = 0;
addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(() => redraws.forEach((draw) => draw()), 150); });
addEventListener("beforeprint", () => {
  for (const box of document.querySelectorAll("details.window, #config details")) box.open = true;
});
enliven(document);
