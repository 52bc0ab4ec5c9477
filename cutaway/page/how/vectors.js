// Words in the embedding table: a map of chosen ones, their neighbours, and an analogy by adding vectors.

import { plot } from "../charts/plot.js";
import { bar, fixed, make, options, percent, quoted, remark, select, table, tag } from "../elements.js";

export const vectors = {
  title: "Embeddings",
  about: "Each id picks its row of a table. Rows of words that are used alike point alike, so that neighbours have a meaning, and sometimes a difference of rows has one.",
  async build(place) {
    const shown = make("div", { class: "stack" });
    const asked = { words: null, analogy: null };
    const update = async () => shown.replaceChildren(...drawing(await place.source.ask("vectors", { ...(asked.words && { words: asked.words }), ...(asked.analogy && { analogy: asked.analogy }) })));
    await update();
    if (!place.source.live) return shown;
    const problem = make("p", { class: "bad", role: "alert" });
    const field = (id, name, value) => [make("label", { for: id }, name), make("input", { id, type: "text", value, size: "36", autocomplete: "off" })];
    const words = field("words", "words", "king, queen, man, woman, Paris, France, Rome, Italy, dog, cat");
    const analogy = field("analogy", "a, b, c of a − b + c", "Paris, France, Italy");
    const list = ([, input]) => input.value.split(",").map((one) => one.trim()).filter(Boolean);
    const form = make("form", { class: "ask", submit: async (event) => {
      event.preventDefault();
      Object.assign(asked, { words: list(words), analogy: list(analogy) });
      problem.textContent = "";
      try {
        await update();
      } catch (error) {
        problem.textContent = error.message;
      }
    } }, make("p", { class: "field" }, words), make("p", { class: "field" }, analogy), make("button", { type: "submit", class: "small" }, "Draw"), problem);
    return make("div", { class: "stack" }, form, shown);
  },
};

function near(list) {
  return table("The nearest rows", [["token", "left"], ["cosine", "right", "derived"], ["", "left"]],
    list.map(({ text, cosine }) => [quoted(text), fixed(cosine), bar(cosine)]));
}

function drawing({ words, kept, analogy }) {
  let at = 0;
  const rows = make("div", {});
  const which = select("word", (value) => {
    at = value;
    update();
  });
  const update = () => {
    options(which.input, words.map(({ word }) => word), at);
    const { token, whole, neighbours } = words[at];
    rows.replaceChildren(near(neighbours), ...(whole ? [] : [remark("The word is several tokens; this is the first, ", quoted(token), ".")]));
  };
  update();
  const map = plot({
    title: "The words on a plane", note: `The two directions of largest variance among these rows; they keep ${percent(kept)} of it.`,
    x: { title: "first component" }, y: { title: "second component" },
    series: [{ name: "words", points: true, line: false, x: words.map(({ at: [x] }) => x), y: words.map(({ at: [, y] }) => y), labels: words.map(({ word }) => word) }],
  });
  const [a, b, c] = analogy.words;
  return [map, make("div", { class: "two even" },
    make("div", { id: "neighbours" }, make("div", { class: "chooser" }, make("h3", {}, "Neighbours"), which.whole), rows),
    make("div", { id: "analogies" }, make("h3", {}, `${a} − ${b} + ${c}`), near(analogy.found),
      remark("The three words themselves are left out", tag("derived"), ". Many analogies fail: a difference of two rows is more than one relation.")))];
}
