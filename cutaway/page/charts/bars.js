// Bars, or dots, from left to right: a row a group, a bar a series, each with its number and its interval.

import { draw, freshId, make, stepped } from "../elements.js";
import { figure, fitted, legendOf } from "./figure.js";
import { colourOf, dashOf, mark, swatch } from "./marks.js";
import { brief, domain, scale, shortened, textWidth, ticks, titled } from "./scales.js";

const NARROW = 480;
const NAME = "13px ";

export function bars(spec) {
  const readout = make("p.readout", { id: freshId("readout"), "aria-live": "polite" });
  const box = make("div.plot", {
    tabindex: "0", role: "application", "aria-roledescription": "chart, arrow keys move",
    label: `${titled(spec.axis)} by ${spec.group}`, "aria-describedby": readout.id,
  });
  const stops = spec.groups.flatMap((_, g) => spec.series.map((_, s) => [g, s]));
  const view = { at: null, rows: [] };
  const legend = spec.series.length > 1
    ? legendOf(spec.series.map((one, i) => [swatch({ ...one, points: true, line: false }, i, spec), one.name])) : null;
  const go = (to) => {
    view.at = to;
    box.querySelector(".under")?.remove();
    readout.textContent = to === null ? "" : described(spec, ...stops[to]);
    if (to === null || !view.rows[to]) return;
    const { y, height } = view.rows[to];
    box.firstChild.prepend(draw("rect.under", { x: 0, width: box.clientWidth, y, height }));
  };
  box.addEventListener("pointermove", (event) => {
    const y = event.clientY - box.getBoundingClientRect().top;
    const found = view.rows.findIndex((row) => y >= row.y && y < row.y + row.height);
    if (found !== view.at) go(found < 0 ? null : found);
  });
  box.addEventListener("pointerleave", () => go(null));
  box.addEventListener("blur", () => go(null));
  box.addEventListener("focus", () => box.matches(":focus-visible") && go(0));
  box.addEventListener("keydown", (event) => {
    const now = view.at ?? 0;
    const to = stepped(event, now, stops.length - 1, { ArrowDown: now + 1, ArrowUp: now - 1 });
    if (to !== null) go(to);
  });
  fitted(box, (width) => {
    const made = drawing(spec, width);
    view.rows = made.rows;
    box.replaceChildren(made.svg);
    if (view.at !== null) go(view.at);
  });
  return figure(spec, { legend, drawing: box, readout, data: () => dataOf(spec) });
}

function drawing(spec, width) {
  const narrow = width < NARROW;
  const thick = spec.series.length > 1 ? 15 : 20;
  const longest = Math.ceil(Math.max(...spec.groups.map((name) => textWidth(name, NAME))));
  const left = narrow ? 0 : Math.min(longest + 14, Math.round(width * 0.4));
  const room = Math.ceil(Math.max(...spec.series.flatMap((one) => one.values.map((value) => textWidth(brief(value)))))) + 14;
  const values = spec.series.flatMap((one) => [...one.values, ...(one.low ?? []), ...(one.high ?? [])]);
  const ends = domain(spec.dots || spec.axis.log ? spec.axis : { low: Math.min(0, ...values.filter((one) => one !== null)), ...present(spec.axis) }, [...values, ...(spec.marks ?? []).map(([, value]) => value)]);
  const x = scale(ends, [left + 6, width - room], spec.axis.log);
  const [top, above, gap] = [spec.marks?.length ? 42 : 26, narrow ? 20 : 0, 10];
  const each = above + thick * spec.series.length + gap;
  const floor = top + each * spec.groups.length;
  const height = floor + 24;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    draw("text.axis-title", { x: left + (narrow ? 0 : 6), y: 13 }, shortened(titled(spec.axis), width - left)));
  for (const [value, text] of ticks(...ends, Math.floor((width - left - room) / 70), spec.axis.log)) {
    svg.append(draw("line.grid", { x1: x(value), x2: x(value), y1: top, y2: floor }),
      draw("text.tick-text", { x: x(value), y: floor + 16, "text-anchor": value === ends[0] && narrow ? "start" : "middle" }, text));
  }
  for (const [name, value] of spec.marks ?? []) {
    svg.append(draw("line.reference", { x1: x(value), x2: x(value), y1: top, y2: floor }),
      draw("text.tick-text.halo", { x: x(value) + 4, y: top - 4 }, name));
  }
  const rows = [];
  spec.groups.forEach((name, g) => {
    const y = top + each * g + gap / 2;
    const middle = y + (narrow ? 12 : (thick * spec.series.length) / 2 + 4);
    svg.append(draw("text.group", { x: narrow ? 0 : left - 8, y: middle, "text-anchor": narrow ? "start" : "end" },
      shortened(name, narrow ? width : left - 8, NAME)));
    spec.series.forEach((series, s) => {
      const from = y + above + thick * s;
      rows.push({ y: from, height: thick });
      svg.append(...one(spec, series, s, g, x, from, thick, ends));
    });
  });
  return { svg, rows };
}

const present = (axis) => Object.fromEntries(Object.entries(axis).filter(([, value]) => value !== null));

function one(spec, series, s, g, x, y, thick, ends) {
  const value = series.values[g];
  const middle = y + thick / 2;
  if (value === null) return [draw("text.tick-text", { x: x(ends[0]) + 4, y: middle + 4 }, "–")];
  const colour = colourOf({ color: series.color ?? spec.colors?.[g] }, s, spec);
  const parts = [];
  const zero = spec.axis.log ? ends[0] : Math.max(ends[0], Math.min(ends[1], 0));
  if (!spec.dots) {
    const [a, b] = [x(zero), x(value)].sort((p, q) => p - q);
    parts.push(draw("rect.bar-mark", { x: a, width: Math.max(1, b - a), y: y + 2, height: thick - 4, rx: 1 }));
  }
  let edge = Math.max(x(value), x(zero)) + 1;
  const [low, high] = [series.low?.[g] ?? null, series.high?.[g] ?? null];
  if (low !== null && high !== null) {
    parts.push(draw("path", {
      class: spec.dots ? "whisker" : "whisker over", d: `M${x(low)} ${middle}H${x(high)}M${x(low)} ${middle - 4}v8M${x(high)} ${middle - 4}v8`,
      "stroke-dasharray": dashOf(series, s),
    }));
    edge = Math.max(edge, x(high));
  }
  if (spec.dots) {
    parts.push(mark(x(value), middle, { color: series.color ?? spec.colors?.[g] }, s, spec));
    edge = Math.max(edge, x(value) + 4);
  }
  parts.forEach((part) => part.style.setProperty("--c", colour));
  parts.push(draw("text.value", { x: edge + 6, y: middle + 4 }, brief(value)));
  return parts;
}

function described(spec, g, s) {
  const series = spec.series[s];
  const around = series.low && series.low[g] !== null ? ` (${brief(series.low[g])} to ${brief(series.high[g])})` : "";
  const name = spec.series.length > 1 ? `${spec.groups[g]}, ${series.name}` : spec.groups[g];
  return `${name}: ${spec.axis.title} ${brief(series.values[g])}${around}`;
}

function dataOf(spec) {
  const columns = [spec.group, ...spec.series.flatMap(({ name, low }) => [name || titled(spec.axis), ...(low ? [`${name} low`.trim(), `${name} high`.trim()] : [])])];
  const rows = spec.groups.map((name, g) => [name, ...spec.series.flatMap(({ values, low, high }) => [values[g], ...(low ? [low[g], high[g]] : [])])]);
  return { columns, rows };
}
