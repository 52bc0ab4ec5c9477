// The logit lens: the likeliest token after every block, at every position.

import { palette } from "../colours.js";
import { drawn, make, percent, table, tokenOf, word } from "../elements.js";
import { clamp, heat } from "../heat.js";

const FAINT = 120; // of 255: words stand on these colours

export const lens = {
  title: "Logit lens",
  about: () => "The next token if the model stopped after each block. A column is a position, a row a block. The lens is seldom meaningful in early blocks.",
  build(state) {
    const { explanation } = state;
    const stages = explanation.layers + 1;
    const chance = (r, t) => explanation.row("lens.probabilities", r)[t];
    const id = (r, t) => explanation.row("lens.ids", r)[t];
    const name = (r) => (r === 0 ? "embed" : `block ${r - 1}`);
    const map = heat(state, {
      name: "The likeliest token after every block: a row a block, a column a position",
      hint: "Colour is its probability; bold is the final answer.",
      legend: { title: "probability", largest: 1, write: (part) => `${Math.round(100 * part)}%`, strength: () => FAINT, tag: () => ["derived"] },
      axes: () => ["after block", "token"],
      rows: () => stages,
      columns: () => explanation.length,
      size: (width) => ({
        left: 76, top: 28, height: 22, width: clamp(Math.floor((width - 76) / explanation.length), 76, 160), tall: 760,
      }),
      colour: (r, c) => palette().upCss[Math.round(FAINT * Math.sqrt(chance(r, c)))],
      text: (r, c) => ({
        text: drawn(explanation.token_texts[id(r, c)]),
        colour: palette().ink,
        strong: id(r, c) === id(stages - 1, c),
      }),
      rowName: name,
      columnName: (c) => drawn(explanation.tokenText(c)),
      columnToken: (c) => c,
      say: (r, c) => `After ${drawn(explanation.tokenText(c))}, ${name(r)}: ${drawn(explanation.token_texts[id(r, c)])}, ${percent(chance(r, c))}`,
      pick: (r, c) => state.set(r ? { token: c, layer: r - 1 } : { token: c }),
      chosen: () => [state.layer + 1, state.token],
    });
    const summary = make("p", {});
    const rows = make("div", {});
    const update = () => {
      map.update();
      summary.replaceChildren(...settled(state, id, stages));
      rows.replaceChildren(table("The logit lens at the selected token", [["after", "right"], ["token", "left"], ["probability", "right", "derived"], ["final answer's", "right", "derived"]],
        Array.from({ length: stages }, (_, r) => [name(r), word(explanation, id(r, state.token)), percent(chance(r, state.token)),
          percent(explanation.row("lens.final", r)[state.token])])));
    };
    const more = make("details", {}, make("summary", {}, "The selected column as a table"), rows);
    return { whole: make("div", { class: "stack" }, summary, map.whole, more), update, hover: map.hover };
  },
};

function settled(state, id, stages) {
  const { explanation, token } = state;
  const answer = id(stages - 1, token);
  let since = stages - 1;
  while (since > 0 && id(since - 1, token) === answer) since--;
  const from = since === 0 ? "from the embedding on" : `from block ${since - 1} on`;
  return ["After ", tokenOf(explanation, token), " the next token is ", word(explanation, answer), ` ${from}.`];
}
