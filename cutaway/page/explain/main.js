// The page itself: the header, the strip of tokens that stays in sight, and the views one below the other.

import { count, drawn, make, percent, roving, spaced } from "../elements.js";
import { attention } from "./attention.js";
import { embeddings } from "./embeddings.js";
import { unpack } from "./explanation.js";
import { lens } from "./lens.js";
import { mlp } from "./mlp.js";
import { next, probabilities } from "./next.js";
import { residual } from "./residual.js";
import { rope } from "./rope.js";
import { score } from "./score.js";
import { Page } from "./state.js";
import { tokens } from "./tokens.js";
import { themeButton } from "../theme.js";

const LONGEST = 160; // letters of a title
const VIEWS = { tokens, embeddings, attention, score, rope, mlp, residual, lens, next };

function header(page) {
  const explanations = page.data.explanations.map((explanation) => make("div", { class: "title" },
    make("p", { class: "sentence" }, make("bdi", {}, ending(drawnText(explanation.text))), " ",
      make("span", { class: "together" }, make("span", { class: "arrow" }, "→ "),
        make("bdi", { class: "answer" }, answerText(explanation.token_texts[explanation.next_ids[0]])), " ",
        make("span", { class: "chance" }, percent(probabilities(explanation, 1, 1).first[0])))),
    make("p", { class: "quiet" }, make("bdi", {}, explanation.model), ` · ${explanation.layers} layers · ${explanation.mostHeads} heads · `
      + `width ${count(explanation.width)} · vocabulary ${count(explanation.vocabulary)}`)));
  const heading = make("h1", { class: "mark" }, "Cutaway", make("span", { class: "unseen" }, ": a language model explained on a text"));
  const note = page.states.length > 1 && !page.data.same_model
    ? make("p", { class: "quiet note" }, "Two models: layers and heads are chosen for each by itself, because heads of different models do not correspond.") : null;
  document.querySelector("#head").append(make("div", { class: "top" }, heading, themeButton(() => page.states.forEach((state) => state.set({}, false)))), make("div", { class: "titles" }, explanations), note ?? "");
}

// Of a long text its end, which the answer follows.
function ending(text) {
  const letters = [...text];
  return letters.length <= LONGEST ? text : `… ${letters.slice(-LONGEST).join("").replace(/^\S* /, "")}`;
}

// A predicted token without its spaces, or, if it has nothing else, with them drawn.
function answerText(text) {
  return drawnText(text) || drawn(text);
}

function drawnText(text) {
  return drawn(text.trim()).replaceAll("␣", " ");
}

// The tokens, always in sight: one is selected, and all views are about it.
function strip(page) {
  const lines = page.states.map((state) => {
    const { explanation } = state;
    const chips = explanation.tokens.map((_, t) => make("button", {
      type: "button", class: "chip", "data-t": t, tabindex: "-1", click: () => state.set({ token: t }),
    }, make("bdi", {}, ...spaced(explanation.tokenText(t)))));
    const line = make("div", { class: "chips", role: "toolbar", "aria-label": `Tokens of ${ending(drawnText(explanation.text))}`, "data-explanation": state.index }, chips);
    roving(line);
    let selected = null;
    const update = () => {
      if (selected !== null) {
        chips[selected].removeAttribute("aria-pressed");
        chips[selected].tabIndex = -1;
      }
      selected = state.token;
      chips[selected].setAttribute("aria-pressed", "true");
      chips[selected].tabIndex = 0;
      const [left, width] = [chips[selected].offsetLeft, chips[selected].offsetWidth];
      if (left < line.scrollLeft || left + width > line.scrollLeft + line.clientWidth) line.scrollLeft = left - line.clientWidth / 2;
    };
    state.views.push({ update });
    return line;
  });
  document.querySelector("#strip").append(...lines);
}

function views(page) {
  const main = document.querySelector("#views");
  main.classList.toggle("pair", page.states.length > 1);
  main.replaceChildren(...page.data.views.map((name, i) => {
    const view = VIEWS[name];
    const panels = page.states.map((state) => {
      const built = view.build(state);
      state.views.push(built);
      const whose = page.states.length > 1
        ? make("p", { class: "whose" }, make("bdi", {}, ending(drawnText(state.explanation.text))), make("span", { class: "quiet" }, ` · ${state.explanation.model}`)) : null;
      return make("div", { class: "panel", "data-explanation": state.index }, whose, built.whole);
    });
    return make("section", { id: name, "aria-labelledby": `title-${name}` },
      make("div", { class: "intro" },
        make("h2", { id: `title-${name}` }, make("span", { class: "step", "aria-hidden": "true" }, String(i + 1)), view.title),
        make("p", { class: "about" }, view.about(page.data.explanations[0]))),
      make("div", { class: "panels" }, panels));
  }));
}

async function start() {
  const page = new Page(await unpack(document.querySelector("#data").textContent));
  const whole = page.data.views.length > 1;
  if (whole) header(page);
  strip(page);
  views(page);
  page.listen();
  document.querySelector("#foot").append(make("p", { class: "quiet" }, "Every number here comes from the model. This file makes no network request."));
  page.states.forEach((state) => state.set(page.data.start, false));
}

start();
