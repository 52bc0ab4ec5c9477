// A map of what every head did: a row a layer, a column a head. `has(r, c)`: whether the model has it.

import { shade } from "../colours.js";
import { ALONE, heat } from "../heat.js";

export const NO_WEIGHTS = "This model’s layers are recurrent: they have no attention weights.";

// A weight of the bytes that docs/serving.md describes.
export const weightOf = (byte) => (byte / 255) ** 2;

export function headMap({ layers, heads, has, say, height = 11, ...options }) {
  return heat(ALONE, {
    hint: "A row is a layer, a column a head.",
    rows: layers,
    columns: heads,
    size: { left: 34, top: 20, width: [12, 60], height, tall: 350 },
    colour: (r, c) => (has(r, c) ? shade(options.part(r, c)) : null),
    rowName: String,
    columnName: (c) => `h${c}`,
    say: (r, c) => (has(r, c) ? say(r, c) : "There is no such head."),
    ...options,
  });
}
