// Axes: from values to pixels, the numbers beside them, and how a number is written.

import { cut, minus } from "../elements.js";

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const UNITS = [[1e12, "T"], [1e9, "B"], [1e6, "M"]];

// A number with the digits that four figures need: 0.0123, 3.142, 12,345, 1.5M, 2.1 × 10¹⁵.
export function brief(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e15 || size < 1e-4) {
    const power = Math.floor(Math.log10(size));
    const factor = trimmed((value / 10 ** power).toPrecision(3));
    return factor === "1" ? tens(power) : `${minus(factor)} × ${tens(power)}`;
  }
  for (const [unit, name] of UNITS) if (size >= unit) return minus(trimmed((value / unit).toPrecision(4))) + name;
  if (size >= 1000) return minus(Math.round(value).toLocaleString("en"));
  return minus(trimmed(value.toPrecision(4)));
}

const trimmed = (text) => (text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text);

export function tens(power) {
  return "10" + [...String(power)].map((digit) => SUPERSCRIPT[digit]).join("");
}

// The values that an axis is marked at, about `count` of them, each with its text; whole numbers where it has no others.
export function ticks(low, high, count, log, whole = false) {
  if (log) return logTicks(low, high, count);
  const rough = Math.max((high - low) / Math.max(1, count), whole ? 1 : 0);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((one) => one * power >= rough * 0.999) * power;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const out = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) {
    const value = n * step;
    const text = Math.max(Math.abs(low), Math.abs(high)) >= 1e6 || digits > 4 ? brief(value) : value.toLocaleString("en", {
      minimumFractionDigits: digits, maximumFractionDigits: digits,
    });
    out.push([value, minus(/^-[0.]*$/.test(text) ? text.slice(1) : text)]);
  }
  return out;
}

function logTicks(low, high, count) {
  const [from, to] = [Math.log10(low), Math.log10(high)];
  const factors = to - from < 1.2 ? [1, 2, 3, 5, 7] : to - from < 3 ? [1, 3] : [1];
  const small = from < -4; // brief() has powers of ten below 0.0001: then all of them are, in one notation
  const out = [];
  for (let power = Math.floor(from); power <= to + 1e-9; power++) {
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) out.push([value, factors.length === 1 && (power > 5 || small) ? tens(power) : brief(value)]);
    }
  }
  const every = Math.ceil(out.length / Math.max(1, count));
  return out.filter((_, i) => i % every === 0);
}

// The ends of an axis for some values: what the axis asks for, else the values with a little room.
export function domain(axis, values) {
  const finite = values.filter((one) => Number.isFinite(one) && (!axis.log || one > 0));
  let [low, high] = [axis.low ?? least(finite), axis.high ?? most(finite)];
  if (low < high && Number.isFinite(axis.low) && Number.isFinite(axis.high)) return [low, high];
  if (!(low < high)) [low, high] = axis.log ? [low / 2 || 0.1, high * 2 || 10] : [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
  if (axis.log) {
    const room = (high / low) ** 0.04;
    return [axis.low ?? low / room, axis.high ?? high * room];
  }
  const room = (high - low) * 0.05;
  return [axis.low ?? (low >= 0 && low - room < 0 ? 0 : low - room), axis.high ?? high + room];
}

export const least = (values) => values.reduce((a, b) => (b < a ? b : a), values.length ? values[0] : 0);
export const most = (values) => values.reduce((a, b) => (b > a ? b : a), values.length ? values[0] : 1);

// From a value to its pixel.
export function scale([low, high], [from, to], log) {
  const at = log ? Math.log : (value) => value;
  const [a, b] = [at(low), at(high)];
  return (value) => from + ((at(value) - a) / (b - a)) * (to - from);
}

let ruler = null;

// The width of a text in pixels.
export function textWidth(text, font = "12px ") {
  ruler ??= document.createElement("canvas").getContext("2d");
  ruler.font = font + getComputedStyle(document.documentElement).getPropertyValue("--sans");
  return ruler.measureText(text).width;
}

export function shortened(text, width, font) {
  return cut(text, width, (one) => textWidth(one, font));
}

export const titled = ({ title, unit }) => (unit ? `${title} (${unit})` : title);
