// The lenses by layer at the place where a token was chosen: the logit lens, and those that the server has beside it.

import { bar, drawn, make, percent, quoted, remark, table } from "../elements.js";

const KINDS = [["jacobian_lens", "Jacobian"], ["tuned_lens", "tuned"], ["logit_lens", "logit"], ["random_lens", "control"]];

export async function lens(box, { answer, index, asked }, { server, signal }) {
  const { id, token } = answer.tokens[index];
  const body = { ...asked, top: 1, token: id };
  const found = await server.about("v1/lens", body, signal);
  const shown = KINDS.filter(([name]) => found[name]);
  const several = shown.length > 1;
  const word = ({ top: [best] }) => make("bdi", { class: best.id === id ? "word strong" : "word" }, drawn(best.text));
  const both = (one) => (one ? make("span.wrapped", word(one), " ", make("small.quiet", percent(one.probability))) : "");
  const rows = found.logit_lens.map((one, i) => [i === 0 ? "embed" : i - 1, ...(several
    ? shown.map(([name]) => both(found[name].find(({ after }) => after === one.after)))
    : [word(one), percent(one.probability), bar(one.probability)])]);
  const heads = several ? [["block"], ...shown.map(([, name]) => name)] : [["block"], "likeliest", ["probability"], ""];
  box.replaceChildren(
    make("h3", several ? "Lenses" : "Logit lens"),
    remark("The likeliest token after each block, and the probability of ",
      quoted(token), " there. The logit lens reads a block as if the model stopped after it; it is seldom meaningful in early blocks.",
      found.jacobian_lens ? " The Jacobian lens shows what a block moves the model towards, now or later; the control has a random rotation in its place." : ""),
    table("The likeliest token after each block, and the probability of the chosen one", heads, rows));
  return ["v1/lens", body];
}
