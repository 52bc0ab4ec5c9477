// What distinguishes a series: a colour, a shape and, from the seventh on, a dash.

import { draw } from "../elements.js";

const SHAPES = [
  "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z", // circle
  "M-3.6 -3.6H3.6V3.6H-3.6Z", // square
  "M0 -4.8L4.5 3.4H-4.5Z", // triangle
  "M0 -5L5 0L0 5L-5 0Z", // diamond
  "M0 4.8L4.5 -3.4H-4.5Z", // triangle, down
  "M-1.6 -4.6H1.6V-1.6H4.6V1.6H1.6V4.6H-1.6V1.6H-4.6V-1.6H-1.6Z", // cross
];
export const COLOURS = SHAPES.length;
const DASHES = [null, "7 4", "2 3", "9 3 2 3"];

export function colourOf(series, i, spec) {
  if (spec.ordered) {
    const last = Math.max(...spec.series.map((one, k) => one.color ?? k));
    const part = last ? (series.color ?? i) / last : 1;
    return `color-mix(in oklab, var(--heat) ${Math.round(100 * part)}%, var(--cool))`;
  }
  return `var(--series-${((series.color ?? i) % COLOURS) + 1})`;
}

export function mark(x, y, series, i, spec) {
  const path = draw("path.point", { d: SHAPES[(series.color ?? i) % COLOURS], transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` });
  path.style.setProperty("--c", colourOf(series, i, spec));
  return path;
}

export function dashOf(series, i) {
  return DASHES[Math.floor((series.color ?? i) / COLOURS) % DASHES.length];
}

export function swatch(series, i, spec) {
  const line = series.line ? draw("line.line", { x1: 1, x2: 25, y1: 7, y2: 7, "stroke-dasharray": dashOf(series, i) }) : null;
  line?.style.setProperty("--c", colourOf(series, i, spec));
  const shape = series.points ? mark(13, 7, series, i, spec) : null;
  return draw("svg", { viewBox: "0 0 26 14", width: 26, height: 14, "aria-hidden": "true" }, line, shape);
}
