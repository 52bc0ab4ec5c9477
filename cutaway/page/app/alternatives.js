// The likeliest tokens in a token's place, each of which the answer can go on from.

import { bar, drawn, make, percent, table } from "../elements.js";

export function alternatives(box, { answer, index, fork, inside }) {
  const { token, id, top = [] } = answer.tokens[index];
  const rows = top.map((one) => ({
    attributes: { class: one.id === id ? "row chosen" : "row" },
    cells: [
      make("bdi", { class: "word" }, drawn(one.token)), percent(Math.exp(one.logprob)), bar(Math.exp(one.logprob)),
      one.id === id ? make("span", { class: "quiet" }, "chosen") : make("button", {
        type: "button", class: "small", "aria-label": `Continue from ${drawn(one.token)}`, click: () => fork(one),
      }, "Continue"),
    ],
  }));
  const listed = top.reduce((sum, one) => sum + Math.exp(one.logprob), 0);
  box.replaceChildren(
    top.length ? table("The likeliest tokens here", [["token", "left"], ["probability", "right"], ["", "left"], ["", "right"]], rows)
      : make("p", { class: "quiet" }, `${drawn(token)} ended the answer.`),
    top.length ? make("p", { class: "quiet" }, `The ${top.length} likeliest have ${percent(Math.min(1, listed))} together.`) : "",
    make("p", { class: "buttons" }, make("button", { type: "button", class: "small", click: inside }, "Look inside at this token")));
}
