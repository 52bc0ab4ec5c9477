// Selects of a layer, a head or a token: each follows what is selected by itself.

import { drawn, make, options, select, times } from "../elements.js";

// key: the part of the state that is chosen; texts(): its choices.
export function chooserOf(state, name, key, texts) {
  const { input, whole } = select(name, (value) => state.set({ [key]: value }));
  state.views.push({ update: () => options(input, texts(), state[key]) });
  return whole;
}

const numbers = (length) => times(length, (i) => i);

export function layerChooser(state) {
  return chooserOf(state, "layer", "layer", () => numbers(state.explanation.layers));
}

export function headChooser(state) {
  return make("div.selects", layerChooser(state), chooserOf(state, "head", "head", () => numbers(state.explanation.heads[state.layer])));
}

// The first `count` tokens of the text, to be chosen among.
export function tokenTexts({ explanation }, count = explanation.length) {
  return explanation.tokens.slice(0, count).map(({ text }, t) => `${t}  ${drawn(text)}`);
}
