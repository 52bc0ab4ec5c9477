// Attention: every head at a glance, and the chosen one large.

import { palette, shade } from "../colours.js";
import { bar, drawn, make, marked, percent, remark, signed, table, tokenOf } from "../elements.js";
import { PARTS, heat } from "../heat.js";
import { headChooser } from "./choosers.js";
import { picture } from "../tiles.js";

const THUMB = 32;
export const RECURRENT = "This layer is recurrent: each head keeps the past in one state, so it has no attention weights.";

export const attention = {
  title: "Attention",
  about: ({ layers, mostHeads }) =>
    `In each of ${layers} × ${mostHeads} heads every token spreads attention weights over the tokens before it; `
    + "choose a head to see its attention map large.",
  build,
};

function build(state) {
  const glance = allHeads(state);
  const large = oneHead(state);
  const title = make("h3");
  const row = make("div");
  const update = () => {
    title.textContent = `Layer ${state.layer}, head ${state.head}`;
    row.replaceChildren(...weightsOf(state));
    glance.update();
    large.update();
  };
  const whole = make("div.stack",
    make("h3", "Every head"), glance.whole, make("div.chooser", title, headChooser(state)),
    make("div.two.wide", row, large.whole));
  return { whole, update, hover: (t) => [glance, large].forEach((map) => map.hover(t)) };
}

function allHeads(state) {
  const { explanation } = state;
  const thumbs = new Map();
  let across = true;
  const at = (r, c) => (across ? [c, r] : [r, c]);
  return heat(state, {
    name: "Every head's attention map",
    hint: "Layers run from first to last. In each small map a row is a query, a column a key.",
    legend: { title: "attention weight", ...PARTS, tag: ["rounded", "to one pixel and one byte"] },
    axes: () => (across ? ["head", "layer"] : ["layer", "head"]),
    rows(room) {
      across = (room - 44) / explanation.layers >= 24;
      return across ? explanation.mostHeads : explanation.layers;
    },
    columns: () => (across ? explanation.layers : explanation.mostHeads),
    size: { left: 44, top: 26, width: [24, 64], tall: 640 },
    paint(drawing, x, y, w, h, r, c) {
      const [layer, head] = at(r, c);
      if (head >= explanation.heads[layer]) return;
      drawing.imageSmoothingEnabled = explanation.length > 8;
      drawing.drawImage(thumb(explanation, thumbs, layer, head), x, y, w - 1, h - 1);
    },
    lit(drawing, t, view, x, y, size) {
      drawing.globalAlpha = 0.55;
      const side = size.width - 2;
      const thick = Math.max(1, side / explanation.length);
      for (let r = view.fromRow; r < view.toRow; r++) {
        for (let c = view.fromColumn; c < view.toColumn; c++) {
          drawing.fillRect(x(c), y(r) + (t / explanation.length) * side, side, Math.min(thick, 1.5));
          drawing.fillRect(x(c) + (t / explanation.length) * side, y(r), Math.min(thick, 1.5), side);
        }
      }
    },
    rowName: (r) => (across ? `h ${r}` : `${r}`),
    columnName: (c) => (across ? `${c}` : `h${c}`),
    say(r, c) {
      const [layer, head] = at(r, c);
      if (head >= explanation.heads[layer]) return "This layer has fewer heads.";
      const contribution = explanation.array(`contribution.${layer}`)[head];
      return `Layer ${layer}, head ${head}: contribution of ${signed(contribution)} logits to ${drawn(explanation.attribution.text)}.`;
    },
    pick(r, c) {
      const [layer, head] = at(r, c);
      if (head < explanation.heads[layer]) state.set({ layer, head });
    },
    chosen: () => (across ? [state.head, state.layer] : [state.layer, state.head]),
  });
}

// A head's map in small: the largest weight of each pixel. Drawn again when the colours change.
function thumb(explanation, thumbs, layer, head) {
  const { pixels } = palette();
  const key = layer * 4096 + head;
  if (thumbs.pixels !== pixels) thumbs.clear();
  thumbs.pixels = pixels;
  if (thumbs.has(key)) return thumbs.get(key);
  const side = Math.min(explanation.length, THUMB);
  const most = new Float32Array(side * side);
  for (let q = 0; q < explanation.length; q++) {
    const row = Math.floor((q * side) / explanation.length) * side;
    for (let s = 0; s <= q; s++) {
      const cell = row + Math.floor((s * side) / explanation.length);
      most[cell] = Math.max(most[cell], explanation.keptWeight(layer, head, q, s));
    }
  }
  thumbs.set(key, picture([...most].map((weight) => shade(weight)), side, pixels));
  return thumbs.get(key);
}

// How sure a weight of the chosen head is: computed here from exact queries and keys, or as it is kept.
function weightTag({ explanation, layer, head }) {
  if (explanation.isDetailed(layer, head)) return ["derived", "from queries and keys"];
  if (explanation.attention[layer].recurrent) return ["exact"];
  return ["rounded", explanation.pattern(layer).levels === 255 ? "by 0.4 points at most" : "by 7 points at most"];
}

function oneHead(state) {
  const { explanation } = state;
  const about = (weight) => (state.detailed ? percent(weight) : `about ${Math.round(weight * 100)}%`);
  let key = null;
  let rows = [];
  const weights = (q) => {
    const now = `${state.layer}.${state.head}`;
    if (key !== now) [key, rows] = [now, []];
    return (rows[q] ??= explanation.weights(state.layer, state.head, q));
  };
  return heat(state, {
    name: "Attention map of the chosen head",
    hint: "The weights of each row sum to 1. Choose a cell to see how its weight is computed below.",
    legend: { title: "attention weight", ...PARTS, tag: () => weightTag(state) },
    axes: ["query", "key"],
    ...explanation.tokenRows,
    ...explanation.tokenColumns,
    size: { left: explanation.length > 40 ? 84 : 96, top: 74, slant: true, width: [3, 48], tall: 720 },
    colour: (r, c) => (c <= r ? shade(weights(r)[c]) : null),
    say: (r, c) => (state.attention.recurrent ? RECURRENT : c <= r
      ? `Attention weight of ${explanation.shown(r)} for ${c === r ? "itself" : explanation.shown(c)}: ${about(weights(r)[c])}`
      : `${explanation.shown(r)} does not attend to ${explanation.shown(c)}, which comes later`),
    pick: (r, c) => state.set({ token: r, source: c }),
    chosen: () => [state.token, state.source],
  });
}

function weightsOf(state) {
  const { explanation } = state;
  if (state.attention.recurrent) return [remark(RECURRENT)];
  const exact = state.detailed;
  const weights = [...explanation.weights(state.layer, state.head, state.token).entries()];
  const best = weights.sort((a, b) => b[1] - a[1]).slice(0, 8);
  const rows = best.map(([s, weight]) => marked("row",
    [tokenOf(explanation, s), exact ? percent(weight) : `≈ ${Math.round(weight * 100)}%`, bar(weight)], s));
  return [
    make("p", tokenOf(explanation, state.token), " attends to"),
    table("The largest attention weights of the chosen token", ["token", ["weight", ...weightTag(state)], ""], rows),
  ];
}
