// Attention mechanisms on the same sentence, in the model's sizes: mask, cost and KV cache.

import { heatmap } from "../charts/heatmap.js";
import { plot } from "../charts/plot.js";
import { button, chooser, make, remark, table } from "../elements.js";

const BESIDE = ["mha", "gqa", "mla", "local", "linear"];

export const mechanisms = {
  title: "Attention kinds",
  about: "The mask says which keys a query may see. It decides what prefill costs, and what the cache must hold of a text; a recurrent kind holds one state, however long the text is.",
  build,
};

async function build({ source, text, page }) {
  const found = await source.ask("mechanisms", { text: text() });
  const { explanation } = (await page()).states[0];
  const token = (i) => (i < explanation.length ? explanation.tokenText(i) : String(i));
  const mask = make("div");
  const words = make("div");
  const charts = make("div.charts");
  const which = chooser("kind", found.kinds.map(({ kind }) => (found.own.includes(kind) ? `${kind} (this model)` : kind)), (at) => {
    const one = found.kinds[at];
    const names = { labels: [...(one.mask ?? [])].map((_, i) => token(i)) };
    mask.replaceChildren(...(one.mask ? [heatmap({ title: "Mask", rows: { title: "query", ...names }, columns: { title: "key", ...names },
      values: one.mask.map((row) => [...row].map((cell) => Number(cell === "#"))), value: "seen", high: 1 }, [])] : []));
    words.replaceChildren(...aboutKind(one));
    charts.replaceChildren(...costs(found, one));
  }, Math.max(0, found.kinds.findIndex(({ kind }) => kind === found.own[0])));
  return make("div.stack", make("div.chooser", which), make("div.two.even", words, mask), charts, await aligned(source, text));
}

// Bahdanau's attention at its first task: a small translator that spells the sentence's words backwards.
async function aligned(source, text) {
  const place = make("div.charts");
  const show = async () => {
    const { words, steps } = await source.ask("alignments", { text: text() });
    place.replaceChildren(...words.map(({ word, written, weights }) => heatmap({
      title: `${word} → ${written}`, note: `Trained for ${steps} steps on random letters.`, rows: { title: "written", labels: [...written] },
      columns: { title: "read", labels: [...word] }, values: weights, value: "attention weight", high: 1,
    }, [])));
    if (!words.length) place.textContent = "The sentence has no word of 3 to 8 Latin letters.";
  };
  const train = source.live ? button("Train it, and align the sentence's words", async () => {
    train.disabled = true;
    await show().catch((error) => { place.textContent = error.message; });
    train.disabled = false;
  }) : null;
  if (!train) await show().catch((error) => { place.textContent = error.message; });
  return make("div.stack", { id: "alignments" }, make("h3", "Alignments (Bahdanau, 2014)"),
    make("p", "A recurrent network reads a word's letters, another writes them backwards, and attends at each step to what was read."), train && make("p", train), place);
}

function aboutKind({ summary, caption, formulas, options: own }) {
  const listed = Object.entries(own).filter(([, value]) => value !== null && value !== false).map(([key, value]) => `${key} ${value}`).join(", ");
  const rows = [["prefill, multiplications", formulas.prefill], ["decode, multiplications", formulas.decode ?? "none"], ["numbers in the cache", formulas.state]];
  return [make("p", summary), remark(caption),
    table("What it costs, in one layer", ["", "formula"], rows.map(([what, formula]) => [what, make("code", formula)])),
    remark(`n tokens, d width, h heads, g key-value heads, k and v their sizes${listed ? `; here ${listed}` : ""}.`)];
}

function costs({ lengths, kinds }, chosen) {
  const shown = kinds.filter(({ kind }) => BESIDE.includes(kind) || kind === chosen.kind);
  const one = (title, key, unit) => plot({
    title, x: { title: "tokens of text", log: true }, y: { title: unit, log: true },
    series: shown.map((each, i) => ({ name: each.kind, line: true, color: i, x: lengths, y: each[key].map((value) => value || null) })),
  });
  return [one("KV cache of a layer", "cache", "bytes, float16"), one("Prefill of a layer", "prefill", "multiplications"), one("The next token, in a layer", "decode", "multiplications")];
}
