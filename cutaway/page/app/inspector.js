// What is selected: a token of an answer, with its probability, its alternatives, and what can be done with it.

import { bar, drawn, fixed, make, percent, table } from "../elements.js";

export function inspect(box, { answer, index, fork, inside, lens, close }) {
  const { token, logprob, top = [], given } = answer.tokens[index];
  const rows = top.map((one) => ({
    attributes: { class: one.token === token ? "row chosen" : "row" },
    cells: [
      make("bdi", { class: "word" }, drawn(one.token)), percent(Math.exp(one.logprob)), bar(Math.exp(one.logprob)),
      one.token === token ? make("span", { class: "quiet" }, "chosen") : make("button", {
        type: "button", class: "small", "aria-label": `Continue from ${drawn(one.token)}`, click: () => fork(index, one),
      }, "Continue"),
    ],
  }));
  const listed = top.reduce((sum, one) => sum + Math.exp(one.logprob), 0);
  const layers = make("div", {});
  const look = async (event) => {
    event.target.disabled = true;
    try {
      layers.replaceChildren(...lensTable(await lens(index)));
      layers.scrollIntoView({ block: "nearest" });
    } catch (error) {
      layers.replaceChildren(make("p", { class: "bad", role: "alert" }, error.message));
    }
  };
  box.hidden = false;
  box.replaceChildren(
    make("div", { class: "inspected" },
      make("p", { class: "step" }, `Token ${index + 1} of ${answer.tokens.length}`),
      make("button", { type: "button", class: "small", "aria-label": "Close", click: close }, "×")),
    make("p", { class: "big" }, make("bdi", { class: "word" }, drawn(token))),
    given ? make("p", {}, "This token was given, and not sampled.")
      : make("p", { "aria-live": "polite" }, "Probability ", make("strong", {}, percent(Math.exp(logprob))),
        make("span", { class: "quiet" }, `, logarithm ${fixed(logprob, 2)}`)),
    top.length ? make("h3", {}, "Alternatives") : null,
    top.length ? table("The likeliest tokens here", [["token", "left"], ["probability", "right"], ["", "left"], ["", "right"]], rows) : null,
    top.length ? make("p", { class: "quiet" }, `The ${top.length} likeliest have ${percent(Math.min(1, listed))} together.`) : null,
    make("p", { class: "buttons" },
      make("button", { type: "button", class: "small", click: look }, "Lens by layer"),
      make("button", { type: "button", class: "small", click: () => inside(index) }, "Look inside at this token")),
    layers,
  );
}

function lensTable(found) {
  const rows = found.map(({ layer, token, probability }) => [
    String(layer), make("bdi", { class: "word" }, drawn(token)), percent(probability), bar(probability)]);
  return [
    make("h3", {}, "Logit lens"),
    make("p", { class: "quiet" }, "The next token if the model stopped after each block. It is seldom meaningful in early blocks."),
    table("The likeliest token after each block", [["block", "right"], ["token", "left"], ["probability", "right"], ["", "left"]], rows),
  ];
}
