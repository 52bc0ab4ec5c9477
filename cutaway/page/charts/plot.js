// Series over two axes: lines, and points with labels. Arrow keys move from point to point. `spec.ranges`: what draws
// intervals and marks (ranges.js), where there are any.

import { draw, freshId, make, stepped } from "../elements.js";
import { figure, fitted, legendOf } from "./figure.js";
import { colourOf, dashOf, mark, swatch } from "./marks.js";
import { brief, domain, least, most, scale, shortened, textWidth, ticks, titled } from "./scales.js";

const DENSE = 2; // points a pixel from which a line is drawn by the least and the most of each pixel
const LONGEST = 190; // pixels of the names beside the lines; longer ones are in the legend
const ROOM = 250; // pixels that the lines keep where their names are beside them

export function plot(spec) {
  const readout = make("p.readout", { id: freshId("readout"), "aria-live": "polite" });
  const box = make("div.plot", {
    tabindex: "0", role: "application", "aria-roledescription": "chart, arrow keys move",
    label: `${titled(spec.y)} against ${titled(spec.x)}`, "aria-describedby": readout.id,
    pointermove: (event) => go(nearest(spec, view.frame, stops, event, box)),
    pointerleave: () => go(null),
    blur: () => go(null),
    focus: () => box.matches(":focus-visible") && go(stops.length - 1),
    keydown(event) {
      const now = view.at ?? stops.length - 1;
      const page = Math.max(1, Math.round(stops.length / 10));
      const to = stepped(event, now, stops.length - 1, { PageUp: now + page, PageDown: now - page });
      if (to !== null) go(to);
    },
  });
  const stops = stopsOf(spec);
  const view = { at: null, frame: null };
  const listed = spec.series.map((one, i) => [one, i]).filter(([one]) => !one.faint);
  const legend = listed.length > 1 ? legendOf(listed.map(([one, i]) => [swatch(one, i, spec), one.name])) : null;
  const redraw = (width) => {
    view.frame = frameOf(spec, width);
    box.replaceChildren(drawing(spec, view.frame));
    legend?.classList.toggle("unseen", view.frame.named);
    point();
  };
  const point = () => {
    box.querySelector(".cursor")?.remove();
    if (view.at === null || !view.frame) return;
    box.firstChild.append(cursor(spec, view.frame, stops[view.at]));
    readout.textContent = described(spec, stops[view.at]);
  };
  const go = (to) => {
    if (to === view.at || !stops.length) return;
    view.at = to;
    point();
    if (to === null) readout.textContent = "";
  };
  fitted(box, redraw);
  return figure(spec, { legend, drawing: box, readout, data: () => dataOf(spec) });
}

// Where the cursor may be: at every x of the lines with the points there, or at one point of a cloud.
function stopsOf(spec) {
  const stops = new Map();
  spec.series.forEach((series, s) => series.x.forEach((x, i) => {
    if (x === null || series.y[i] === null) return;
    const key = series.line ? x : `${s}.${i}`;
    if (!stops.has(key)) stops.set(key, { x, items: [] });
    stops.get(key).items.push([s, i]);
  }));
  return [...stops.values()].sort((a, b) => a.x - b.x);
}

function frameOf(spec, width) {
  const all = (name) => spec.series.flatMap((one) => one[name] ?? []);
  const marks = (spec.marks ?? []).map(([, value]) => value);
  const across = spec.series.every((one) => one.line) ? exact(spec.x, all("x")) : spec.x; // lines go from edge to edge
  const [xs, ys] = [domain(across, all("x")), domain(spec.y, [...all("y"), ...all("low"), ...all("high"), ...marks])];
  const height = Math.round(Math.max(230, Math.min(360, width * 0.55)));
  const down = ticks(...ys, Math.max(3, Math.floor((height - 70) / 44)), spec.y.log, spec.y.whole);
  const left = Math.ceil(Math.max(24, ...down.map(([, text]) => textWidth(text)))) + 10;
  const lines = spec.series.filter((one) => !one.faint);
  const beside = Math.max(0, ...lines.map((one) => textWidth(one.name, "600 12px "))) + 18;
  const named = lines.length > 1 && lines.length < 9 && lines.every((one) => one.line)
    && beside < LONGEST && width - left - beside > ROOM;
  const right = named ? beside : 14;
  const [top, bottom] = [30, 44];
  const [fromX, toX] = [left, width - right];
  return {
    width, height, left, right, top, bottom, down, named,
    across: ticks(...xs, Math.floor((toX - fromX) / 74), spec.x.log, spec.x.whole),
    x: scale(xs, [fromX, toX], spec.x.log), y: scale(ys, [height - bottom, top], spec.y.log), xs, ys,
  };
}

