// Activation patching: where in the model the answers of two texts part.

import { plot } from "../charts/plot.js";
import { twoSided } from "../colours.js";
import { drawn, fixed, make } from "../elements.js";
import { heat } from "../heat.js";

export const patch = {
  title: "Activation patching",
  single: true,
  about: ({ patch: { other } }) => `The residual stream of another text, "${drawn(other).replaceAll("␣", " ")}", is put into this one, one block and token `
    + "at a time. Where the answer moves to the other text's, the patched vector holds what the texts differ in.",
  build,
};

function build(state) {
  const { tokens, here, there } = state.explanation.patch;
  const blocks = tokens[0].recovered.length;
  const name = ({ text, other_text: other }) => (text === other ? drawn(text) : `${drawn(text)} ← ${drawn(other)}`);
  const map = heat(state, {
    name: "Effect of each patch",
    hint: "1: the answer is the other text's; 0: nothing changed.",
    legend: { title: "effect", largest: 1, signed: true, write: (value) => fixed(value, 2), tag: ["derived", "from forward passes"] },
    axes: ["token and the other text's", "after block"],
    rows: tokens.length,
    columns: blocks,
    size: { left: 150, top: 22, width: [16, 40], height: 26 },
    colour: (r, c) => twoSided(tokens[r].recovered[c], 1),
    rowName: (r) => name(tokens[r]),
    columnName: String,
    rowToken: (r) => tokens[r].position,
    say: (r, c) => `${name(tokens[r])} after block ${c}: ${fixed(tokens[r].recovered[c], 3)} of the way from ${drawn(here)} to ${drawn(there)}`,
    pick: (r, c) => state.set({ token: tokens[r].position, layer: c }),
    chosen: () => [Math.max(0, tokens.findIndex(({ position }) => position === state.token)), state.layer],
  });
  const answers = make("p", "This text's answer is ", make("bdi.word.strong", drawn(here)), ", the other's ", make("bdi.word.strong", drawn(there)), ".");
  const curve = plot({
    title: "Effect by block", x: { title: "patched after block" }, y: { title: "effect" },
    series: tokens.map((one) => ({ name: name(one), line: true, x: one.recovered.map((_, i) => i), y: one.recovered })),
  });
  return { whole: make("div.stack", answers, map.whole, curve), update: map.update, hover: map.hover };
}
