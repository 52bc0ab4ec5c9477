// The residual stream: its norm, the output norm of each head and MLP, and their contributions to the answer.

import { shade, twoSided } from "../colours.js";
import { button, fixed, make, marked, number, percent, quoted, signed, table, tokenOf, total } from "../elements.js";
import { plot } from "../charts/plot.js";
import { heat } from "../heat.js";

export const residual = {
  title: "Residual stream",
  about: () => "Every head and MLP adds its output to one vector a token: the residual stream. Here are its norm, the output "
    + "norm of each part, and each part's contribution to the answer's logit.",
  build,
};

function build(state) {
  const { explanation } = state;
  const norm = make("div");
  const norms = partsMap(state, "Output norm of each head and MLP", (layer, head) => (head === null
    ? explanation.array(`mlp_norm.${layer}`)[state.token] : explanation.row(`head_norm.${layer}`, state.token)[head]),
  (value, most) => shade(value / most), (value) => `output norm ${number(value)}`, { title: "output norm", write: number, tag: ["derived"] });
  const contributions = partsMap(state, "Contribution of each head and MLP to the answer's logit", (layer, head) => (head === null
    ? explanation.array("contribution.mlp")[layer] : explanation.array(`contribution.${layer}`)[head]),
  twoSided, (value) => `contribution ${signed(value)} logits`, { title: "logits", signed: true, write: number, tag: ["derived", "with the final norm as it was"] });
  const normsTitle = make("h3");
  const update = () => {
    norm.replaceChildren(growth(state));
    normsTitle.replaceChildren("Output norm at ", tokenOf(explanation, state.token));
    norms.update();
    contributions.update();
  };
  const answer = () => quoted(explanation.attribution.text);
  const whole = make("div.stack",
    norm,
    make("div", normsTitle, norms.whole),
    make("div", make("h3", "Contribution to the logit of ", answer(), ", the answer"), contributions.whole, ...sums(state)));
  return { whole, update, hover: () => [norms, contributions].forEach((map) => map.hover()) };
}

// The norm of the selected token's residual stream after each half of each block, on a logarithmic scale.
function growth(state) {
  const { explanation, token } = state;
  const norms = [...explanation.row("norms", token)];
  return plot({
    title: `Norm at ${explanation.shown(token)}`,
    note: `From ${number(norms[0])} at the embedding to ${number(norms.at(-1))} after the last block.`,
    x: { title: "blocks passed", low: 0, high: (norms.length - 1) / 2 },
    y: { title: "norm", log: true },
    series: [{ name: "norm", line: true, x: norms.map((_, i) => i / 2), y: norms.map((one) => one || null) }],
  });
}

// Layers from left to right; a row a head, and the MLP below them.
export function partsMap(state, name, value, colour, say, legend) {
  const { explanation } = state;
  const rows = explanation.mostHeads + 1;
  const part = (r) => (r < explanation.mostHeads ? r : null);
  const has = (r, c) => part(r) === null || r < explanation.heads[c];
  let most = 1;
  const map = heat(state, {
    name,
    hint: "The MLP is in the last row.",
    legend: { ...legend, largest: () => most },
    axes: ["head", "layer"],
    rows,
    columns: explanation.layers,
    size: { left: 44, top: 22, width: [16, 40], height: 18 },
    colour: (r, c) => (has(r, c) ? colour(value(c, part(r)), most) : null),
    rowName: (r) => (part(r) === null ? "MLP" : `h ${r}`),
    columnName: String,
    say: (r, c) => (has(r, c)
      ? `Layer ${c}, ${part(r) === null ? "MLP" : `head ${r}`}: ${say(value(c, part(r)))}` : "This layer has fewer heads."),
    pick: (r, c) => state.set(part(r) === null ? { layer: c } : { layer: c, head: r }),
    chosen: () => [state.head, state.layer],
  });
  const update = () => {
    most = 0;
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < explanation.layers; c++) if (has(r, c)) most = Math.max(most, Math.abs(value(c, part(r))));
    }
    map.update();
  };
  return { ...map, update };
}

// What a logit is the sum of.
export function logitParts(caption, { embed, heads, mlps, biases, rest, logit }) {
  const rows = [["the embedding", embed], ["all heads", heads], ["all MLPs", mlps], ["biases", biases], ["the rest", rest]]
    .filter(([, value]) => Math.abs(value) > 5e-3).map(([name, value]) => [name, signed(value)]);
  return table(caption, ["", ["logits", "derived"]], [...rows, marked("sum", ["its logit", fixed(logit, 2)])]);
}

// The parts of the answer's logit, which sum to it; and the heads of largest contribution.
function sums(state) {
  const { explanation } = state;
  const { attribution } = explanation;
  const heads = total(explanation.heads.map((_, i) => total(explanation.array(`contribution.${i}`))));
  const mlps = total(explanation.array("contribution.mlp"));
  const best = attribution.heads.map(({ layer, head, contribution, attends_to: t, weight }) => ({
    attributes: t === null ? { class: "row" } : { class: "row", "data-t": t },
    cells: [
      button(`${layer}.${head}`, () => state.set({ layer, head, source: t ?? state.source }), { label: `Choose layer ${layer}, head ${head}` }),
      signed(contribution), t === null ? "recurrent" : tokenOf(explanation, t), t === null ? "" : percent(weight),
    ],
  }));
  return [make("div.two.even",
    logitParts("The parts of the answer's logit", { ...attribution, heads, mlps }),
    table("The heads of largest contribution",
      ["head", ["logits", "derived"], "attends to", ["weight", "exact"]], best))];
}
