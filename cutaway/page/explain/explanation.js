// What the model did with one text. Reads the page's block of data; every number on the page comes from here.

import { drawn, times } from "../elements.js";

const TYPES = { f4: Float32Array, u4: Uint32Array, u2: Uint16Array, u1: Uint8Array, i1: Int8Array };

// A document of explanations, from its bytes.
export function read(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  data.explanations = data.explanations.map((facts) => new Explanation(facts, buffer, 4 + size));
  return data;
}

class Explanation {
  constructor(facts, buffer, start) {
    Object.assign(this, facts);
    this.length = facts.tokens.length;
    this.buffer = buffer;
    this.start = start;
    this.detailedHeads = new Set(facts.detailed.map(([layer, head]) => `${layer}.${head}`));
  }

  has(name) {
    return name in this.arrays;
  }

  array(name) {
    const [type, shape, offset] = this.arrays[name];
    const size = shape.reduce((a, b) => a * b, 1);
    return new TYPES[type](this.buffer, this.start + offset, size);
  }

  // A row of an array whose last axis is the row.
  row(name, index) {
    const width = this.arrays[name][1].at(-1);
    return this.array(name).subarray(index * width, (index + 1) * width);
  }

  tokenText(t) {
    return this.tokens[t].text;
  }

  // A token made visible.
  shown(t) {
    return drawn(this.tokens[t].text);
  }

  // What a map needs to have a row, or a column, for each token.
  get tokenRows() {
    return { rows: this.length, rowName: (r) => this.shown(r), rowToken: (r) => r };
  }

  get tokenColumns() {
    return { columns: this.length, columnName: (c) => this.shown(c), columnToken: (c) => c };
  }

  get mostHeads() {
    return Math.max(...this.heads);
  }

  // The attention weight of query q for key s, as kept: to within half a percent, or 7 in a long text.
  keptWeight(layer, head, q, s) {
    if (s > q || this.attention[layer].recurrent) return 0;
    const { cells, width, levels } = this.pattern(layer);
    const at = (q * (q + 1)) / 2 + s;
    const code = levels === 255 ? cells[head * width + at] : (cells[head * width + (at >> 1)] >> (at & 1 ? 0 : 4)) & 15;
    return (code / levels) ** 2;
  }

  pattern(layer) {
    const width = this.arrays[`pattern.${layer}`][1][1];
    const whole = (this.length * (this.length + 1)) / 2;
    return { cells: this.array(`pattern.${layer}`), width, levels: width === whole ? 255 : 15 };
  }

  isDetailed(layer, head) {
    return this.detailedHeads.has(`${layer}.${head}`);
  }

  // Query of token q, key and value of token s.
  vectors(layer, head, q, s) {
    const group = Math.floor(head / this.attention[layer].group_size);
    return {
      group,
      q: this.row(`q.${layer}.${head}`, q),
      k: this.row(`k.${layer}.${group}`, s),
      v: this.row(`v.${layer}.${group}`, s),
    };
  }

  // What a head's matrix q, k or v makes of the chosen token: x, the matrix to be drawn, the largest products, the sums.
  projection(matrix, { layer, head, token }) {
    const { heads, first, scales } = this.projections;
    if (token < first || !heads.some(([i, h]) => i === layer && h === head)) return null;
    const at = `${matrix}.${layer}.${matrix === "q" ? head : Math.floor(head / this.attention[layer].group_size)}`;
    if (!(at in scales)) return null;
    const [x, ids, weights, sums] = [`input.${layer}`, `product.ids.${at}`, `product.weights.${at}`, `sums.${at}`].map((name) => this.row(name, token - first));
    const bias = this.has(`bias.${at}`) ? this.array(`bias.${at}`) : null;
    return { x, ids, weights, sums, bias, drawn: this.array(`drawn.${at}`), columns: this.arrays[`drawn.${at}`][1][1], scale: scales[at] };
  }

  visible(layer, q, s) {
    return this.has(`visible.${layer}`) ? this.row(`visible.${layer}`, q)[s] === 1 : s <= q;
  }

  // What this layer adds to the score of a key so many tokens back, null where it adds nothing.
  bias(layer, head, back) {
    return this.has(`bias.${layer}`) ? this.row(`bias.${layer}`, head)[back] : null;
  }

  // The softmax of a detailed head's row, computed from its queries and keys.
  softmax(layer, head, q) {
    const { scale, softcap } = this.attention[layer];
    const scores = [];
    for (let s = 0; s <= q; s++) {
      const pair = this.vectors(layer, head, q, s);
      const raw = dot(pair.q, pair.k) * scale;
      const capped = (softcap ? softcap * Math.tanh(raw / softcap) : raw) + (this.bias(layer, head, q - s) ?? 0);
      scores.push(this.visible(layer, q, s) ? capped : -Infinity);
    }
    const sink = this.has(`sinks.${layer}`) ? this.array(`sinks.${layer}`)[head] : null;
    const best = Math.max(...scores, sink ?? -Infinity);
    const exps = scores.map((score) => Math.exp(score - best));
    const sinkExp = sink === null ? 0 : Math.exp(sink - best);
    const sum = exps.reduce((a, b) => a + b, sinkExp);
    return { scores, best, exps, sum, sink, sinkExp, weights: exps.map((one) => one / sum) };
  }

  // A query's attention weights: exact for a detailed head, as kept for another.
  weights(layer, head, q) {
    if (this.isDetailed(layer, head)) return this.softmax(layer, head, q).weights;
    return times(q + 1, (s) => this.keptWeight(layer, head, q, s));
  }
}

export function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}
