// The likeliest tokens in a token's place, each of which the answer can go on from.

import { bar, button, drawn, make, percent, quoted, remark, table } from "../elements.js";

export function alternatives(box, { answer, index, fork, inside }) {
  const { token, id, top = [] } = answer.tokens[index];
  const rows = top.map((one) => ({
    attributes: { class: one.id === id ? "row chosen" : "row" },
    cells: [
      quoted(one.token), percent(Math.exp(one.logprob)), bar(Math.exp(one.logprob)),
      one.id === id ? make("span", { class: "quiet" }, "chosen") : button({ "aria-label": `Continue from ${drawn(one.token)}`, click: () => fork(one),
      }, "Continue"),
    ],
  }));
  const listed = top.reduce((sum, one) => sum + Math.exp(one.logprob), 0);
  box.replaceChildren(
    top.length ? table("The likeliest tokens here", [["token", "left"], ["probability", "right"], ["", "left"], ["", "right"]], rows)
      : remark(`${drawn(token)} ended the answer.`),
    top.length ? remark(`The ${top.length} likeliest have ${percent(Math.min(1, listed))} together.`) : "",
    make("p", { class: "buttons" }, button({ click: inside }, "Look inside at this token")));
}
