// Elements and text: no text of a model or a user is ever read as markup.

const NAMED = { " ": "␣", "\n": "\\n", "\t": "\\t", "\r": "\\r" };
const UNSEEN = /[\p{C}\p{Z}]/u;
const STACKED = /(?<=\p{M}{6})\p{M}+/gu; // marks on one letter, which would cover the lines above

// A token made visible: ␣ for a space, escapes for what is not printable, ◌ under a lone accent.
export function drawn(text) {
  const out = [...text].map((c) => NAMED[c] ?? (UNSEEN.test(c) ? escaped(c) : c)).join("")
    .replace(STACKED, (marks) => `[${[...marks].length} more marks]`);
  return /^\p{M}/u.test(out) ? `◌${out}` : out;
}

// A text to be read, in which spaces are spaces.
export function readable(text) {
  return drawn(text).replaceAll(NAMED[" "], " ");
}

function escaped(c) {
  const code = c.codePointAt(0);
  return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function button(attributes, ...children) {
  return make("button", { type: "button", class: "small", ...attributes }, ...children);
}

export function remark(...children) {
  return make("p", { class: "quiet" }, ...children);
}

// A token, or another text of a model, made visible.
export function quoted(text) {
  return make("bdi", { class: "word" }, drawn(text));
}

export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "css") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// A token of the text: lights up with every other mention of it.
export function tokenOf(explanation, t) {
  return make("bdi", { class: "token", "data-t": t }, ...spaced(explanation.tokenText(t)));
}

// A token of the vocabulary.
export function word(explanation, id) {
  return make("bdi", { class: "word" }, ...spaced(explanation.token_texts[id]));
}

export function spaced(text) {
  const shown = drawn(text);
  const spaces = shown.match(/^␣*/)[0];
  return spaces ? [make("span", { class: "space" }, spaces), shown.slice(spaces.length)] : [shown];
}

export function minus(text) {
  return text.replace("-", "−");
}

// Four figures.
export function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) return minus(value.toExponential(2));
  return minus(size >= 1000 ? value.toFixed(0) : value.toPrecision(4));
}

export function fixed(value, digits = 3) {
  return minus(value.toFixed(digits).replace(/^-(?=[0.]*$)/, ""));
}

export function signed(value) {
  const text = fixed(value, 2);
  return text.startsWith("−") ? text : `+${text}`;
}

export function percent(part) {
  if (part > 0 && part < 0.0005) return "<0.1%";
  return `${(part * 100).toFixed(1)}%`;
}

export function count(value) {
  return value.toLocaleString("en");
}

const MARKS = {
  exact: { class: "full", r: 4 },
  rounded: { class: "half", r: 3.5 },
  derived: { class: "edge", r: 3.5, rhombus: true },
  estimate: { class: "dashed", r: 3.5 },
};
export const MEANINGS = {
  exact: "exact: the model's own number", rounded: "rounded for this page", derived: "derived from exact numbers", estimate: "an estimate",
};

function markOf(kind) {
  const { r, rhombus, class: name } = MARKS[kind];
  const shape = rhombus ? draw("path", { class: name, d: "M5 0.8L9.2 5L5 9.2L0.8 5Z" }) : draw("circle", { class: name, cx: 5, cy: 5, r });
  const half = kind === "rounded" ? draw("path", { class: "full", d: "M5 1.5A3.5 3.5 0 0 0 5 8.5Z" }) : null;
  return draw("svg", { viewBox: "0 0 10 10", width: 9, height: 9, "aria-hidden": "true" }, shape, half);
}

// How sure the numbers beside it are: a mark, which the legend explains, in words for a screen reader.
export function tag(kind, how = null) {
  const words = how ? `${kind}, ${how}` : kind;
  return make("span", { class: "tag", title: words }, markOf(kind), make("span", { class: "unseen" }, ` (${words})`));
}

export function tagLegend() {
  return make("ul", { class: "tags", "aria-label": "Marks of numbers" }, Object.entries(MEANINGS).map(([kind, text]) => make("li", {}, markOf(kind), text)));
}

// A table: heads are [text, "left" | "right"], with the tag of the column's numbers; a row is a list of cells.
export function table(caption, heads, rows) {
  const side = (i) => (heads[i][1] === "right" ? "number" : null);
  const row = make("tr", {}, heads.map(([text, , kind, how], i) => (text
    ? make("th", { scope: "col", class: side(i) }, text, kind ? tag(kind, how) : null) : make("td", {}))));
  return make(
    "table", {},
    make("caption", { class: "unseen" }, caption),
    heads.some(([text]) => text) ? make("thead", {}, row) : null,
    make("tbody", {}, rows.map((row) => make("tr", row.attributes ?? {},
      (row.cells ?? row).map((cell, i) => make("td", { class: side(i) }, cell))))),
  );
}

export function scrolling(name, ...children) {
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, ...children);
}

export function bar(part, other = null) {
  return make("span", { class: "bar", "aria-hidden": "true" },
    other === null ? null : make("i", { class: "ghost", css: { width: `${100 * other}%` } }),
    make("i", { css: { width: `${Math.max(0, Math.min(100, 100 * part))}%` } }));
}

// Marks the chosen row of a scrolling table, and scrolls to it.
export function choose(box, rows, index) {
  rows.forEach((row, i) => row.classList.toggle("chosen", i === index));
  const { offsetTop: top, offsetHeight: height } = rows[index];
  if (top - height < box.scrollTop) box.scrollTop = top - height;
  if (top + height > box.scrollTop + box.clientHeight) box.scrollTop = top + height - box.clientHeight;
}

// A part of an address; what is not percent-encoded as it should be is taken as it is.
export function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

let made = 0;

// An id that no other element has.
export function freshId(name) {
  return `${name}-${made++}`;
}

export function slider(text, attributes, changed) {
  const id = freshId("slider");
  const shown = make("output", { for: id });
  const input = make("input", { type: "range", id, ...attributes, input: () => changed(Number(input.value)) });
  return { input, shown, whole: make("div", { class: "slider" }, make("label", { for: id }, text), input, shown) };
}

export function select(text, changed) {
  const id = freshId("select");
  const input = make("select", { id, change: () => changed(Number(input.value)) });
  return { input, whole: make("div", { class: "select" }, make("label", { for: id }, text), input) };
}

// Fills a select, and keeps it from being rebuilt when nothing changed.
export function options(input, texts, value) {
  const key = texts.join("\n");
  if (input.dataset.key !== key) {
    input.replaceChildren(...texts.map((text, i) => make("option", { value: i }, text)));
    input.dataset.key = key;
  }
  input.value = String(value);
}

// One stop of the Tab key for a row of buttons; arrow keys move inside it.
export function roving(container) {
  container.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...container.querySelectorAll("button")];
    const now = buttons.indexOf(document.activeElement);
    const next = { Home: 0, End: buttons.length - 1 }[event.key] ?? (step ? now + step : -1);
    if (now < 0 || !buttons[next]) return;
    event.preventDefault();
    buttons[now].tabIndex = -1;
    buttons[next].tabIndex = 0;
    buttons[next].focus();
  });
}

export const still = matchMedia("(prefers-reduced-motion: reduce)");

// The bytes of a page's block of data: deflated, in base64.
export async function inflated(base64) {
  const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}
