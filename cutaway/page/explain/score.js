// Query, key, value: one attention weight, computed step by step with the numbers of the model.

import { twoSided } from "../colours.js";
import { bar, button, fixed, make, marked, number, percent, remark, signed, table, tag, tokenOf, total } from "../elements.js";
import { RECURRENT } from "./attention.js";
import { dot } from "./explanation.js";
import { heat } from "../heat.js";
import { chooserOf, headChooser, tokenTexts } from "./choosers.js";

const PRODUCTS = 4;
const SHOWN = 8;

export const score = {
  title: "One attention weight",
  about: () => "One attention weight, step by step: the dot product of a token's query and another's key, scaled, "
    + "then softmax over the scores of all keys.",
  build,
};

function build(state) {
  const { explanation } = state;
  const work = make("div.stack");
  const strips = vectorStrips(state);
  const update = () => {
    const detailed = state.detailed;
    strips.whole.hidden = !detailed;
    work.replaceChildren(...(detailed ? working(state) : [otherHeads(state)]));
    if (detailed) strips.update();
  };
  const chooser = make("div.chooser", headChooser(state), chooserOf(state, "query", "token", () => tokenTexts(state)),
    chooserOf(state, "key", "source", () => tokenTexts(state, state.token + 1)));
  return { whole: make("div.stack", chooser, strips.whole, work), update, hover: strips.hover };
}

function otherHeads(state) {
  const { detailed, attention: layers } = state.explanation;
  if (layers[state.layer].recurrent) return remark(RECURRENT);
  const buttons = detailed.map(([layer, head]) => button(`${layer}.${head}`, () => state.set({ layer, head })));
  return make("div",
    make("p", `For a text this long the page keeps queries, keys and values of the ${detailed.length === 1 ? "head" : `${detailed.length} heads`} with the largest contribution:`),
    make("p.buttons", buttons));
}

function vectorStrips(state) {
  const names = ["query", "key", "q × k", "value"];
  const parts = () => {
    if (!state.detailed) return [[], [], [], []];
    const { q, k, v } = state.explanation.vectors(state.layer, state.head, state.token, state.source);
    return [q, k, q.map((one, i) => one * k[i]), v];
  };
  let now = [[], [], [], []];
  let largest = [];
  const scales = make("p.quiet");
  const map = heat(state, {
    name: "Query, key, their products and the value, number by number",
    hint: "The colours of each row go to its own largest number.",
    axes: ["vector, after RoPE", "dimension of the head"],
    rows: 4,
    columns() {
      now = parts();
      largest = now.map((one) => Math.max(...one.map(Math.abs)));
      return Math.max(1, ...now.map((one) => one.length));
    },
    size: { left: 64, width: [4, 18], height: 26 },
    colour: (r, c) => (c < now[r].length ? twoSided(now[r][c], largest[r]) : null),
    rowName: (r) => names[r],
    say: (r, c) => (c < now[r].length ? `${names[r]}[${c}] = ${number(now[r][c])}` : ""),
  });
  const update = () => {
    map.update();
    scales.replaceChildren("Full colours: ", names.map((name, r) => `${name} ±${number(largest[r])}`).join(", "), tag("exact"), ".");
  };
  return { ...map, whole: make("div", map.whole, scales), update };
}

function working(state) {
  const { explanation, layer, head, token, source } = state;
  const { q, k, group } = explanation.vectors(layer, head, token, source);
  const { scale, softcap, group_size: groupSize } = explanation.attention[layer];
  const products = [...q].map((one, i) => [one * k[i], i]).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
  const whole = dot(q, k);
  const first = products.slice(0, PRODUCTS);
  const rest = whole - total(first.map(([product]) => product));
  const found = explanation.softmax(layer, head, token);
  const bias = explanation.bias(layer, head, token - source);
  const added = bias === null ? "" : `, ${signed(bias)} for a distance of ${token - source}`;
  const rows = first.map(([product, i]) => [`q[${i}] × k[${i}]`, `${number(q[i])} × ${number(k[i])}`, fixed(product)]);
  rows.push([`the other ${products.length - first.length}`, "", fixed(rest)]);
  rows.push(marked("sum", ["q · k", "", fixed(whole)]));
  rows.push(marked("sum", ["score", `× ${number(scale)}${softcap ? `, soft-capped at ±${number(softcap)}` : ""}${added}`, fixed(found.scores[source])]));
  const visible = found.scores[source] > -Infinity;
  const line = visible
    ? `exp(${fixed(found.scores[source])} − ${fixed(found.best)}) = ${number(found.exps[source])}, divided by the sum ${number(found.sum)}: `
    : "This layer's mask hides the key: ";
  return [
    make("div.two.even",
      make("div", make("h3", "The score"),
        table("The score, step by step", ["", ["factors", "exact"], ["product", "derived"]], rows),
        groupSize > 1 ? remark(`Grouped-query attention: head ${head} uses key-value head ${group}.`) : null,
        explanation.attention[layer].maps > 1
          ? remark("A differential head: this is its first attention map, from which the second is subtracted.") : null),
      make("div", make("h3", "The attention weight"),
        make("p.formula", line, make("strong", percent(found.weights[source]))),
        softmaxTable(state, found))),
  ];
}

function softmaxTable(state, found) {
  const { explanation, source } = state;
  const order = found.weights.map((weight, s) => [weight, s]).sort((a, b) => b[0] - a[0]);
  const shown = order.slice(0, SHOWN).map(([, s]) => s);
  if (!shown.includes(source)) shown[shown.length - 1] = source;
  shown.sort((a, b) => a - b);
  const line = (name, score, exp, weight) => [name, score, fixed(exp, 4), percent(weight), bar(weight)];
  const rows = shown.map((s) => marked(s === source ? "row chosen" : "row", line(tokenOf(explanation, s),
    found.scores[s] > -Infinity ? fixed(found.scores[s]) : "masked", found.exps[s], found.weights[s]), s));
  const left = order.length - shown.length;
  if (left) {
    const known = new Set(shown);
    const others = order.filter(([, s]) => !known.has(s));
    rows.push(line(`${left} more`, "", total(others.map(([, s]) => found.exps[s])), total(others.map(([weight]) => weight))));
  }
  if (found.sink !== null) rows.push(line("attention sink, no value", fixed(found.sink), found.sinkExp, found.sinkExp / found.sum));
  return table("The softmax of the row",
    ["token", ["score", "derived"], ["exp", "derived"], ["weight", "derived"], ""], rows);
}
