// Embeddings: the row that each id picks, as colours, and the rows nearest to it by cosine similarity.

import { twoSided } from "../colours.js";
import { bar, count, fixed, make, number, remark, table, tag, tokenOf, word } from "../elements.js";
import { heat } from "../heat.js";

export const embeddings = {
  title: "Embeddings",
  about({ embeddings: made, width }) {
    const learned = made.learned_positions ? ", and a row for its position is added" : "";
    return `Each id picks its row of ${count(width)} numbers from a table of ${count(made.table[0])}${learned}. `
      + "Tokens that are used alike have rows that point alike.";
  },
  build,
};

function build(state) {
  const { explanation } = state;
  const detail = make("div");
  const { largest, shown } = explanation.vector_strip;
  const map = heat(state, {
    name: "Embeddings as colours",
    hint: `The first ${shown} numbers of what enters the first block; warm is positive, cool negative.`,
    legend: { title: "value", largest, signed: true, write: number, tag: ["rounded", "to 1/127 of the largest"] },
    axes: ["token", `number of its embedding, the first ${shown} of ${explanation.width}`],
    ...explanation.tokenRows,
    columns: shown,
    size: { left: 92, width: [2, Infinity], height: explanation.length > 24 ? 14 : 22, tall: 380 },
    colour: (r, c) => twoSided(explanation.row("vectors", r)[c], 127),
    say: (r, c) => `${explanation.shown(r)}, number ${c}: about ${fixed((explanation.row("vectors", r)[c] / 127) * largest, 3)}`,
    pick: (r) => state.set({ token: r }),
    chosenRow: () => state.token,
  });
  const update = () => {
    const { norm, ids, cosines } = explanation.neighbours[state.token];
    detail.replaceChildren(
      make("h3", "Nearest to ", tokenOf(explanation, state.token)),
      table("Nearest rows of the table by cosine similarity", ["token", ["cosine", "derived"], ""],
        ids.map((id, i) => [word(explanation, id), fixed(cosines[i], 3), bar(cosines[i])])),
      remark(`The norm of its row is ${number(norm)}`, tag("derived"), "."),
    );
    map.update();
  };
  return { whole: make("div.two", detail, map.whole), update, hover: map.hover };
}
