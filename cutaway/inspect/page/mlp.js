// The MLP: the neurons that wrote most for a token, and the tokens they raise and lower.

const mlp = {
  title: "Neurons",
  said: () => "Between readings each token is worked on alone: of a layer's neurons these wrote most into its stream, "
    + "and these are the tokens whose scores that raises.",
  build(state) {
    const { story } = state;
    const layer = select("layer", (value) => state.set({ layer: value }));
    const said = make("p", {});
    const rows = make("div", {});
    const update = () => {
      options(layer.input, Array.from({ length: story.layers }, (_, i) => String(i)), state.layer);
      said.replaceChildren("Layer ", String(state.layer), ", at ", tokenOf(story, state.token), ": its MLP wrote a vector ",
        make("strong", {}, number(story.array(`wrote.mlp.${state.layer}`)[state.token])), " long.");
      rows.replaceChildren(scrolling("Strongest neurons", neuronTable(state)));
    };
    return { whole: make("div", { class: "stack" }, make("div", { class: "chooser" }, layer.whole), said, rows), update };
  },
};

function neuronTable(state) {
  const { story, layer, token } = state;
  const [ids, saying, wrote] = [`neuron.${layer}`, `neuron.said.${layer}`, `neuron.wrote.${layer}`]
    .map((name) => story.row(name, token));
  const rows = [...ids].map((id, i) => {
    const both = story.neurons[`${layer}.${id}`];
    const raised = both?.[saying[i] >= 0 ? 0 : 1] ?? [];
    return [
      String(id), fixed(saying[i]), fixed(wrote[i]), bar(wrote[i] / wrote[0]),
      raised.length ? make("span", { class: "words" }, raised.map((one) => word(story, one)))
        : make("span", { class: "quiet" }, "not kept"),
    ];
  });
  return table("The strongest neurons",
    [["neuron", "right"], ["said", "right"], ["wrote", "right"], ["", "left"], ["raises", "left"]], rows);
}
