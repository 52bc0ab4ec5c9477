// Who wrote what the model reads: each character by colour and by pattern, so that neither is needed alone.

import { button, make, readable } from "../elements.js";

export const SOURCES = ["template", "system", "user", "assistant", "tool", "unknown"];

export function legend() {
  return make("ul.legend", SOURCES.slice(0, -1).map((name) => make("li", make("span", { class: `s s-${name}` }, "text"), name)));
}

// The conversation as text. Lines that the template did not write can be chosen: choose({source, message, line, first, last}).
export function conversation({ runs, tokens }, chosen, choose) {
  const lines = linesOf(runs);
  const offsets = tokenOffsets(tokens);
  const parts = lines.map((one) => {
    const attributes = { class: `s s-${one.source}`, title: one.source };
    if (one.source === "template" || !one.text.trim()) return make("span", attributes, readable(one.text));
    const span = { ...one, ...within(offsets, one) };
    return button(readable(one.text), () => choose(span), { ...attributes, "aria-pressed": span.first === chosen?.first && span.last === chosen?.last,
      label: `${one.source}: ${one.text.trim().slice(0, 200)}` });
  });
  return make("div.conversation", { role: "group", label: "What the model reads" }, parts);
}

// The last line that a tool wrote, else the user: where an injected one is.
export function suspect({ runs, tokens }) {
  const lines = linesOf(runs).filter((one) => one.text.trim());
  const line = lines.findLast((one) => one.source === "tool") ?? lines.findLast((one) => one.source === "user");
  return line ? { ...line, ...within(tokenOffsets(tokens), line) } : null;
}

// Runs cut at their line breaks: {text, source, message, start, stop} in bytes of the whole text.
function linesOf(runs) {
  let at = 0;
  return runs.flatMap(({ text, source, message }) => text.split(/(?<=\n)/).map((line) => {
    const start = at;
    at += bytes(line);
    return { text: line, source, message, start, stop: at };
  }));
}

function tokenOffsets(tokens) {
  let at = 0;
  return tokens.map((token) => {
    const start = at;
    at += token.bytes;
    return [start, at];
  });
}

// The tokens that have a byte of the line, first to last.
function within(offsets, { start, stop, text }) {
  const end = start + bytes(text.trimEnd());
  const inside = offsets.map(([from, to], i) => (from < Math.min(end, stop) && to > start ? i : -1)).filter((i) => i >= 0);
  return { first: inside[0] ?? 0, last: inside.at(-1) ?? 0 };
}

const bytes = (text) => new TextEncoder().encode(text).length;
