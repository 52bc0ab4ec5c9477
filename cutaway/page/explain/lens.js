// The lenses: the likeliest token after every block, at every position, by the lens that is chosen.

import { palette, shade } from "../colours.js";
import { drawn, make, options, percent, scrolling, select, table, times, tokenOf, word } from "../elements.js";
import { PARTS, heat } from "../heat.js";

const FAINT = 120; // of 255: words stand on these colours
const KINDS = { jacobian: "Jacobian lens", tuned: "tuned lens", logit: "logit lens", random: "random rotation (control)" };
const ABOUT = {
  logit: "The next token if the model stopped after each block.",
  tuned: "The next token as an affine map, trained for each block, reads it.",
  jacobian: "The tokens that each block moves the model towards, now or later in the text: its residual stream times the average Jacobian of the last one by it.",
  random: "A random rotation in place of each Jacobian: what chance looks like.",
};

export const lens = {
  title: "Lenses",
  about: (explanation) => `${ABOUT[kinds(explanation)[0]]} A column is a position, a row a block. Early blocks are seldom meaningful.`,
  build,
};

function build(state) {
  const { explanation } = state;
  const found = kinds(explanation);
  const stages = explanation.layers + 1;
  const read = Object.fromEntries(found.map((kind) => [kind, reader(explanation, kind)]));
  let kind = found[0];
  const name = (r) => (r === 0 ? "embed" : `block ${r - 1}`);
  const text = (of, r, t) => (of.has(r) ? drawn(explanation.token_texts[of.id(r, t)]) : "");
  const map = heat(state, {
    name: "The likeliest token after every block",
    hint: "Colour is its probability; bold is the final answer.",
    legend: { title: "probability", ...PARTS, strength: () => FAINT, tag: ["derived"] },
    axes: ["after block", "token"],
    rows: stages,
    ...explanation.tokenColumns,
    size: { left: 76, top: 28, height: 22, width: [76, 160], tall: 760 },
    colour: (r, c) => shade(read[kind].chance(r, c), FAINT),
    text: (r, c) => ({
      text: text(read[kind], r, c),
      colour: palette().ink,
      strong: read[kind].id(r, c) === read.logit.id(stages - 1, c),
    }),
    rowName: name,
    say: (r, c) => (read[kind].has(r)
      ? `After ${explanation.shown(c)}, ${name(r)}: ${text(read[kind], r, c)}, ${percent(read[kind].chance(r, c))}`
      : `The ${KINDS[kind]} is not of ${name(r)}`),
    pick: (r, c) => state.set(r ? { token: c, layer: r - 1 } : { token: c }),
    chosen: () => [state.layer + 1, state.token],
  });
  const about = make("p.quiet");
  const choice = select("lens", (value) => { kind = found[value]; update(); });
  const summary = make("p");
  const rows = make("div");
  const update = () => {
    options(choice.input, found.map((one) => KINDS[one]), found.indexOf(kind));
    about.textContent = ABOUT[kind];
    map.update();
    summary.replaceChildren(...settled(state, read.logit.id, stages));
    const heads = found.flatMap((one) => [KINDS[one], ["probability", "derived"]]);
    rows.replaceChildren(scrolling("The lenses at the selected token", table("The lenses at the selected token", [["after"], ...heads, ["final answer's", "derived"]],
      times(stages, (r) => [name(r), ...found.flatMap((one) => (read[one].has(r)
        ? [word(explanation, read[one].id(r, state.token)), percent(read[one].chance(r, state.token))] : ["", ""])),
      percent(read.logit.final(r, state.token))]))));
  };
  const more = make("details", { open: found.length > 1 }, make("summary", "The selected column as a table"), rows);
  const chooser = found.length > 1 ? [make("div.selects", choice.whole), about] : [];
  return { whole: make("div.stack", ...chooser, summary, map.whole, more), update, hover: map.hover };
}

// The lenses that the page holds, the one to begin with first.
function kinds(explanation) {
  return Object.keys(KINDS).filter((kind) => kind in explanation.lenses);
}

// What a lens shows after stage r (0 is the embedding) at token t; it may not be of every stage.
function reader(explanation, kind) {
  const prefix = kind === "logit" ? "lens" : `lens.${kind}`;
  const place = (r) => explanation.lenses[kind].indexOf(r === 0 ? "embed" : `blocks.${r - 1}.out`);
  const value = (what, r, t, none) => (place(r) < 0 ? none : explanation.row(`${prefix}.${what}`, place(r))[t]);
  return {
    has: (r) => place(r) >= 0,
    id: (r, t) => value("ids", r, t, -1),
    chance: (r, t) => value("probabilities", r, t, 0),
    final: (r, t) => value("final", r, t, 0),
  };
}

function settled(state, id, stages) {
  const { explanation, token } = state;
  const answer = id(stages - 1, token);
  let since = stages - 1;
  while (since > 0 && id(since - 1, token) === answer) since--;
  const from = since === 0 ? "from the embedding on" : `from block ${since - 1} on`;
  return ["By the logit lens, after ", tokenOf(explanation, token), " the next token is ", word(explanation, answer), ` ${from}.`];
}
