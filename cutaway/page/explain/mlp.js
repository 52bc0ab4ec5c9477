// The MLP: a token's neurons of largest output norm, and the tokens they promote.

import { bar, fixed, make, number, options, scrolling, select, table, tag, tokenOf, word } from "../elements.js";

export const mlp = {
  title: "Neurons",
  about: () => "After attention an MLP transforms each token alone. These are the layer's neurons with the largest output "
    + "norm, their activations, and the tokens that they promote.",
  build(state) {
    const { explanation } = state;
    const layer = select("layer", (value) => state.set({ layer: value }));
    const summary = make("p", {});
    const rows = make("div", {});
    const update = () => {
      options(layer.input, Array.from({ length: explanation.layers }, (_, i) => String(i)), state.layer);
      summary.replaceChildren("Layer ", String(state.layer), ", at ", tokenOf(explanation, state.token), ": output norm of the MLP ",
        make("strong", {}, number(explanation.array(`mlp_norm.${state.layer}`)[state.token])), tag("derived"), ".");
      rows.replaceChildren(scrolling("Strongest neurons", neuronTable(state)));
    };
    return { whole: make("div", { class: "stack" }, make("div", { class: "chooser" }, layer.whole), summary, rows), update };
  },
};

function neuronTable(state) {
  const { explanation, layer, token } = state;
  const [ids, activations, norms] = [`neuron.${layer}`, `neuron.activation.${layer}`, `neuron.norm.${layer}`]
    .map((name) => explanation.row(name, token));
  const rows = [...ids].map((id, i) => {
    const both = explanation.neurons[`${layer}.${id}`];
    const promoted = both?.[activations[i] >= 0 ? 0 : 1] ?? [];
    return [
      String(id), fixed(activations[i]), fixed(norms[i]), bar(norms[i] / norms[0]),
      promoted.length ? make("span", { class: "words" }, promoted.map((one) => word(explanation, one)))
        : make("span", { class: "quiet" }, "not kept"),
    ];
  });
  return table("The strongest neurons",
    [["neuron", "right"], ["activation", "right", "exact"], ["output norm", "right", "derived"], ["", "left"], ["promotes", "left", "estimate", "of the direct effect alone"]], rows);
}