function exact(axis, values) {
  const known = values.filter((one) => one !== null && (!axis.log || one > 0));
  const [low, high] = [axis.low ?? least(known), axis.high ?? most(known)];
  return known.length && low < high ? { ...axis, low, high } : axis; // of one value alone there is no width
}

function drawing(spec, frame) {
  const { width, height, left, right, bottom, x, y } = frame;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const [value, text] of frame.down) {
    svg.append(draw("line.grid", { x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      draw("text.tick-text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, text));
  }
  const floor = height - bottom;
  svg.append(draw("line.axis", { x1: left, x2: width - right, y1: floor, y2: floor }));
  for (const [value, text] of frame.across) {
    const half = textWidth(text) / 2;
    const middle = Math.max(half, Math.min(width - half, x(value)));
    svg.append(draw("line.axis", { x1: x(value), x2: x(value), y1: floor, y2: floor + 4 }),
      draw("text.tick-text", { x: middle, y: floor + 18, "text-anchor": "middle" }, text));
  }
  svg.append(draw("text.axis-title", { x: 0, y: 13 }, shortened(titled(spec.y), width)),
    draw("text.axis-title", { x: width - right, y: height - 5, "text-anchor": "end" }, shortened(titled(spec.x), width)));
  for (const one of spec.marks ?? []) svg.append(...spec.ranges.reference(one, frame));
  spec.series.forEach((series, i) => svg.append(...seriesOf(spec, series, i, frame)));
  if (frame.named) svg.append(...endNames(spec, frame));
  svg.append(...pointNames(spec, frame));
  return svg;
}

function seriesOf(spec, series, i, frame) {
  const { x, y } = frame;
  const at = series.x.map((_, k) => k).filter((k) => series.x[k] !== null && series.y[k] !== null);
  const parts = [];
  const add = (element) => {
    element.style.setProperty("--c", colourOf(series, i, spec));
    parts.push(element);
  };
  spec.ranges?.intervals(series, at, frame, path).forEach(add);
  if (series.line && at.length > 1) {
    const points = at.map((k) => [x(series.x[k]), y(series.y[k])]);
    add(draw("path", {
      class: series.faint ? "line faint" : "line", "stroke-dasharray": dashOf(series, i),
      d: path(points.length > DENSE * frame.width ? extremes(points) : points),
    }));
  }
  if (series.points || at.length === 1) for (const k of at) parts.push(mark(x(series.x[k]), y(series.y[k]), series, i, spec));
  return parts;
}

const path = (points) => points.map(([a, b], k) => `${k ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");

// Of more points than pixels: of each column of pixels the first, the lowest, the highest and the last. What is
// left out could not be seen.
function extremes(points) {
  const out = [];
  for (let from = 0; from < points.length;) {
    const column = Math.round(points[from][0]);
    let to = from;
    let [low, high] = [from, from];
    while (to < points.length && Math.round(points[to][0]) === column) {
      if (points[to][1] < points[low][1]) low = to;
      if (points[to][1] > points[high][1]) high = to;
      to++;
    }
    out.push(...[...new Set([from, low, high, to - 1])].sort((a, b) => a - b).map((k) => points[k]));
    from = to;
  }
  return out;
}

// The names of the lines at their right ends, moved apart where they would overlap.
function endNames(spec, frame) {
  const ends = spec.series.map((series, i) => {
    if (series.faint) return null;
    let k = series.x.length - 1;
    while (k >= 0 && series.y[k] === null) k--;
    return k < 0 ? null : { series, i, x: frame.x(series.x[k]), y: frame.y(series.y[k]) };
  }).filter(Boolean).sort((a, b) => a.y - b.y);
  spread(ends, 15, frame.top, frame.height - frame.bottom);
  return ends.map(({ series, i, y }) => {
    const text = draw("text.name", { x: frame.width - frame.right + 8, y: y + 4 }, series.name);
    text.style.setProperty("--c", colourOf(series, i, spec));
    return text;
  });
}

function spread(ends, gap, low, high) {
  for (let k = 1; k < ends.length; k++) ends[k].y = Math.max(ends[k].y, ends[k - 1].y + gap);
  const over = ends.length ? ends.at(-1).y - high : 0;
  if (over > 0) for (let k = ends.length - 1, most = high; k >= 0; k--, most -= gap) ends[k].y = Math.min(ends[k].y, most);
  for (const one of ends) one.y = Math.max(low, one.y);
}

// Labels of points, where there is room beside them: those that would cover another or a point are under the cursor alone.
function pointNames(spec, frame) {
  const points = spec.series.flatMap(({ x, y, labels }) => (labels ?? []).map((label, k) => ({ label, x: frame.x(x[k]), y: frame.y(y[k]), known: x[k] !== null && y[k] !== null })))
    .filter(({ known }) => known);
  const taken = points.map(({ x, y }) => [x - 5, y - 5, x + 5, y + 5]);
  const free = ([left, top, right, bottom]) => left >= frame.left && right <= frame.width
    && !taken.some((one) => one[0] < right && left < one[2] && one[1] < bottom && top < one[3]);
  return points.map(({ label, x, y }) => {
    const width = textWidth(label);
    const box = [x + 9, x - width - 9].map((from) => [from, y - 9, from + width, y + 7]).find(free);
    if (!box) return null;
    taken.push(box);
    return draw("text.label.halo", { x: box[0], y: y + 4 }, label);
  }).filter(Boolean);
}

function nearest(spec, frame, stops, event, box) {
  if (!frame || !stops.length) return null;
  const bounds = box.getBoundingClientRect();
  const [px, py] = [event.clientX - bounds.left, event.clientY - bounds.top];
  const lines = spec.series.some((one) => one.line);
  let [best, found] = [Infinity, null];
  stops.forEach(({ x, items }, n) => {
    const [s, i] = items[0];
    const away = lines ? Math.abs(frame.x(x) - px) : Math.hypot(frame.x(x) - px, frame.y(spec.series[s].y[i]) - py);
    if (away < best) [best, found] = [away, n];
  });
  return found;
}

function cursor(spec, frame, { x, items }) {
  const line = draw("line.hair", { x1: frame.x(x), x2: frame.x(x), y1: frame.top, y2: frame.height - frame.bottom });
  return draw("g.cursor", line, items.map(([s, i]) => {
    const dot = draw("circle", { r: 5, cx: frame.x(x), cy: frame.y(spec.series[s].y[i]) });
    dot.style.setProperty("--c", colourOf(spec.series[s], s, spec));
    return dot;
  }));
}

function described(spec, { x, items }) {
  const parts = items.map(([s, i]) => {
    const series = spec.series[s];
    const label = series.labels?.[i];
    const around = series.low && series.low[i] !== null ? ` (${brief(series.low[i])} to ${brief(series.high[i])})` : "";
    return `${[spec.series.length > 1 ? series.name : null, label].filter(Boolean).join(", ") || spec.y.title} ${brief(series.y[i])}${around}`;
  });
  return `${spec.x.title} ${brief(x)}: ${parts.join(" · ")}`;
}

function dataOf(spec) {
  const [ranged, labelled] = ["low", "labels"].map((name) => spec.series.some((one) => one[name]));
  const columns = ["series", ...(labelled ? ["label"] : []), titled(spec.x), titled(spec.y), ...(ranged ? ["low", "high"] : [])];
  const rows = spec.series.flatMap((series) => series.x.map((x, i) => [
    series.name, ...(labelled ? [series.labels?.[i] ?? null] : []), x, series.y[i],
    ...(ranged ? [series.low?.[i] ?? null, series.high?.[i] ?? null] : []),
  ]));
  return { columns, rows };
}
