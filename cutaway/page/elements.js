// Elements and text: no text of a model or a user is ever read as markup.

const NAMED = { " ": "␣", "\n": "\\n", "\t": "\\t", "\r": "\\r" };
const UNSEEN = /[\p{C}\p{Z}]/u;
// What reverses or hides the text around it; joiners, without which some scripts cannot be written, are left.
const HIDDEN = /[\0-\x08\v\f\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const STACKED = /(?<=\p{M}{6})\p{M}+/gu; // marks on one letter, which would cover the lines above

// A token made visible: ␣ for a space, escapes for what is not printable, ◌ under a lone accent.
export function drawn(text) {
  const out = unstacked([...text].map((c) => NAMED[c] ?? (UNSEEN.test(c) ? escaped(c) : c)).join(""));
  return /^\p{M}/u.test(out) ? `◌${out}` : out;
}

// A text to be read, in which spaces and lines are what they are.
export function readable(text) {
  return unstacked(text.replace(HIDDEN, escaped));
}

function unstacked(text) {
  return text.replace(STACKED, (marks) => `[${[...marks].length} more marks]`);
}

function escaped(c) {
  const code = c.codePointAt(0);
  return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

// An element: "p.quiet" is its tag and its classes; then attributes (`label`: its name for a screen reader) and listeners,
// where it has any; then what is in it.
export function make(name, ...given) {
  const [tag, ...classes] = name.split(".");
  return fill(document.createElement(tag), classes, given);
}

export function draw(name, ...given) {
  const [tag, ...classes] = name.split(".");
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), classes, given);
}

function fill(element, classes, given) {
  const [first, ...rest] = given;
  const [attributes, children] = first?.constructor === Object ? [first, rest] : [{}, given];
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes)) {
    const name = key === "label" ? "aria-label" : key;
    const worded = name.startsWith("aria-"); // where true and false are written as words
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "css") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (value !== null && (worded || value !== false)) element.setAttribute(name, worded || value !== true ? value : "");
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function button(text, click, attributes = {}) {
  return make("button.small", { type: "button", click, ...attributes }, text);
}

export function remark(...children) {
  return make("p.quiet", ...children);
}

// What is read aloud when it changes.
export const LIVE = { "aria-live": "polite" };

// What went wrong, read aloud at once.
export function problem(text = "", attributes = {}) {
  return make("p.bad", { role: "alert", ...attributes }, text);
}

// What is being done, read aloud when there is time.
export function status(text = "") {
  return make("p.quiet", { role: "status" }, text);
}

// A form that the page itself answers.
export function form(name, submit, ...children) {
  return make(name, { submit: (event) => {
    event.preventDefault();
    submit(event);
  } }, ...children);
}

export function submits(text) {
  return make("button.small.primary", { type: "submit" }, text);
}

// A control, and its name before it.
export function labelled(text, input) {
  return [make("label", { for: input.id }, text), input];
}

export function field(text, input) {
  return make("p.field", labelled(text, input));
}

// Marks a link as that of what is shown.
export function current(link, is) {
  if (is) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}

// A select among [value, text]; changed(value) is called with a text.
export function picker(id, choices, value, changed) {
  return make("select", { id, change: (event) => changed(event.target.value) },
    choices.map(([one, text]) => make("option", { value: one, selected: String(one) === String(value) }, text)));
}

// A token, or another text of a model, made visible.
export function quoted(text) {
  return make("bdi.word", drawn(text));
}

// A token of the text: lights up with every other mention of it.
export function tokenOf(explanation, t) {
  return make("bdi.token", { "data-t": t }, ...spaced(explanation.tokenText(t)));
}

// A token of the vocabulary.
export function word(explanation, id) {
  return make("bdi.word", ...spaced(explanation.token_texts[id]));
}

export function spaced(text) {
  const shown = drawn(text);
  const spaces = shown.match(/^␣*/)[0];
  return spaces ? [make("span.space", spaces), shown.slice(spaces.length)] : [shown];
}

export function clamp(value, low, high) {
  return Math.max(low, Math.min(high, value));
}

// What `made` makes of 0, 1, 2 and so on.
export function times(length, made) {
  return Array.from({ length }, (_, i) => made(i));
}

