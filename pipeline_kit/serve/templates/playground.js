// Behind the script of the explain page, whose functions it uses. What the page shows is the answer of /explain
// to one request; the form, the link and the code to copy are that request in other forms.
const { pipelines, first, key } = JSON.parse(document.getElementById("facts").textContent);
const [form, view, failed, said, code] = ["ask", "view", "failed", "said", "code"].map((id) => document.getElementById(id));
const nav = document.querySelector("nav");
const examples = document.getElementById("examples");
const base = location.pathname.replace(/(\/pipelines\/[^/]+)?\/playground$/, "");
const names = Object.keys(pipelines);
const SAME = "the same, other options";
const LONGEST_LINK = 30000;
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
// As JSON, YAML, Python and a terminal all read it: without the characters that cannot be seen.
const json = (value) => JSON.stringify(value ?? null).replace(/[\u007f-\u009f\u2028\u2029\ufeff]/g,
  (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);

// Fields and parameters: what a box holds is text; a list has a line, or a word between commas, for each of its items.
const isList = (field) => field.endsWith("s");
function fieldText(value) {
  if (typeof value === "string") return value;
  return Array.isArray(value) && value.every((item) => typeof item === "string") ? value.join("\n") : json(value);
}
function fieldValue(field, text) {
  if (!isList(field)) return text;
  const own = parsed(text);
  return Array.isArray(own) ? own : text.split("\n").filter((line) => line.trim());
}
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
function optionText(value) {
  if (typeof value === "string") return value;
  return Array.isArray(value) && value.every((item) => typeof item === "string") && value.length ? value.join(", ") : json(value);
}
function optionValue(type, text) {
  if (type.startsWith("list[str]") && !text.trim().startsWith("[")) return text.split(",").map((word) => word.trim()).filter(Boolean);
  return type.startsWith("str") && text !== "null" ? text : parsed(text);
}

// The form.
function addExample(given = {}) {
  const { takes } = pipelines[form.elements.model.value];
  const values = isObject(given) ? given : { [takes[0].replace("?", "")]: given };
  const box = element("fieldset", undefined, "example");
  const remove = element("button", "Remove");
  remove.type = "button";
  remove.addEventListener("click", () => {
    const next = box.nextElementSibling || box.previousElementSibling;
    box.remove();
    number();
    next.querySelector("textarea").focus();
    soon(0);
  });
  box.append(element("legend"), remove);
  for (const taken of takes) {
    const name = taken.replace("?", "");
    const optional = taken !== name;
    const label = element("label", `${name}${isList(name) ? ", one a line" : ""}${optional ? " (optional)" : ""}`);
    const area = element("textarea");
    area.name = name;
    area.dir = "auto";
    area.rows = 2;
    area.dataset.optional = optional ? "yes" : "";
    area.value = values[name] === undefined ? "" : fieldText(values[name]);
    label.append(area);
    box.append(label);
  }
  examples.append(box);
  number();
  return box;
}
function number() {
  [...examples.children].forEach((box, place) => {
    box.firstElementChild.textContent = examples.children.length > 1 ? `example ${place}` : "example";
    box.querySelector("button").hidden = examples.children.length === 1;
  });
}
function exampleOf(box) {
  const found = {};
  const areas = [...box.querySelectorAll("textarea")];
  for (const area of areas) if (area.value || !area.dataset.optional) found[area.name] = fieldValue(area.name, area.value);
  const [only] = Object.keys(found);
  if (only === undefined) return "";
  return Object.keys(found).length === 1 && only === "text" ? found.text : found;
}
function fillParameters(side, pipeline, values) {
  const part = form.querySelector(`[data-parameters="${side}"]`);
  const box = element("div", undefined, "options-of");
  for (const { name, type, value, help, choices } of pipeline ? pipeline.parameters : []) {
    const closed = type.startsWith("bool") ? ["true", "false", ...(type.includes("null") ? ["null"] : [])] : choices;
    const input = element(closed.length ? "select" : "input");
    const own = value === undefined ? "" : optionText(value);
    if (closed.length) input.append(new Option(`${own} (its own)`, ""), ...closed.map((word) => new Option(word, word)));
    else [input.placeholder, input.spellcheck, input.autocomplete] = [own, false, "off"];
    input.name = name;
    input.dataset.type = type;
    input.value = values[name] === undefined ? "" : optionText(values[name]);
    const label = element("label", name);
    label.append(input, element("small", help));
    box.append(label);
  }
  const mark = side === "other" ? " of the second pipeline" : "";
  part.hidden = !pipeline || !box.children.length;
  part.replaceChildren(element("summary", `parameters${mark}`), box);
  part.open = part.open || Object.keys(values).length > 0;
}
function parametersOf(side) {
  const found = {};
  for (const input of form.querySelectorAll(`[data-parameters="${side}"] :is(input, select)`)) {
    if (input.value !== "") found[input.name] = optionValue(input.dataset.type, input.value);
  }
  return found;
}
// A pipeline can be compared if it needs no field that the chosen one does not take.
function offerOthers(chosen) {
  const { model, other } = form.elements;
  const known = pipelines[model.value].takes.map((field) => field.replace("?", ""));
  const fits = (name) => pipelines[name].takes.every((field) => field.endsWith("?") || known.includes(field));
  const rest = names.filter((name) => name !== model.value && fits(name)).map((name) => new Option(name, name));
  const same = pipelines[model.value].parameters.length ? [new Option(SAME, model.value)] : [];
  other.replaceChildren(new Option("nothing", ""), ...rest, ...same);
  other.value = [...other.options].some((option) => option.value === chosen) ? chosen : "";
}
function fill(body) {
  const { model, attentions } = form.elements;
  model.value = names.includes(body.model) ? body.model : first;
  const other = isObject(body.compare) ? body.compare : null;
  offerOthers(other ? other.model ?? model.value : "");
  attentions.checked = body.attentions === true;
  for (const box of form.querySelectorAll("[name=views]")) box.checked = Array.isArray(body.views) && body.views.includes(box.value);
  examples.replaceChildren();
  const given = body.inputs ?? pipelines[model.value].example;
  for (const example of Array.isArray(given) && given.length ? given : [given]) addExample(example);
  fillParameters("model", pipelines[model.value], isObject(body.parameters) ? body.parameters : {});
  fillParameters("other", pipelines[form.elements.other.value], other && isObject(other.parameters) ? other.parameters : {});
}
function request() {
  const { model, other, attentions } = form.elements;
  const given = [...examples.children].map(exampleOf);
  const side = (name, part) => ({ model: name, ...(Object.keys(part).length ? { parameters: part } : {}) });
  const views = [...form.querySelectorAll("[name=views]:checked")].map((box) => box.value);
  return {
    inputs: given.length === 1 ? given[0] : given,
    ...side(model.value, parametersOf("model")),
    ...(attentions.checked ? { attentions: true } : {}),
    ...(views.length ? { views } : {}),
    ...(other.value ? { compare: side(other.value, parametersOf("other")) } : {}),
  };
}

// Asking: a request replaces the one before it, whose answer nobody waits for any more.
let latest = null, timer = 0;
function soon(wait) {
  clearTimeout(timer);
  timer = setTimeout(run, wait);
}
async function run() {
  clearTimeout(timer);
  if (latest) latest.abort();
  const own = latest = new AbortController();
  const body = request();
  const link = `#${encodeURIComponent(JSON.stringify(body))}`;
  history.replaceState(null, "", link.length > LONGEST_LINK ? "#" : link);
  write(body);
  said.textContent = "Running …";
  const start = performance.now();
  try {
    const answer = await fetch(`${base}/explain`, {
      method: "POST", signal: own.signal, headers: { "content-type": "application/json" }, body: JSON.stringify({ ...body, format: "html" }),
    });
    const text = await answer.text();
    if (own !== latest) return;
    latest = null;
    if (answer.ok) {
      show(text);
      fail("");
      said.textContent = `Answered in ${Math.round(performance.now() - start)} ms.`;
      return;
    }
    const { message, param } = (parsed(text) || {}).error || {};
    const wait = Number(answer.headers.get("retry-after"));
    if (wait) soon(1000 * wait);
    fail(`${message || `the server answered ${answer.status}`}${param ? ` (${param})` : ""}${wait ? `; it is asked again in ${wait} s` : ""}`);
  } catch (error) {
    if (own !== latest) return;
    latest = null;
    fail(`the server cannot be reached: ${error.message}`);
  }
}
function fail(message) {
  failed.replaceChildren(...(message ? ["✕ ", element("bdi", message)] : []));
  failed.hidden = !message;
  view.toggleAttribute("data-old", Boolean(message));
  if (message) said.textContent = view.children.length ? "What is below is the answer before." : "";
}

// The answer is the page that explain writes: its parts are placed here, the rows with their tokens first, since they
// change with each key; what was opened or chosen stays so.
function show(text) {
  const page = new DOMParser().parseFromString(text, "text/html");
  const before = states();
  document.body.classList.toggle("two", page.body.classList.contains("two"));
  page.getElementById("results").after(page.getElementById("rows"));
  const links = [...page.querySelectorAll("nav a")];
  const first = links.findIndex((link) => link.hash.startsWith("#row-"));
  nav.replaceChildren(links[0], ...links.slice(first, -1), ...links.slice(1, first), links.at(-1));
  nav.hidden = false;
  view.replaceChildren(...page.querySelector("main").childNodes);
  enliven(view);
  for (const [name, [node, state]] of states()) {
    const old = before.get(name);
    if (old === undefined || old[1] === state) continue;
    if (node.matches("details")) node.open = old[1];
    else if (node.matches(".scroll")) node.scrollLeft = old[1];
    else if (node.matches("select") && old[1] < node.options.length) node.selectedIndex = old[1];
    else if (node.matches("input")) node.checked = old[1];
    if (node.matches("select, input:checked")) node.dispatchEvent(new Event("change", { bubbles: true }));
  }
}
function states() {
  const counts = new Map(), found = new Map();
  for (const node of view.querySelectorAll("details, select, input[type=radio], .scroll")) {
    const part = `${node.closest("section, article").id} ${node.tagName}`;
    counts.set(part, (counts.get(part) || 0) + 1);
    const state = node.open ?? node.checked ?? node.selectedIndex ?? node.scrollLeft;
    found.set(`${part} ${counts.get(part)}`, [node, state]);
  }
  return found;
}

// The request elsewhere.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const LITERALS = new Map([[true, "True"], [false, "False"], [null, "None"]]);
function python(value) {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (isObject(value)) return `{${Object.entries(value).map(([name, item]) => `${json(name)}: ${python(item)}`).join(", ")}}`;
  return LITERALS.get(value) ?? json(value);
}
function yaml(value, indent = "") {
  return Object.entries(value).map(([name, item]) => {
    const word = /^[a-z_]\w*$/i.test(name) ? name : json(name);
    return isObject(item) && Object.keys(item).length ? `${indent}${word}:\n${yaml(item, `${indent}  `)}` : `${indent}${word}: ${json(item)}\n`;
  }).join("");
}
function configOf({ model, parameters = {} }) {
  const config = structuredClone(pipelines[model].config);
  for (const { name, path } of pipelines[model].parameters) {
    if (parameters[name] === undefined) continue;
    const words = path.split(".");
    const last = words.pop();
    words.reduce((node, word) => (node[word] = isObject(node[word]) ? node[word] : {}), config)[last] = parameters[name];
  }
  return config;
}
const WRITERS = {
  link: () => location.href,
  curl: ({ url, data }) => `curl ${quoted(url)} -H 'Content-Type: application/json'${
    key ? ' -H "Authorization: Bearer $PIPELINE_KIT_API_KEY"' : ""} -d ${quoted(json(data))}`,
  python: ({ url, data }) => `${key ? "import os\n\n" : ""}import httpx

answer = httpx.post(
    ${json(url)},
    json=${python(data)},${key ? '\n    headers={"Authorization": "Bearer " + os.environ["PIPELINE_KIT_API_KEY"]},' : ""}
)
answer.raise_for_status()
print(answer.json()["results"])`,
  yaml: ({ side, data }) => {
    const given = Array.isArray(data.inputs) ? data.inputs : [data.inputs];
    const words = given.map((example) => ` --json ${quoted(json(isObject(example) ? example : { text: example }))}`);
    const plugins = pipelines[side.model].plugins.map((plugin) => ` --plugin ${quoted(plugin)}`);
    return `# pipeline-kit run --config FILE${plugins.join("")}${words.join("")}\n${yaml(configOf(side))}`;
  },
};
function write(body) {
  const as = code.querySelector("input:checked").value;
  const sides = as === "link" || !body.compare ? [body] : [body, body.compare];
  const texts = sides.map((side) => {
    const path = names.length > 1 ? `/pipelines/${encodeURIComponent(side.model)}` : "";
    const data = { inputs: body.inputs, ...(side.parameters ? { parameters: side.parameters } : {}) };
    return WRITERS[as]({ side, data, url: `${location.origin}${base}${path}/run` });
  });
  const long = as === "link" && !location.hash;
  code.querySelector("pre").textContent = long ? "The texts are too long for a link." : texts.join(as === "yaml" ? "---\n" : "\n\n");
  document.getElementById("copied").textContent = "";
}
async function copy() {
  const pre = code.querySelector("pre");
  getSelection().selectAllChildren(pre);
  let done = "Copied.";
  try {
    await navigator.clipboard.writeText(pre.textContent);
  } catch { // no permission, or a page without https
    done = "It is selected: press Ctrl+C.";
  }
  document.getElementById("copied").textContent = done;
}

// Events.
form.addEventListener("input", (event) => {
  if (event.target.name !== "model" && event.target.name !== "other") soon(event.target.matches("textarea, input:not([type=checkbox])") ? 250 : 0);
});
form.addEventListener("change", ({ target }) => {
  const { model, other } = form.elements;
  if (target === model) {
    const { inputs, parameters, ...rest } = request();
    const known = examples.querySelectorAll("textarea");
    const taken = pipelines[model.value].takes.map((field) => field.replace("?", ""));
    const fits = [...known].some((area) => area.value && taken.includes(area.name));
    fill({ ...rest, ...(fits ? { inputs } : {}) });
  } else if (target === other) fillParameters("other", pipelines[other.value], {});
  else return;
  soon(0);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !latest) return;
  latest.abort();
  latest = null;
  view.toggleAttribute("data-old", true);
  said.textContent = "Stopped.";
});
document.getElementById("more").addEventListener("click", () => {
  addExample().querySelector("textarea").focus();
  soon(0);
});
document.getElementById("copy").addEventListener("click", copy);
code.addEventListener("change", () => write(request()));
// The address keeps the request, so links within the page move without it.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#']");
  if (!link) return;
  event.preventDefault();
  const target = document.getElementById(link.getAttribute("href").slice(1));
  if (!target) return;
  target.tabIndex = -1;
  target.focus({ preventScroll: true });
  target.scrollIntoView();
});
function start() {
  let body = {};
  let problem = "";
  if (location.hash.length > 1) {
    try {
      body = JSON.parse(decodeURIComponent(location.hash.slice(1)));
      if (!isObject(body)) throw new Error("it holds no request");
      if (body.model !== undefined && !names.includes(body.model)) problem = `the link is for the pipeline ${json(body.model)}; here are: ${names.join(", ")}`;
    } catch (error) {
      body = {};
      problem = `the link cannot be read: ${error.message}`;
    }
  }
  fill(body);
  if (problem) fail(problem);
  else run();
}
addEventListener("hashchange", start);
form.elements.model.append(...names.map((name) => new Option(`${name} (${pipelines[name].task})`, name)));
start();
