// The likeliest tokens in a token's place, each of which the answer can go on from.

import { bar, button, drawn, make, marked, percent, quoted, remark, table, total } from "../elements.js";

export function alternatives(box, { answer, index, fork, inside }) {
  const { token, id, top = [] } = answer.tokens[index];
  const rows = top.map((one) => marked(one.id === id ? "chosen" : null, [
    quoted(one.token), percent(Math.exp(one.logprob)), bar(Math.exp(one.logprob)),
    one.id === id ? make("span.quiet", "chosen") : button("Continue", () => fork(one), { label: `Continue from ${drawn(one.token)}` }),
  ]));
  const listed = total(top.map((one) => Math.exp(one.logprob)));
  box.replaceChildren(
    top.length ? table("The likeliest tokens here", ["token", ["probability"], "", [""]], rows)
      : remark(`${drawn(token)} ended the answer.`),
    top.length ? remark(`The ${top.length} likeliest have ${percent(Math.min(1, listed))} together.`) : "",
    make("p.buttons", button("Look inside at this token", inside)));
}
