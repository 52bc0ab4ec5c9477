// Tokens: bytes, ids, and how the pieces were merged.

const tokens = {
  title: "Tokens",
  said: () => "The text is cut into pieces that the vocabulary knows; from here on the model sees only their numbers.",
  build(state) {
    const { story } = state;
    const near = make("div", { class: "near" });
    const rows = story.tokens.map(([id, bytes, special], t) => ({
      attributes: { "data-t": t, class: "row" },
      cells: [String(t), tokenOf(story, t), String(id), bytes, special ? "control token" : ""],
    }));
    const all = table("Every token of the text",
      [["", "right"], ["token", "left"], ["id", "right"], ["bytes", "left"], ["", "left"]], rows);
    const update = () => {
      const [id, bytes] = story.tokens[state.token];
      const piece = story.merges.find(({ from, to }) => from <= state.token && state.token <= to);
      near.replaceChildren(
        make("p", { class: "big", "data-t": state.token }, tokenOf(story, state.token)),
        make("dl", { class: "facts" },
          make("div", {}, make("dt", {}, "id"), make("dd", {}, count(id))),
          make("div", {}, make("dt", {}, "bytes"), make("dd", { class: "bytes" },
            bytes.split(" ").map((byte) => make("span", {}, byte)))),
        ),
        piece ? merging(piece) : make("p", { class: "quiet" }, "A token that took no merging."),
      );
    };
    return { whole: make("div", { class: "two" }, near, scrolling("All tokens", all)), update };
  },
};

function merging({ piece, joined }) {
  const steps = joined.map(([left, right]) => make("li", {},
    make("bdi", { class: "word" }, drawn(left)), make("span", { class: "quiet" }, " + "),
    make("bdi", { class: "word" }, drawn(right)), make("span", { class: "quiet" }, " → "),
    make("bdi", { class: "word strong" }, drawn(left + right))));
  return make("div", {},
    make("h3", {}, "How ", make("bdi", { class: "word" }, drawn(piece)), " was merged"),
    make("ol", { class: "merges" }, steps));
}
