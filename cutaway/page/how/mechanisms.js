// Attention mechanisms on the same sentence, in the model's sizes: mask, cost and KV cache.

import { plot } from "../charts/plot.js";
import { palette } from "../colours.js";
import { drawn, make, options, select, table } from "../elements.js";
import { clamp, heat } from "../heat.js";

const BESIDE = ["mha", "gqa", "mla", "local", "linear"];

export const mechanisms = {
  title: "Attention kinds",
  about: "The mask says which keys a query may see. It decides what prefill costs, and what the cache must hold of a text; a recurrent kind holds one state, however long the text is.",
  async build({ source, text, page }) {
    const found = await source.ask("mechanisms", { text: text() });
    const { explanation } = (await page()).states[0];
    let at = Math.max(0, found.kinds.findIndex(({ kind }) => kind === found.own[0]));
    const name = (i) => (i < explanation.length ? drawn(explanation.tokenText(i)) : String(i));
    const which = select("kind", (value) => {
      at = value;
      update();
    });
    const still = { hovered: null, page: { later: (_, task) => requestAnimationFrame(task), hover() {} } };
    const map = heat(still, {
      name: "The mask: a row a query, a column a key",
      hint: "Filled: the query sees the key.",
      axes: () => ["query", "key"],
      rows: () => found.kinds[at].mask?.length ?? 0,
      columns: () => found.kinds[at].mask?.[0].length ?? 0,
      size: (width) => ({ left: 92, top: 74, slant: true, height: 20, width: clamp(Math.floor((width - 92) / (found.kinds[at].mask?.length ?? 1)), 14, 36) }),
      colour: (r, c) => (found.kinds[at].mask[r][c] === "#" ? palette().accent : palette().paper),
      rowName: name,
      columnName: name,
      say: (r, c) => `${name(r)} ${found.kinds[at].mask[r][c] === "#" ? "sees" : "does not see"} ${name(c)}`,
    });
    const words = make("div", {});
    const charts = make("div", { class: "charts" });
    const update = () => {
      options(which.input, found.kinds.map(({ kind }) => (found.own.includes(kind) ? `${kind} (this model)` : kind)), at);
      const one = found.kinds[at];
      map.whole.hidden = !one.mask;
      words.replaceChildren(...aboutKind(one));
      charts.replaceChildren(...costs(found, one));
      map.update();
    };
    requestAnimationFrame(update);
    return make("div", { class: "stack" }, make("div", { class: "chooser" }, which.whole), make("div", { class: "two even" }, words, map.whole), charts);
  },
};

function aboutKind({ summary, caption, formulas, options: own }) {
  const listed = Object.entries(own).filter(([, value]) => value !== null && value !== false).map(([key, value]) => `${key} ${value}`).join(", ");
  const rows = [["prefill, multiplications", formulas.prefill], ["decode, multiplications", formulas.decode ?? "none"], ["numbers in the cache", formulas.state]];
  return [make("p", {}, summary), make("p", { class: "quiet" }, caption),
    table("What it costs, in one layer", [["", "left"], ["formula", "left"]], rows.map(([what, formula]) => [what, make("code", {}, formula)])),
    make("p", { class: "quiet" }, `n tokens, d width, h heads, g key-value heads, k and v their sizes${listed ? `; here ${listed}` : ""}.`)];
}

function costs({ lengths, kinds }, chosen) {
  const shown = kinds.filter(({ kind }) => BESIDE.includes(kind) || kind === chosen.kind);
  const one = (title, key, unit) => plot({
    title, x: { title: "tokens of text", log: true }, y: { title: unit, log: true },
    series: shown.map((each, i) => ({ name: each.kind, line: true, color: i, x: lengths, y: each[key].map((value) => value || null) })),
  });
  return [one("KV cache of a layer", "cache", "bytes, float16"), one("Prefill of a layer", "prefill", "multiplications"), one("The next token, in a layer", "decode", "multiplications")];
}
