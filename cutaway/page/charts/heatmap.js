// A matrix as colours, with a legend that has numbers; the map itself is the explanation's.

import { palette, shade, twoSided } from "../colours.js";
import { clamp, drawn, minus, readable } from "../elements.js";
import { ALONE, heat } from "../heat.js";
import { figure } from "./figure.js";
import { brief, least, most, textWidth } from "./scales.js";

const WRITTEN = 34; // pixels of a cell from which its number is written into it

export function heatmap(spec, later) {
  const values = spec.values.flat().filter((one) => one !== null);
  const signed = spec.signed ?? least(values) < 0;
  const largest = spec.high ?? (Math.max(Math.abs(least(values)), Math.abs(most(values))) || 1);
  const { rows, columns } = spec;
  const [rowNames, columnNames] = [rows, columns].map((axis) => axis.labels.map((label) => readable(label).trim() || drawn(label)));
  const left = Math.min(150, Math.ceil(Math.max(18, ...rowNames.map((name) => textWidth(name) * 1.1))) + 14);
  const wide = Math.ceil(Math.max(...columnNames.map((name) => textWidth(name) * 1.1)));
  let side = 0;
  const text = (r, c) => ({ text: side >= WRITTEN ? written(spec.values[r][c]) : "", colour: palette().ink });
  const map = heat(ALONE, {
    name: `${spec.value} by ${rows.title} and ${columns.title}`,
    hint: `Rows: ${rows.title}. Columns: ${columns.title}.`,
    rows: rowNames.length,
    columns: columnNames.length,
    size(width) {
      side = clamp(Math.floor((width - left - 2) / columnNames.length), spec.values.length > 40 ? 6 : 14, 56);
      const slant = wide > side - 6;
      return { left, top: slant ? Math.min(96, wide * 0.87 + 14) : 22, slant, width: [side, side], height: clamp(side, 12, 26), tall: 640 };
    },
    colour(r, c) {
      const value = spec.values[r][c];
      if (value === null) return null;
      return signed ? twoSided(value, largest, side >= WRITTEN ? 150 : 255) : shade(value / largest, side >= WRITTEN ? 150 : 255);
    },
    text,
    centred: true,
    legend: { title: spec.value, largest, signed, write: brief, strength: () => (side >= WRITTEN ? 150 : 255) },
    rowName: (r) => rowNames[r],
    columnName: (c) => columnNames[c],
    say: (r, c) => `${rows.title} ${rowNames[r]}, ${columns.title} ${columnNames[c]}: ${spec.value} ${brief(spec.values[r][c])}${spec.margins ? ` ± ${brief(spec.margins[r][c])}` : ""}`,
  });
  later.push(map.update);
  return figure(spec, { drawing: map.whole, data: () => ({
    columns: [`${rows.title} \\ ${columns.title}`, ...columns.labels],
    rows: spec.values.map((line, r) => [rows.labels[r], ...line]),
  }) });
}

// Four letters at most: the readout and the table have all figures.
function written(value) {
  if (value === null) return "";
  if (Number.isInteger(value) && Math.abs(value) < 1000) return minus(String(value));
  const size = Math.abs(value);
  if (size >= 999.5) return "";
  return minus(value.toFixed(size >= 9.995 ? 0 : size >= 0.995 ? 1 : 2).replace(/^(-?)0\./, "$1.").replace(/^-?\.0+$/, "0"));
}
