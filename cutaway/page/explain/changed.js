// What training changed: the next token, where the two models part, which heads moved, and what the change writes.

import { shade } from "../colours.js";
import { bar, drawn, make, number, percent, quoted, remark, scrolling, table } from "../elements.js";
import { heat } from "../heat.js";
import { partsMap } from "./residual.js";

const SHOWN = 8;

export const changed = {
  title: "What training changed",
  single: true,
  about: ({ changed: { names: [base, tuned] } }) => `${base} is the base, ${tuned} was trained from it. Where their logit lenses part, which heads and MLPs `
    + "moved, and which directions the changed matrices write.",
  build,
};

function build(state) {
  const { explanation } = state;
  const { kl, stages, next, heads, mlps, written, tokens } = explanation.changed;
  const name = (c) => (c === 0 ? "embed" : String(c - 1));
  const most = Math.max(1e-9, ...kl.flat());
  const parted = heat(state, {
    name: "KL divergence of the two lenses",
    hint: "KL(base || tuned) of the logit lens.",
    legend: { title: "KL, nats", largest: most, write: number, tag: ["derived"] },
    axes: ["token", "after block"],
    rows: tokens.length,
    columns: stages.length,
    size: { left: 92, top: 22, width: [18, 40], height: 20, tall: 480 },
    colour: (r, c) => shade(kl[r][c] / most),
    rowName: (r) => drawn(tokens[r]),
    columnName: name,
    rowToken: (r) => r,
    say: (r, c) => `${drawn(tokens[r])}, after ${c ? `block ${c - 1}` : "the embedding"}: ${number(kl[r][c])} nats`,
    pick: (r, c) => state.set(c ? { token: r, layer: c - 1 } : { token: r }),
    chosen: () => [state.token, state.layer + 1],
  });
  const parts = new Map([...heads, ...mlps].map((one) => [`${one.layer}.${one.head}`, one.change]));
  const moved = partsMap(state, "How far outputs moved, as a part of their norm in the base", (layer, head) => parts.get(`${layer}.${head}`) ?? 0,
    (value, largest) => shade(value / largest), (value) => `moved ${percent(value)} of its norm`, { title: "moved", write: percent, tag: ["derived"] });
  const words = (texts) => make("span.words", texts.slice(0, 4).map((text) => quoted(text)));
  const directions = written.slice(0, SHOWN).map(({ weight, change, directions: [first] }) => [
    weight.replace(/^blocks\./, "").replace(/\.weight$/, ""), percent(change), percent(first.share), words(first.promotes), words(first.opposite)]);
  const both = next.slice(0, SHOWN).map(({ text, before, after }) => [quoted(text), percent(before), percent(after), bar(after, before)]);
  const whole = make("div.stack",
    make("div", make("h3", "Next token"), table("The likeliest next tokens of both models",
      ["token", ["base", "derived"], ["tuned", "derived"], ""], both)),
    make("div", make("h3", "Where they part"), parted.whole),
    make("div", make("h3", "Outputs that moved"), moved.whole),
    make("div", make("h3", "Directions written"), directions.length
      ? scrolling("Directions written", table("The largest direction of each changed matrix",
        ["matrix", ["change", "derived"], ["of it", "derived"], ["promotes", "estimate", "of the direct effect alone", "left"], "or, the other way"], directions))
      : remark("No matrix that writes into the residual stream changed.")));
  return { whole, update: () => [parted, moved].forEach((map) => map.update()), hover: () => [parted, moved].forEach((map) => map.hover()) };
}
