// What reports alone draw into a plot: intervals as bands or whiskers, and lines to compare with.

import { draw } from "../elements.js";

const BAND = 12; // points of a line from which on its intervals are a band

// The intervals of a series, whose colour they take.
export function intervals(series, at, { x, y }, path) {
  const ends = (k) => [series.low?.[k] ?? null, series.high?.[k] ?? null];
  if (!series.low) return [];
  if (series.line && at.length > BAND) {
    const sides = [at.map((k) => [k, ends(k)[1]]), [...at].reverse().map((k) => [k, ends(k)[0]])];
    return [draw("path.band", { d: path(sides.flat().map(([k, value]) => [x(series.x[k]), y(value ?? series.y[k])])) + "Z" })];
  }
  return at.filter((k) => !ends(k).includes(null)).map((k) => {
    const [a, b, c] = [...ends(k).map(y), x(series.x[k])];
    return draw("path.whisker", { d: `M${c} ${a}V${b}M${c - 4} ${a}h8M${c - 4} ${b}h8` });
  });
}

export function reference([name, value], { left, right, width, y }) {
  return [draw("line.reference", { x1: left, x2: width - right, y1: y(value), y2: y(value) }),
    draw("text.tick-text.halo", { x: left + 4, y: y(value) - 5 }, name)];
}