export function total(values) {
  return values.reduce((sum, one) => sum + one, 0);
}

// As much of a text as fits, by the width that `measure` finds.
export function cut(text, width, measure) {
  if (measure(text) <= width) return text;
  const letters = [...text];
  while (letters.length > 1 && measure(`${letters.join("")}…`) > width) letters.pop();
  return `${letters.join("").trimEnd()}…`;
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
  return make("span.tag", { title: words }, markOf(kind), make("span.unseen", ` (${words})`));
}

export function tagLegend() {
  return make("ul.tags", { label: "Marks of numbers" }, Object.entries(MEANINGS).map(([kind, text]) => make("li", markOf(kind), text)));
}

// A table. A head is the text of a column of words, or [text, kind, how, side] of numbers, whose tag says how sure they
// are. A row is a list of cells; `marked` gives it a class, and the token that it is about.
export function table(caption, heads, rows) {
  const columns = heads.map((head) => (Array.isArray(head) ? head : [head, null, null, "left"]));
  const side = (i) => (columns[i][3] === "left" ? null : "number");
  return make("table", make("caption.unseen", caption),
    columns.some(([text]) => text) ? make("thead", make("tr", columns.map(([text, kind, how], i) => (text
      ? make("th", { scope: "col", class: side(i) }, text, kind ? tag(kind, how) : null) : make("td"))))) : null,
    make("tbody", rows.map((row) => make("tr", row.attributes ?? {},
      (row.cells ?? row).map((cell, i) => make("td", { class: side(i) }, cell))))));
}

export function marked(name, cells, token = null) {
  return { attributes: { class: name, "data-t": token }, cells };
}

export function scrolling(name, ...children) {
  return make("div.scroll", { tabindex: "0", role: "region", label: name }, ...children);
}

export function bar(part, other = null) {
  return make("span.bar", { "aria-hidden": "true" },
    other === null ? null : make("i.ghost", { css: { width: `${100 * other}%` } }),
    make("i", { css: { width: `${clamp(100 * part, 0, 100)}%` } }));
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

// A slider, and beside it its value as `write` writes it.
export function slider(text, attributes, changed, write = String) {
  const id = freshId("slider");
  const shown = make("output", { for: id });
  const input = make("input", { type: "range", id, ...attributes, input: () => {
    set(input.value);
    changed(Number(input.value));
  } });
  const set = (value) => {
    input.value = value;
    shown.textContent = write(Number(input.value));
  };
  set(input.value);
  return { input, set, whole: make("div.slider", make("label", { for: id }, text), input, shown) };
}

export function select(text, changed) {
  const id = freshId("select");
  const input = make("select", { id, change: () => changed(Number(input.value)) });
  return { input, whole: make("div.select", make("label", { for: id }, text), input) };
}

// Fills a select, and keeps it from being rebuilt when nothing changed.
export function options(input, texts, value) {
  const key = texts.join("\n");
  if (input.dataset.key !== key) {
    input.replaceChildren(...texts.map((text, i) => make("option", { value: i }, text)));
    input.dataset.key = key;
  }
  input.value = value;
}

// A choice among texts, each of which is drawn by show(its index): first the one `at`.
export function chooser(text, texts, show, at = 0) {
  const { input, whole } = select(text, show);
  options(input, texts, at);
  show(at);
  return whole;
}

// Where a key leads from `now` among things up to `last`: null where it is no key for that. `more`: other keys.
export function stepped(event, now, last, more = {}) {
  const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: last, ...more }[event.key];
  if (to === undefined || last < 0) return null;
  event.preventDefault();
  return clamp(to, 0, last);
}

// One stop of the Tab key for a row of buttons; arrow keys move inside it.
export function roving(container) {
  container.addEventListener("keydown", (event) => {
    const buttons = [...container.querySelectorAll("button")];
    const now = buttons.indexOf(document.activeElement);
    const to = now < 0 ? null : stepped(event, now, buttons.length - 1, { ArrowDown: now + 1, ArrowUp: now - 1 });
    if (to === null) return;
    buttons[now].tabIndex = -1;
    buttons[to].tabIndex = 0;
    buttons[to].focus();
  });
}

export const still = matchMedia("(prefers-reduced-motion: reduce)");
