// Head sharing: which query heads read which key and value head, and what the cache holds of a token.

import { bar, count, draw, make, marked, remark, roving, scrolling, table, times } from "../elements.js";
import { RECURRENT } from "./attention.js";
import { layerChooser } from "./choosers.js";

const NAMES = { 1: "Multi-query attention (MQA)" };

export const sharing = {
  title: "Head sharing",
  about: () => "Keys and values are kept for every token of the context, so that heads share them: all their own (MHA), in groups "
    + "(GQA), one for all (MQA), or all computed from one small latent (MLA).",
  build,
};

function build(state) {
  const { explanation } = state;
  const picture = make("div");
  const sizes = make("div");
  const update = () => {
    const facts = state.attention.sharing;
    picture.replaceChildren(...(facts ? drawing(state, facts) : [remark(RECURRENT)]));
    sizes.replaceChildren(...(facts ? cacheSizes(facts) : []));
  };
  return { whole: make("div.stack", make("div.chooser", layerChooser(state)), picture, sizes), update };
}

function nameOf({ kind, heads, groups, latent }) {
  if (latent) return "Multi-head latent attention (MLA)";
  if (groups === heads) return `Multi-head attention (MHA)${kind === "mha" ? "" : `, ${kind}`}`;
  return NAMES[groups] ?? `Grouped-query attention (GQA), ${heads / groups} query heads a group`;
}

function drawing(state, facts) {
  const { heads, latent, rope_dim: rotated, lender } = facts;
  const groups = latent ? heads : facts.groups;
  const each = heads / groups;
  const focused = document.activeElement?.dataset?.head;
  const queries = times(heads, (h) => make("button", {
    type: "button", class: "head-query", "data-head": h, tabindex: h === state.head ? "0" : "-1",
    "aria-pressed": h === state.head, label: `Query head ${h} reads key-value head ${Math.floor(h / each)}`,
    click: () => state.set({ head: h }),
  }, h));
  const own = Math.floor(Math.min(state.head, heads - 1) / each);
  const row = (name, ...parts) => make("div.head-row", make("span.head-name", name), make("div.head-cells", parts));
  const cells = times(groups, (g) => make("span", { class: g === own ? "head-key chosen" : "head-key" }, g));
  const wires = (from, to, lit) => make("div.head-row", make("span"), lines(from, to, lit));
  const picture = make("div.heads", { css: { "--heads": heads } },
    row("queries", ...queries), wires(heads, groups, [state.head, own]), row("keys, values", ...cells),
    ...(latent ? [wires(groups, 1, [own, 0]), row("latent", make("span.head-key.chosen", `${latent} numbers, and ${rotated} rotated`))] : []));
  roving(picture);
  const note = lender === null ? "" : ` It reads the keys and values of layer ${lender}, and keeps none.`;
  if (focused !== undefined) requestAnimationFrame(() => picture.querySelector(`[data-head="${state.head}"]`)?.focus());
  return [make("h3", nameOf(facts)), scrolling("Query heads, and the heads that they read", picture),
    remark(`Query head ${Math.min(state.head, heads - 1)} reads key-value head ${own}, ${each === 1 ? "alone" : `with ${each - 1} others`}.${note}`)];
}

// A line from each upper head to the lower one that it reads.
function lines(from, to, [litFrom, litTo]) {
  const each = from / to;
  const all = times(from, (i) => {
    const down = Math.floor(i / each);
    const lit = down === litTo && (i === litFrom || to === 1) ? " lit" : "";
    return draw("line", { class: `wire${lit}`, x1: i + 0.5, y1: 0, x2: (down + 0.5) * each, y2: 1, "vector-effect": "non-scaling-stroke" });
  });
  return draw("svg", { viewBox: `0 0 ${from} 1`, preserveAspectRatio: "none", class: "wires", "aria-hidden": "true" }, all);
}

// What the cache would hold of a token in this layer if its heads shared otherwise.
function cacheSizes({ heads, groups, key, value, latent, rope_dim: rotated, bytes, lender, kind }) {
  const alone = 2 * (key + value);
  const kinds = [["MHA: each head its own", heads * alone]];
  if (!latent && groups !== heads && groups !== 1) kinds.push([`GQA: ${groups} shared`, groups * alone]);
  kinds.push(["MQA: one for all", alone]);
  if (latent) kinds.push([`MLA: a latent of ${latent} + ${rotated}`, 2 * (latent + rotated)]);
  const rows = kinds.map(([name, size]) => marked(size === bytes ? "chosen" : null, [name, count(size), bar(size / kinds[0][1])]));
  const here = kinds.some(([, size]) => size === bytes) || lender !== null ? "" : ` This layer (${kind}) keeps ${count(bytes)} bytes.`;
  return [make("h3", "KV cache of one token in this layer"),
    table("Bytes of the KV cache by how heads share", ["", ["bytes, float16", "derived"], ""], rows),
    remark(`A key has ${key} numbers, a value ${value}.${here}`)];
}
