// The lens by layer at the place where a token was chosen: the logit lens, and a tuned one beside it if the server has one.

import { bar, drawn, make, percent, table } from "../elements.js";

export async function lens(box, { answer, index, asked }, { server, signal }) {
  const { id, token } = answer.tokens[index];
  const body = { ...asked, top: 1, token: id };
  const found = await server.about("v1/lens", body, signal);
  const { logit_lens: logit, tuned_lens: tuned } = found;
  const word = ({ top: [best] }) => make("bdi", { class: best.id === id ? "word strong" : "word" }, drawn(best.text));
  const rows = logit.map((one, i) => [
    i === 0 ? "embedding" : String(i - 1), word(one), ...(tuned ? [word(tuned[i])] : []),
    percent(one.probability), tuned ? percent(tuned[i].probability) : bar(one.probability)]);
  const heads = tuned
    ? [["block", "right"], ["logit", "left"], ["tuned", "left"], ["logit", "right"], ["tuned", "right"]]
    : [["block", "right"], ["likeliest", "left"], ["probability", "right"], ["", "left"]];
  box.replaceChildren(
    make("h3", {}, tuned ? "Logit lens and tuned lens" : "Logit lens"),
    make("p", { class: "quiet" }, "The likeliest token if the model stopped after each block, and the probability of ",
      make("bdi", { class: "word" }, drawn(token)), " there. It is seldom meaningful in early blocks."),
    table("The likeliest token after each block, and the probability of the chosen one", heads, rows));
  return ["v1/lens", body];
}
