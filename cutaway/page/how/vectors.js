// Words in the embedding table: a map of chosen ones, their neighbours, and an analogy by adding vectors.

import { plot } from "../charts/plot.js";
import { bar, chooser, fixed, form, labelled, make, percent, problem, quoted, remark, table, tag } from "../elements.js";

export const vectors = {
  title: "Embeddings",
  about: "Each id picks its row of a table. Rows of words that are used alike point alike, so that neighbours have a meaning, and sometimes a difference of rows has one.",
  build,
};

async function build(place) {
  const shown = make("div.stack");
  const asked = { words: null, analogy: null };
  const update = async () => shown.replaceChildren(...drawing(await place.source.ask("vectors", { ...(asked.words && { words: asked.words }), ...(asked.analogy && { analogy: asked.analogy }) })));
  await update();
  if (!place.source.live) return shown;
  const wrong = problem();
  const field = (id, name, value) => labelled(name, make("input", { id, value, size: "36", autocomplete: "off" }));
  const words = field("words", "words", "king, queen, man, woman, Paris, France, Rome, Italy, dog, cat");
  const analogy = field("analogy", "a, b, c of a − b + c", "Paris, France, Italy");
  const list = ([, input]) => input.value.split(",").map((one) => one.trim()).filter(Boolean);
  return make("div.stack", form("form.ask", async () => {
    Object.assign(asked, { words: list(words), analogy: list(analogy) });
    wrong.textContent = "";
    await update().catch((error) => { wrong.textContent = error.message; });
  }, make("p.field", words), make("p.field", analogy), make("button.small", "Draw"), wrong), shown);
}

function near(list) {
  return table("The nearest rows", ["token", ["cosine", "derived"], ""],
    list.map(({ text, cosine }) => [quoted(text), fixed(cosine), bar(cosine)]));
}

function drawing({ words, kept, analogy }) {
  const rows = make("div");
  const which = chooser("word", words.map(({ word }) => word), (at) => {
    const { token, whole, neighbours } = words[at];
    rows.replaceChildren(near(neighbours), ...(whole ? [] : [remark("The word is several tokens; this is the first, ", quoted(token), ".")]));
  });
  const map = plot({
    title: "The words on a plane", note: `The two directions of largest variance among these rows; they keep ${percent(kept)} of it.`,
    x: { title: "first component" }, y: { title: "second component" },
    series: [{ name: "words", points: true, line: false, x: words.map(({ at: [x] }) => x), y: words.map(({ at: [, y] }) => y), labels: words.map(({ word }) => word) }],
  });
  const [a, b, c] = analogy.words;
  return [map, make("div.two.even",
    make("div", { id: "neighbours" }, make("div.chooser", make("h3", "Neighbours"), which), rows),
    make("div", { id: "analogies" }, make("h3", `${a} − ${b} + ${c}`), near(analogy.found),
      remark("The three words themselves are left out", tag("derived"), ". Many analogies fail: a difference of two rows is more than one relation.")))];
}
