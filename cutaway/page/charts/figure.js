// What every chart has: its title, a legend, the drawing, a line that says what is under the cursor, its data as a
// table and as CSV.

import { button, count, freshId, make, remark, table } from "../elements.js";
import { png, saveFile, svgText } from "./picture.js";
import { brief } from "./scales.js";

const ROWS = 500; // of the table beside a chart; CSV has all

// drawing: an element, or null for a chart that is its table. data: () -> {columns, rows}.
export function figure(spec, { legend = null, drawing = null, readout = null, data }) {
  const title = freshId("chart");
  const listing = make("div.scroll", { tabindex: "0", role: "region", "aria-labelledby": title, hidden: drawing !== null });
  const show = () => {
    if (!listing.hidden && !listing.childElementCount) listing.append(...rowsOf(spec.title, data()));
  };
  show();
  const toggle = drawing === null ? null : button("Table", () => {
    listing.hidden = !listing.hidden;
    toggle.setAttribute("aria-expanded", !listing.hidden);
    show();
  }, { "aria-expanded": "false" });
  return make("figure.chart", { "aria-labelledby": title },
    make("figcaption", make("h3", { id: title }, spec.title), spec.note ? remark(spec.note) : null, legend),
    drawing, drawing ? null : listing, make("div.tools", toggle, copying("Copy CSV", () => csv(data())), ...pictures(spec.title, drawing), readout), drawing ? listing : null);
}

// What saves the drawing as a file: a map of many cells is a canvas, which has no SVG.
function pictures(title, drawing) {
  const name = (kind) => `${title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}.${kind}`;
  const vector = () => drawing.querySelector("svg");
  return drawing === null ? [] : [
    drawing.classList.contains("plot") ? button("SVG", () => saveFile(name("svg"), "image/svg+xml", svgText(title, vector())), { label: `Save ${title} as SVG` }) : null,
    button("PNG", async () => saveFile(name("png"), "image/png", await png(title, vector(), drawing.querySelector("canvas"))), { label: `Save ${title} as PNG` }),
  ];
}

function rowsOf(title, { columns, rows }) {
  const heads = columns.map((name, i) => (rows.some((row) => typeof row[i] === "number") ? [name] : name));
  const left = rows.length - ROWS;
  return [table(title, heads, rows.slice(0, ROWS).map((row) => row.map(brief))), left > 0 ? remark(`${count(left)} rows more: Copy CSV has them all`) : ""];
}

// Fields with a comma, a quote or a line break are quoted (RFC 4180).
export function csv({ columns, rows }) {
  const field = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
}

// A page from a file may have no clipboard of its own: then what is selected is copied.
export async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea.unseen", { "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    const before = document.activeElement;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    return done;
  }
}

// A button that copies a text, and says whether it did.
export function copying(name, text) {
  const made = button(name, async () => {
    made.textContent = (await toClipboard(text())) ? "Copied" : "The browser refused";
    setTimeout(() => { made.textContent = name; }, 2500);
  });
  return made;
}

// A keyed list of series: colour, shape and dash, as they are drawn.
export function legendOf(entries) {
  return make("ul.legend", entries.map(([swatch, name]) => make("li", swatch, name)));
}

// Calls `work` with the element's width now, whenever it changes, and when the theme does.
export function fitted(element, work) {
  let width = 0;
  new ResizeObserver(() => {
    if (!element.clientWidth || element.clientWidth === width) return;
    width = element.clientWidth;
    work(width);
  }).observe(element);
}
