// RoPE by distance: one query and one key, moved over the positions; their score depends on the distance alone.

import { brief } from "../charts/scales.js";
import { plot } from "../charts/plot.js";
import { LIVE, fixed, make, options, select, slider, tag, times, tokenOf } from "../elements.js";
import { missing, unrotated } from "./rope.js";

const POINTS = 320;
const SCALINGS = ["none", "linear (position interpolation)", "NTK-aware", "YaRN"];

export const distance = {
  title: "RoPE by distance",
  about: () => "The selected query and key, moved over the positions. Both moved by the same step keep their score; a larger base "
    + "or a scaling rotates the pairs more slowly, so that far keys look nearer.",
  build,
};

function build(state) {
  const { explanation } = state;
  const moved = { query: 0, key: 0, base: null, scaling: 0, factor: 4, reach: 2 };
  const change = (name) => (value) => {
    moved[name] = value;
    update();
  };
  const query = slider("query at", { min: 0, max: 1, step: 1 }, change("query"));
  const key = slider("key at", { min: 0, max: 1, step: 1 }, change("key"));
  const base = slider("base", { min: 2, max: 7, step: 0.05 }, (value) => change("base")(10 ** value), () => brief(Math.round(moved.base ?? 0)));
  const factor = slider("factor", { min: 1, max: 16, step: 0.5, value: moved.factor }, change("factor"));
  const reach = slider("up to", { min: 1, max: Math.max(1.1, Math.log10(explanation.context)), step: 0.05, value: moved.reach }, change("reach"),
    (value) => `${Math.round(10 ** value)} tokens`);
  const scaling = select("scaling", change("scaling"));
  const says = make("p", LIVE);
  const curve = make("div");
  const none = make("p.quiet");
  const shown = make("div.stack",
    make("div.two.even", make("div", make("h3", "Positions"), query.whole, key.whole, says),
      make("div", make("h3", "Rotation"), base.whole, scaling.whole, factor.whole, reach.whole)), curve);
  let for_ = null;
  const update = () => {
    none.textContent = missing(state);
    shown.hidden = !(none.hidden = !none.textContent);
    if (shown.hidden) return;
    const facts = state.attention.rope;
    const what = [state.token, state.source, state.layer, state.head].join();
    if (for_ !== what) {
      for_ = what;
      Object.assign(moved, { query: state.token, key: state.source });
      if (facts.base !== moved.own) Object.assign(moved, { own: facts.base, base: facts.base });
    }
    options(scaling.input, SCALINGS, moved.scaling);
    query.input.max = Math.round(10 ** moved.reach);
    moved.query = Math.min(moved.query, Number(query.input.max));
    key.input.max = moved.query;
    moved.key = Math.min(moved.key, moved.query);
    for (const [one, at] of [[query, moved.query], [key, moved.key], [base, Math.log10(moved.base)]]) one.set(at);
    factor.input.disabled = moved.scaling === 0;
    draw();
  };
  function draw() {
    const { rope: facts, scale } = state.attention;
    const pairs = unrotated(state);
    const changed = frequencies({ ...facts, base: moved.base }, SCALINGS[moved.scaling], moved.factor, explanation.context);
    const far = Math.round(10 ** moved.reach);
    const at = [...new Set(times(POINTS, (i) => Math.round((i * far) / (POINTS - 1))))];
    const sharper = SCALINGS[moved.scaling] === "YaRN" ? 0.1 * Math.log(moved.factor) + 1 : 1;
    const line = (name, rates, magnitude) => ({ name, line: true, x: at, y: at.map((d) => scoreAt(pairs, rates, d) * scale * magnitude ** 2) });
    const apart = moved.query - moved.key;
    const score = scoreAt(pairs, facts.radians, apart) * scale * facts.magnitude ** 2;
    says.replaceChildren(tokenOf(explanation, state.token), ` at ${moved.query} and `, tokenOf(explanation, state.source),
      ` at ${moved.key} are ${apart} apart: score `, make("strong", fixed(score)), tag("derived"), ".");
    const own = moved.base === facts.base && moved.scaling === 0;
    curve.replaceChildren(plot({
      title: "Score by distance", note: `Layer ${state.layer}, head ${state.head}, before soft-cap, bias and softmax; the model's base is ${brief(facts.base)}${facts.scaling ? `, with ${facts.scaling} scaling` : ""}.`,
      x: { title: "distance of the key", unit: "tokens", low: 0, high: far }, y: { title: "score" },
      series: [line("as the model rotates", facts.radians, facts.magnitude), ...(own ? [] : [line("as set here", changed, sharper)])],
    }));
  }
  return { whole: make("div.stack", none, shown), update };
}

// The score of a query and a key so far apart: their dimensions that no pair has, and each pair rotated.
export function scoreAt({ rest, pairs }, radians, apart) {
  return pairs.reduce((sum, { q, k }, i) => {
    const [cos, sin] = [Math.cos(apart * radians[i]), Math.sin(apart * radians[i])];
    return sum + cos * (q[0] * k[0] + q[1] * k[1]) + sin * (q[0] * k[1] - q[1] * k[0]);
  }, rest);
}

// Radians a token of each pair (cutaway/position/scaling.py has the same formulas).
export function frequencies({ base, radians }, scaling, factor, original) {
  const n = radians.length;
  const plain = times(n, (i) => base ** (-i / n));
  if (scaling.startsWith("linear")) return plain.map((one) => one / factor);
  if (scaling === "NTK-aware") return plain.map((one, i) => one * factor ** -(n > 1 ? i / (n - 1) : 0));
  if (scaling !== "YaRN") return plain;
  const pair = (turns) => (n * Math.log(original / (turns * 2 * Math.PI))) / Math.log(base);
  const [low, high] = [Math.max(Math.floor(pair(32)), 0), Math.min(Math.ceil(pair(1)), 2 * n - 1)];
  return plain.map((one, i) => {
    const slowed = Math.max(0, Math.min(1, (i - low) / (high - low || 0.001)));
    return (1 - slowed) * one + (slowed * one) / factor;
  });
}
