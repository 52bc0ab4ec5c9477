// Embeddings: the row that each id picks, as colours, and the rows that point most nearly the same way.

const embeddings = {
  title: "Embeddings",
  said({ embeddings: made, width }) {
    const learned = made.learned_positions ? ", and a row for its position is added" : "";
    return `Each id picks its row of ${count(width)} numbers from a table of ${count(made.table[0])}${learned}. `
      + "Tokens that are used alike have rows that point alike.";
  },
  build(state) {
    const { story } = state;
    const near = make("div", { class: "near" });
    const { largest, shown } = story.vectorStrip;
    const map = heat(state, {
      name: "Embeddings as colours: a row a token, a column a number",
      hint: `The first ${shown} numbers of what enters the first block; warm above nothing, cool below.`,
      rows: () => story.length,
      columns: () => shown,
      size: (width) => ({
        left: 92, top: 0, width: Math.max(2, Math.floor((width - 92) / shown)), height: story.length > 24 ? 14 : 22, tall: 380,
      }),
      colour: (r, c) => twoSided(story.row("vectors", r)[c], 127),
      rowName: (r) => drawn(story.tokenText(r)),
      rowToken: (r) => r,
      say: (r, c) => `${drawn(story.tokenText(r))}, number ${c}: about ${fixed((story.row("vectors", r)[c] / 127) * largest, 3)}`,
      pick: (r) => state.set({ token: r }),
    });
    const update = () => {
      const { norm, ids, cosines } = story.neighbours[state.token];
      near.replaceChildren(
        make("h3", {}, "Nearest to ", tokenOf(story, state.token)),
        table("Nearest rows of the table by cosine", [["token", "left"], ["cosine", "right"], ["", "left"]],
          ids.map((id, i) => [word(story, id), fixed(cosines[i], 3), bar(cosines[i])])),
        make("p", { class: "quiet" }, `Its row is ${number(norm)} long.`),
      );
      map.update();
    };
    return { whole: make("div", { class: "two" }, near, map.whole), update, hover: map.hover };
  },
};
