// The parts of an explanation: the strip of tokens, and the views.

import { drawn, make, roving, spaced, tagLegend } from "../elements.js";
import { attention } from "./attention.js";
import { distance } from "./distance.js";
import { embeddings } from "./embeddings.js";
import { lens } from "./lens.js";
import { mlp } from "./mlp.js";
import { next } from "./next.js";
import { projection } from "./projection.js";
import { residual } from "./residual.js";
import { rope } from "./rope.js";
import { score } from "./score.js";
import { sharing } from "./sharing.js";
import { tokens } from "./tokens.js";

const LONGEST = 160; // letters of a title
export const VIEWS = { tokens, embeddings, attention, projection, sharing, score, rope, distance, mlp, residual, lens, next };

// Of a long text its end, which the answer follows.
export function ending(text) {
  const letters = [...text];
  return letters.length <= LONGEST ? text : `… ${letters.slice(-LONGEST).join("").replace(/^\S* /, "")}`;
}

// A predicted token without its spaces, or, if it has nothing else, with them drawn.
export function answerText(text) {
  return drawnText(text) || drawn(text);
}

export function drawnText(text) {
  return drawn(text.trim()).replaceAll("␣", " ");
}

// The tokens, always in sight: one is selected, and all views are about it.
export function strip(page) {
  return page.states.map((state) => {
    const { explanation } = state;
    const chips = explanation.tokens.map((_, t) => make("button", {
      type: "button", class: "chip", "data-t": t, tabindex: "-1", click: () => state.set({ token: t }),
    }, make("bdi", ...spaced(explanation.tokenText(t)))));
    const line = make("div.chips", { role: "toolbar", label: `Tokens of ${ending(drawnText(explanation.text))}`, "data-explanation": state.index }, chips);
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
}

// The views, one below the other, with a panel in each for each explanation. `topics`: further ones by name.
export function views(page, topics = {}) {
  return [tagLegend(), ...page.data.views.map((name, i) => {
    const view = VIEWS[name] ?? topics[name];
    const panels = (view.single ? page.states.slice(0, 1) : page.states).map((state) => {
      const built = view.build(state);
      state.views.push(built);
      const whose = page.states.length > 1 && !view.single
        ? make("p.whose", make("bdi", ending(drawnText(state.explanation.text))), make("span.quiet", ` · ${state.explanation.model}`)) : null;
      return make("div.panel", { "data-explanation": state.index }, whose, built.whole);
    });
    return make("section", { id: name, "aria-labelledby": `title-${name}` },
      make("div.intro",
        make("h2", { id: `title-${name}` }, make("span.step", { "aria-hidden": "true" }, i + 1), view.title),
        make("p.about", view.about(page.data.explanations[0]))),
      make("div.panels", panels));
  })];
}
