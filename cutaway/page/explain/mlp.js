// The MLP: a token's neurons of largest output norm, and the tokens they promote.

import { bar, fixed, make, number, scrolling, table, tag, tokenOf, word } from "../elements.js";
import { layerChooser } from "./choosers.js";

export const mlp = {
  title: "Neurons",
  about: () => "After attention an MLP transforms each token alone. These are the layer's neurons with the largest output "
    + "norm, their activations, and the tokens that they promote.",
  build,
};

function build(state) {
  const { explanation } = state;
  const summary = make("p");
  const rows = make("div");
  const update = () => {
    summary.replaceChildren("Layer ", state.layer, ", at ", tokenOf(explanation, state.token), ": output norm of the MLP ",
      make("strong", number(explanation.array(`mlp_norm.${state.layer}`)[state.token])), tag("derived"), ".");
    rows.replaceChildren(scrolling("Strongest neurons", neuronTable(state)));
  };
  return { whole: make("div.stack", make("div.chooser", layerChooser(state)), summary, rows), update };
}

function neuronTable(state) {
  const { explanation, layer, token } = state;
  const [ids, activations, norms] = [`neuron.${layer}`, `neuron.activation.${layer}`, `neuron.norm.${layer}`]
    .map((name) => explanation.row(name, token));
  const rows = [...ids].map((id, i) => {
    const both = explanation.neurons[`${layer}.${id}`];
    const promoted = both?.[activations[i] >= 0 ? 0 : 1] ?? [];
    return [
      id, fixed(activations[i]), fixed(norms[i]), bar(norms[i] / norms[0]),
      promoted.length ? make("span.words", promoted.map((one) => word(explanation, one)))
        : make("span.quiet", "not kept"),
    ];
  });
  return table("The strongest neurons",
    [["neuron"], ["activation", "exact"], ["output norm", "derived"], "", ["promotes", "estimate", "of the direct effect alone", "left"]], rows);
}
