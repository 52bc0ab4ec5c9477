// The features of a sparse autoencoder: those of each token, and the strongest over all tokens.

import { shade } from "../colours.js";
import { bar, count, drawn, fixed, make, number, quoted, remark, table, tokenOf } from "../elements.js";
import { heat } from "../heat.js";

export const features = {
  title: "Features",
  single: true,
  about: ({ features: { activation, count: all } }) => `A sparse autoencoder writes ${activation} as a sum of few of its ${count(all)} directions, the features. `
    + "Each often stands for something that a reader can name.",
  build,
};

function build(state) {
  const { explanation } = state;
  const { tokens, mapped, active, promotes, sinks } = explanation.features;
  const most = Math.max(1e-9, ...active.flatMap((row) => row.filter((_, t) => !sinks.includes(t))));
  const map = heat(state, {
    name: "Activation of the strongest features",
    hint: "The features of the largest activations, attention sinks left out.",
    legend: { title: "activation", largest: most, write: number, tag: ["derived"] },
    axes: ["feature", "token"],
    rows: mapped.length,
    ...explanation.tokenColumns,
    size: { left: 64, top: 74, slant: true, width: [14, 48], height: 18, tall: 480 },
    colour: (r, c) => shade(active[r][c] / most),
    rowName: (r) => String(mapped[r]),
    say: (r, c) => `Feature ${mapped[r]} at ${explanation.shown(c)}: ${fixed(active[r][c])}`
      + (promotes[r] ? `. It promotes ${promotes[r].map(drawn).join(" ")}` : ""),
    pick: (_, c) => state.set({ token: c }),
  });
  const rows = make("div");
  const update = () => {
    const sink = sinks.includes(state.token);
    const own = tokens[state.token];
    rows.replaceChildren(make("h3", "Features of ", tokenOf(explanation, state.token)),
      sink ? remark("An attention sink, which the autoencoder was not trained on.") : "",
      own.length ? table("The token's strongest features", [["feature"], ["activation", "derived"], "", ["promotes", "estimate", "of the direct effect alone", "left"]],
        own.map(([id, activation]) => [String(id), fixed(activation), bar(activation / own[0][1]),
          make("span.words", (promotes[mapped.indexOf(id)] ?? []).map((text) => quoted(text)))]))
        : remark("No feature is active."));
    map.update();
  };
  return { whole: make("div.stack", rows, map.whole), update, hover: map.hover };
}
