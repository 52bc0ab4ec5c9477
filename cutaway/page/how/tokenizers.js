// Tokenizers side by side on one text, and how two of them are learned from it, step by step.

import { LIVE, chooser, count, draw, drawn, fixed, make, marked, quoted, scrolling, slider, table, tag } from "../elements.js";

export const tokenizers = {
  title: "Tokenizers",
  about: "A model reads ids, not letters. Words need a vocabulary without end, characters make texts long; BPE merges frequent pairs, "
    + "Unigram keeps the pieces that make the text likeliest.",
  build,
};

async function build({ source, text }) {
  const found = await source.ask("tokenizers", { text: text() });
  return make("div.stack", sideBySide(found.cuts), learning(found.bpe), found.own.length ? merging(found.own) : null,
    rounds(found.unigram), lattice(found.unigram.lattice));
}

const pieceOf = (piece) => make("bdi.piece", drawn(piece));
const pieces = (list) => make("span.pieces", list.map(pieceOf));

function sideBySide(cuts) {
  const rows = cuts.map(({ name, pieces: list, vocabulary }) => [name, pieces(list), count(list.length), count(vocabulary)]);
  return make("div", make("h3", "The same text, cut by each"), scrolling("The text by each tokenizer", table("The text as each tokenizer cuts it",
    ["", "pieces", ["tokens", "exact"], ["vocabulary", "exact"]], rows)));
}

// A slider over steps: show(step) draws one.
function steps(name, last, show) {
  show(0);
  return slider(name, { min: 0, max: last, step: 1, value: 0 }, show, (value) => `${value} of ${last}`).whole;
}

// Symbols after these merges.
function merged(first, merges) {
  let symbols = first;
  for (const { pair: [left, right] } of merges) {
    const next = [];
    for (let i = 0; i < symbols.length; i++) {
      if (symbols[i] === left && symbols[i + 1] === right) {
        next.push(left + right);
        i++;
      } else next.push(symbols[i]);
    }
    symbols = next;
  }
  return symbols;
}

function learning({ words, merges, alphabet }) {
  const note = make("p", LIVE);
  const list = make("div");
  const control = steps("merges", merges.length, (step) => {
    const last = merges[step - 1];
    note.replaceChildren(...(last ? [`Merge ${step}: `, pieceOf(last.pair[0]), " + ", pieceOf(last.pair[1]), " → ", pieceOf(last.pair.join("")),
      `, the most frequent pair: ${count(last.count)} ${last.count === 1 ? "time" : "times"}`, tag("exact"), ". ", `Vocabulary: ${count(alphabet.length + step)}.`]
      : [`Every word is its characters. Vocabulary: ${count(alphabet.length)}.`]));
    list.replaceChildren(table("The words after these merges", ["word", ["times", "exact"], "symbols"],
      words.slice(0, 24).map(({ word, count: times }) => [quoted(word), count(times), pieces(merged([...word], merges.slice(0, step)))])));
  });
  return make("div", { id: "bpe" }, make("h3", "BPE, learned from this text"), control, note, scrolling("Words and their symbols", list));
}

function merging(own) {
  const line = make("p.big");
  const place = make("div");
  const which = chooser("piece", own.map(({ piece }) => drawn(piece)), (at) => {
    const { symbols, joined } = own[at];
    const merges = joined.map((pair) => ({ pair }));
    place.replaceChildren(steps("merges", merges.length, (step) => line.replaceChildren(pieces(merged(symbols, merges.slice(0, step))))));
  });
  return make("div", { id: "merging" }, make("div.chooser", make("h3", "The model's own merges"), which), place, line);
}

function rounds({ rounds: all }) {
  const note = make("p", LIVE);
  const best = make("div");
  const control = steps("rounds", all.length - 1, (at) => {
    const { pieces: many, log_likelihood: likelihood, removed, best: list } = all[at];
    note.replaceChildren(`${count(many)} pieces; log-likelihood of the text ${fixed(likelihood, 2)}`, tag("exact"), removed.length
      ? ". Pruning removes the pieces whose loss is least: " : ". Nothing is left to prune.", removed.length ? pieces(removed) : "");
    best.replaceChildren(table("The most probable pieces", ["piece", ["log probability", "exact"]],
      list.map(([piece, score]) => [pieceOf(piece), fixed(score, 3)])));
  });
  return make("div", { id: "unigram" }, make("h3", "Unigram, learned from this text"), control, note, best);
}

// Every cut of a word as arcs over its characters; the best is thick.
function lattice(words) {
  const picture = make("div");
  const rows = make("div");
  const which = chooser("word", words.map(({ word }) => drawn(word)), (at) => {
    const { word, edges } = words[at];
    picture.replaceChildren(arcs(word, edges));
    const letters = [...word];
    rows.replaceChildren(table("The pieces of the word", ["piece", ["from", "exact"], ["log probability", "exact"], ""],
      edges.map(([start, stop, score, best]) => marked(best ? "chosen" : null,
        [pieceOf(letters.slice(start, stop).join("")), start, fixed(score, 3), best ? "in the best cut" : ""]))));
  });
  return make("div", { id: "lattice" }, make("div.chooser", make("h3", "Every cut of a word before pruning, and the likeliest"), which),
    scrolling("Cuts of the word as arcs", picture), make("details", make("summary", "The pieces as a table"), rows));
}

function arcs(word, edges) {
  const letters = [...word];
  const wide = 48;
  const high = 30 + 14 * Math.max(...edges.map(([start, stop]) => stop - start));
  const parts = edges.map(([start, stop, , best]) => draw("path", { class: best ? "cut-arc best" : "cut-arc",
    d: `M${start * wide + 6} ${high}C${start * wide + 6} ${high - 18 * (stop - start) - 4} ${stop * wide - 6} ${high - 18 * (stop - start) - 4} ${stop * wide - 6} ${high}` }));
  const names = letters.map((letter, i) => draw("text", { x: (i + 0.5) * wide, y: high + 18, "text-anchor": "middle" }, drawn(letter)));
  return draw("svg.lattice", { viewBox: `0 0 ${letters.length * wide} ${high + 26}`, width: letters.length * wide, height: high + 26, role: "img",
    label: `Best cut: ${edges.filter(([, , , best]) => best).map(([start, stop]) => letters.slice(start, stop).join("")).join(" | ")}` }, parts, names);
}
