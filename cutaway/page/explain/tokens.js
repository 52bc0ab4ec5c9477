// Tokens: bytes, ids, and how the pieces were merged.

import { choose, count, drawn, make, quoted, remark, scrolling, table, tokenOf } from "../elements.js";

export const tokens = {
  title: "Tokens",
  about: () => "The tokenizer cuts the text into pieces of its vocabulary; from here on the model sees only their ids.",
  build(state) {
    const { explanation } = state;
    const detail = make("div", {});
    const rows = explanation.tokens.map(({ id, bytes, special }, t) => ({
      attributes: { "data-t": t, class: "row" },
      cells: [String(t), tokenOf(explanation, t), String(id), bytes, special ? "control token" : ""],
    }));
    const all = scrolling("All tokens", table("Every token of the text",
      [["", "right"], ["token", "left"], ["id", "right", "exact"], ["bytes", "left", "exact"], ["", "left"]], rows));
    const update = () => {
      const { id, bytes } = explanation.tokens[state.token];
      const piece = explanation.merges.find(({ from, to }) => from <= state.token && state.token <= to);
      detail.replaceChildren(
        make("p", { class: "big", "data-t": state.token }, tokenOf(explanation, state.token)),
        make("dl", { class: "facts" },
          make("div", {}, make("dt", {}, "id"), make("dd", {}, count(id))),
          make("div", {}, make("dt", {}, "bytes"), make("dd", { class: "bytes" },
            bytes.split(" ").map((byte) => make("span", {}, byte)))),
        ),
        piece ? merging(piece) : remark("A token without merges."),
      );
      choose(all, all.querySelectorAll("tbody tr"), state.token);
    };
    return { whole: make("div", { class: "two" }, detail, all), update };
  },
};

function merging({ piece, joined }) {
  const steps = joined.map(([left, right]) => make("li", {},
    quoted(left), make("span", { class: "quiet" }, " + "),
    quoted(right), make("span", { class: "quiet" }, " → "),
    make("bdi", { class: "word strong" }, drawn(left + right))));
  return make("div", {},
    make("h3", {}, "How ", quoted(piece), " was merged"),
    make("ol", { class: "merges" }, steps));
}
