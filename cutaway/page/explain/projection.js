// Projections: one token's vector times W_q, W_k and W_v gives a head's query, key and value.

import { twoSided } from "../colours.js";
import { button, fixed, make, marked, number, remark, table, times, tokenOf, total } from "../elements.js";
import { heat } from "../heat.js";
import { chooserOf, headChooser, tokenTexts } from "./choosers.js";

const NAMES = { q: "query", k: "key", v: "value" };

export const projection = {
  title: "Projections to query, key, value",
  about: () => "A head multiplies a token's vector x by three matrices, W_q, W_k and W_v. Each number of the query, the key and "
    + "the value is the dot product of x and one row of its matrix.",
  build,
};

function build(state) {
  const { explanation } = state;
  const at = { matrix: "q", row: 0 };
  const go = (change) => {
    Object.assign(at, change);
    update();
  };
  const kinds = make("div.buttons", { role: "group", label: "Matrix" }, Object.keys(NAMES).map((one) => button(`W_${one}`, () => go({ matrix: one }), { "data-matrix": one })));
  const outputs = outputMap(state, at, go);
  const matrix = matrixMap(state, at, go);
  const sum = make("div");
  const none = make("p.quiet");
  const shown = make("div.stack",
    make("div", make("h3", "Query, key and value"), outputs.whole),
    make("div", make("div.chooser", make("h3", "Matrix"), kinds), matrix.whole), sum);
  const update = () => {
    const there = Object.keys(NAMES).filter((one) => explanation.projection(one, state));
    shown.hidden = !there.length;
    none.replaceChildren(...(there.length ? [] : missing(state)));
    if (!there.length) return;
    if (!there.includes(at.matrix)) at.matrix = there[0];
    at.row = Math.min(at.row, explanation.projection(at.matrix, state).sums.length - 1);
    kinds.querySelectorAll("button").forEach((button) => {
      button.disabled = !there.includes(button.dataset.matrix);
      button.setAttribute("aria-pressed", button.dataset.matrix === at.matrix);
    });
    outputs.update();
    matrix.update();
    sum.replaceChildren(...sumOf(state, at));
  };
  return { whole: make("div.stack", make("div.chooser", headChooser(state), chooserOf(state, "token", "token", () => tokenTexts(state))), none, shown), update };
}

function missing(state) {
  const { heads, first } = state.explanation.projections;
  if (!heads.length) return ["This model's layers make queries, keys and values in another way."];
  if (state.token < first && heads.some(([layer, head]) => layer === state.layer && head === state.head)) {
    return [`For a text this long the page keeps projections of the tokens from ${first} on.`];
  }
  const buttons = heads.map(([layer, head]) => button(`${layer}.${head}`, () => state.set({ layer, head })));
  return ["The page keeps the matrices of these heads: ", make("span.buttons", buttons)];
}

// The three vectors, a row each: what is chosen here is computed below.
function outputMap(state, at, go) {
  let rows = [];
  return heat(state, {
    name: "Query, key and value of the token, number by number",
    hint: "Choose a number to see how it is computed. The colours of each row go to its own largest number.",
    axes: ["vector, before RoPE", "dimension of the head"],
    rows() {
      rows = Object.keys(NAMES).map((one) => ({ one, ...state.explanation.projection(one, state) })).filter(({ sums }) => sums);
      return rows.length;
    },
    columns: () => Math.max(0, ...rows.map(({ sums }) => sums.length)),
    size: { left: 64, width: [6, 18], height: 26 },
    colour(r, c) {
      const { sums } = rows[r];
      return c < sums.length ? twoSided(sums[c], Math.max(...sums.map(Math.abs))) : null;
    },
    rowName: (r) => NAMES[rows[r].one],
    say: (r, c) => (c < rows[r].sums.length ? `${NAMES[rows[r].one]}[${c}] = ${number(rows[r].sums[c])}` : ""),
    pick: (r, c) => c < rows[r].sums.length && go({ matrix: rows[r].one, row: c }),
    chosen: () => [Math.max(0, rows.findIndex(({ one }) => one === at.matrix)), at.row],
  });
}

// The matrix: above it x, whose numbers its columns multiply.
function matrixMap(state, at, go) {
  let now = null;
  let largest = 1;
  let most = 1;
  return heat(state, {
    name: "The matrix, and above it the vector x",
    hint: "The first row is x. The colours of x go to its own largest number.",
    axes: () => [`rows of W_${at.matrix}`, `its first ${now?.columns} columns of ${state.explanation.width}`],
    legend: { title: "weight", largest: () => most, signed: true, write: number, tag: ["rounded", "to 1/127 of the largest"] },
    rows() {
      now = state.explanation.projection(at.matrix, state);
      if (!now) return 0;
      largest = Math.max(...now.x.subarray(0, now.columns).map(Math.abs));
      most = now.scale;
      return now.sums.length + 1;
    },
    columns: () => now?.columns ?? 0,
    size: { left: 44, width: [2, Infinity], height: 8, tall: 420 },
    colour: (r, c) => (r ? twoSided(now.drawn[(r - 1) * now.columns + c], 127) : twoSided(now.x[c], largest)),
    rowName: (r) => (r ? String(r - 1) : "x"),
    say: (r, c) => (r ? `W_${at.matrix}[${r - 1}, ${c}] ≈ ${number((now.drawn[(r - 1) * now.columns + c] * now.scale) / 127)}` : `x[${c}] = ${number(now.x[c])}`),
    pick: (r) => r && go({ row: r - 1 }),
    chosenRow: () => at.row + 1,
  });
}

function sumOf(state, at) {
  const { explanation } = state;
  const { x, sums, ids, weights, bias } = explanation.projection(at.matrix, state);
  const many = ids.length / sums.length;
  const from = at.row * many;
  const listed = times(many, (i) => ({ id: ids[from + i], weight: weights[from + i] }));
  const rest = sums[at.row] - (bias?.[at.row] ?? 0) - total(listed.map(({ id, weight }) => weight * x[id]));
  const name = `${at.matrix}[${at.row}]`;
  const rows = listed.map(({ id, weight }) => [`x[${id}] × W[${at.row}, ${id}]`, `${number(x[id])} × ${number(weight)}`, fixed(x[id] * weight)]);
  rows.push([`the other ${explanation.width - many}`, "", fixed(rest)]);
  if (bias) rows.push(["bias", "", fixed(bias[at.row])]);
  rows.push(marked("sum", [name, "", fixed(sums[at.row])]));
  return [
    make("h3", `${NAMES[at.matrix][0].toUpperCase()}${NAMES[at.matrix].slice(1)} of `, tokenOf(explanation, state.token), `, number ${at.row}`),
    table("One number of the vector, as a sum of products", ["", ["factors", "exact"], ["product", "derived"]], rows),
    remark("x is the residual stream after the layer's norm. ", state.attention.rope && at.matrix !== "v"
      ? "RoPE rotates this vector before the score." : "", " An engine whose kernel rounds x gives a slightly different number."),
  ];
}
