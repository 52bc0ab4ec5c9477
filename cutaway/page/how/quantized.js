// The same text with the weights in other types: bytes, KL divergence by position, and the next token.

import { heatmap } from "../charts/heatmap.js";
import { brief } from "../charts/scales.js";
import { button, make, number, percent, problem, quoted, scrolling, table, total } from "../elements.js";

const TYPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"];

export const quantized = {
  title: "Quantisations",
  about: "Fewer bits a weight take fewer bytes to store and to read for each token. What it costs is how far the model's predictions move: the KL divergence at each position of the text.",
  build,
};

async function build({ source, text, page, announce }) {
  const { explanation } = (await page()).states[0];
  const known = new Map();
  const results = make("div.stack");
  const wrong = problem();
  const ask = async (type) => {
    known.set(type, await source.ask("quantized", { text: text(), type }));
    results.replaceChildren(...drawing([...known.values()].sort((a, b) => b.bytes - a.bytes), explanation));
  };
  if (!source.live) {
    for (const type of TYPES) await ask(type).catch(() => null);
    return results;
  }
  const buttons = [...TYPES, "All"].map((type) => button(type, async ({ target }) => {
    target.disabled = true;
    wrong.textContent = "";
    try {
      for (const one of type === "All" ? TYPES : [type]) {
        announce?.(`Quantizing to ${one}`);
        await ask(one);
      }
    } catch (error) {
      wrong.textContent = error.message;
    }
    target.disabled = false;
  }));
  return make("div.stack", make("div.buttons", { role: "group", label: "Types" }, buttons), wrong, results);
}

function drawing(all, explanation) {
  const mean = ({ kl }) => total(kl) / kl.length;
  const rows = all.map((one) => [one.type, brief(one.bytes), percent(one.bytes / one.bytes_before), number(mean(one)), number(Math.max(...one.kl)),
    quoted(one.next.reduce((a, b) => (b.after > a.after ? b : a)).text)]);
  const next = all[0].next.slice(0, 5).map(({ id, text, before }) => [quoted(text), percent(before),
    ...all.map((one) => percent(one.next.find((each) => each.id === id)?.after ?? 0))]);
  return [
    scrolling("The types", table("What each type costs", ["type", ["bytes", "exact"], ["of the model's", "derived"], ["mean KL, nats", "derived"],
      ["largest KL", "derived"], "next token"], rows)),
    heatmap({
      title: "KL divergence by position", note: "Of the next-token distribution after each token, from that of the loaded model.",
      rows: { title: "type", labels: all.map(({ type }) => type) }, columns: { title: "token", labels: all[0].kl.map((_, t) => explanation.tokenText(t)) },
      values: all.map(({ kl }) => kl), value: "KL, nats",
    }, []),
    make("h3", "The next token"),
    scrolling("The next token by type", table("Probability of the likeliest next tokens", ["token", ["the model", "derived"], ...all.map(({ type }) => [type, "derived"])], next)),
  ];
}
