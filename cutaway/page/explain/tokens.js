// Tokens: bytes, ids, and how the pieces were merged.

import { choose, count, drawn, make, marked, quoted, remark, scrolling, table, tokenOf } from "../elements.js";

export const tokens = {
  title: "Tokens",
  about: () => "The tokenizer cuts the text into pieces of its vocabulary; from here on the model sees only their ids.",
  build,
};

function build(state) {
  const { explanation } = state;
  const detail = make("div");
  const rows = explanation.tokens.map(({ id, bytes, special }, t) => marked("row",
    [t, tokenOf(explanation, t), id, bytes, special ? "control token" : ""], t));
  const all = scrolling("All tokens", table("Every token of the text",
    [[""], "token", ["id", "exact"], ["bytes", "exact", null, "left"], ""], rows));
  const update = () => {
    const { id, bytes } = explanation.tokens[state.token];
    const piece = explanation.merges.find(({ from, to }) => from <= state.token && state.token <= to);
    detail.replaceChildren(
      make("p.big", { "data-t": state.token }, tokenOf(explanation, state.token)),
      make("dl.facts", make("div", make("dt", "id"), make("dd", count(id))),
        make("div", make("dt", "bytes"), make("dd.bytes", bytes.split(" ").map((byte) => make("span", byte))))),
      piece ? merging(piece) : remark("A token without merges."),
    );
    choose(all, all.querySelectorAll("tbody tr"), state.token);
  };
  return { whole: make("div.two", detail, all), update };
}

function merging({ piece, joined }) {
  const steps = joined.map(([left, right]) => make("li",
    quoted(left), make("span.quiet", " + "),
    quoted(right), make("span.quiet", " → "),
    make("bdi.word.strong", drawn(left + right))));
  return make("div",
    make("h3", "How ", quoted(piece), " was merged"),
    make("ol.merges", steps));
}
