// The model as a diagram: each kind of block with its true sizes; a part opens with its weights and switches.

import { brief } from "../charts/scales.js";
import { LIVE, count, make, marked, remark, roving, scrolling, table } from "../elements.js";

export const architecture = {
  title: "The block",
  about: "A residual stream runs through all blocks. In each, attention moves information between tokens and the MLP works on each token alone; both add to the stream.",
  build,
};

async function build({ source }) {
  const found = await source.ask("architecture", {});
  const detail = make("div.part-detail", LIVE);
  const parts = [];
  const part = (name, text, show) => {
    const button = make("button", { type: "button", class: "part", tabindex: parts.length ? "-1" : "0", click: () => {
      parts.forEach((one) => one.setAttribute("aria-pressed", one === button));
      detail.replaceChildren(make("h3", name), ...show());
    } }, make("strong", name), make("span", text));
    parts.push(button);
    return button;
  };
  const norm = (name, kind) => make("span.part-norm", `${name}, ${kind}`);
  const blockOf = (block) => make("div.block",
    make("p.block-name", block.first === block.last ? `block ${block.first}` : `blocks ${block.first} to ${block.last}, ${block.last - block.first + 1} alike`),
    ...(block.parallel ? [remark("Attention and the MLP read the same stream, in parallel.")] : []),
    ...block.parts.flatMap((one) => [
      ...block.norms.filter((each) => each === `${one.name}_norm`).map(() => norm("norm", block.norm)),
      part(one.name === "mlp" ? "MLP" : `Attention: ${one.kind}`, sizesOf(one), () => partDetail(one)),
      ...block.norms.filter((each) => each === `${one.name}_post_norm`).map(() => norm("norm of the output", block.norm)),
      make("span.adds", "+ added to the stream")]),
    part("Switches of the block", `${block.switches.filter(({ usual }) => !usual).length} not as usual`, () => [switches(block.switches)]));
  const picture = make("div.diagram", { role: "group", label: "The parts, from the token to the logits" },
    part("Embedding", `${count(found.vocabulary)} × ${count(found.width)}`, () => [weights(found.outside)]),
    ...found.blocks.map(blockOf),
    part("Head", `${count(found.width)} → ${count(found.vocabulary)} logits${found.tied ? ", tied to the embedding" : ""}`, () => [weights(found.outside), switches(found.switches)]));
  roving(picture);
  parts.find((one) => one.textContent.startsWith("Attention"))?.click();
  return make("div.stack",
    make("p", `${brief(found.parameters)} parameters in ${brief(found.bytes)} bytes; ${count(found.context)} tokens of context.`),
    make("div.two.even", picture, detail));
}

function sizesOf({ name, sizes, parameters }) {
  const { heads, kv_heads: groups, key_size: key, hidden, experts, top_k: chosen, latent } = sizes;
  const text = name === "mlp" ? [experts ? `${experts} experts, ${chosen} for a token` : null, hidden ? `${count(hidden)} neurons` : null]
    : [heads ? `${heads} heads` : null, groups ? `${groups} key-value heads` : null, key ? `of ${key}` : null, latent ? `latent of ${latent}` : null];
  return [...text, `${brief(parameters)} parameters`].filter(Boolean).join(", ");
}

function partDetail({ weights: list, switches: all, bytes }) {
  return [remark(`${brief(bytes)} bytes in each block.`), weights(list), switches(all)];
}

function weights(list) {
  return scrolling("Weights", table("Weights", ["weight", ["shape", "exact"], "type", ["bytes", "exact"]],
    list.map(({ name, shape, type, bytes }) => [name, shape.join(" × "), type, count(bytes)])));
}

function switches(all) {
  const rows = [...all].sort((a, b) => a.usual - b.usual).map(({ name, value, usual }) => marked(usual ? null : "chosen", [name.replaceAll("_", " "), value, usual ? "" : "set by this model"]));
  return make("div.loose", table("Switches", ["switch", "value", ""], rows));
}
