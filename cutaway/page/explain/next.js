// The next token: the logits of all of them, with temperature and top-p to play with.

import { LIVE, bar, button, count, fixed, make, marked, percent, slider, table, word } from "../elements.js";

const LISTED = 14;

export const next = {
  title: "Next token",
  about: ({ vocabulary }) => `The last residual becomes ${count(vocabulary)} logits, and softmax makes them probabilities; `
    + "temperature flattens or sharpens them, top-k and top-p keep the likeliest.",
  build,
};

function build(state) {
  const { explanation } = state;
  const set = [1, 1, 0]; // temperature, top-p and top-k
  const drawnSoFar = [];
  const control = (name, i, range, write = (value) => value.toFixed(2)) => slider(name, { step: 0.05, value: set[i], ...range }, (value) => {
    set[i] = value;
    update();
  }, write);
  const sliders = [
    control("temperature", 0, { min: 0, max: 2 }),
    control("top-k", 2, { min: 0, max: Math.min(100, explanation.next_ids.length), step: 1 }, (value) => value || "all"),
    control("top-p", 1, { min: 0.05, max: 1 }),
  ];
  const kept = make("p", LIVE);
  const rows = make("div");
  const drawnList = make("p.words", LIVE);
  const draw = button("Sample a token", () => {
    drawnSoFar.push(drawOne(explanation, ...set));
    drawnList.replaceChildren(...drawnSoFar.slice(-24));
  });
  const update = () => {
    const plain = probabilities(explanation, 1, 1);
    const now = probabilities(explanation, ...set);
    kept.textContent = now.kept === 1 ? "One token can be sampled." : `${count(now.kept)} tokens can be sampled.`;
    const listed = explanation.next_ids.slice(0, LISTED).map((id, i) => marked(i < now.kept ? null : "out",
      [word(explanation, id), id, fixed(explanation.array("logits")[i], 2), percent(now.first[i]), bar(now.first[i], plain.first[i])]));
    rows.replaceChildren(table("The likeliest next tokens",
      ["token", ["id", "exact"], ["logit", "exact"], ["probability", "derived"], ""], listed));
  };
  return { whole: make("div.two", make("div.stack", sliders.map(({ whole }) => whole), kept, make("div.chooser", draw), drawnList), rows), update };
}

// The probabilities of the named tokens, how many tokens top-k and then top-p keep, and the weight of those.
export function probabilities(explanation, temperature, topP, topK = 0) {
  const [named, rest, [low, high]] = ["logits", "rest", "rest.range"].map((name) => explanation.array(name));
  if (temperature === 0) {
    return { first: [...named].map((_, i) => (i === 0 ? 1 : 0)), kept: 1, weights: [1], total: 1 };
  }
  const weight = (logit) => Math.exp((logit - named[0]) / temperature);
  const weights = new Float64Array(named.length + rest.length);
  named.forEach((logit, i) => { weights[i] = weight(logit); });
  rest.forEach((code, i) => { weights[named.length + i] = weight(low + ((high - low) * code) / 65535); });
  const most = topK || weights.length;
  const all = weights.subarray(0, most).reduce((a, b) => a + b, 0);
  let [kept, total] = [most, all];
  if (topP < 1) for (kept = 0, total = 0; kept < most && (kept === 0 || total < topP * all);) total += weights[kept++];
  return { first: [...named].map((_, i) => (i < kept ? weights[i] / total : 0)), kept, weights, total };
}

function drawOne(explanation, ...set) {
  const { weights, total, kept } = probabilities(explanation, ...set);
  let left = Math.random() * total;
  let i = 0;
  while (i < kept - 1 && left >= weights[i]) left -= weights[i++];
  return i < explanation.next_ids.length ? word(explanation, explanation.next_ids[i]) : make("span.quiet", `the ${count(i + 1)}th`);
}
