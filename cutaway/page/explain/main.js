// The page itself: the header, the strip of tokens that stays in sight, and the views one below the other.

import { count, make, percent, remark } from "../elements.js";
import { VIEWS, answerText, drawnText, ending, strip, views } from "./build.js";
import { changed } from "./changed.js";
import { read } from "./explanation.js";
import { features } from "./features.js";
import { probabilities } from "./next.js";
import { patch } from "./patch.js";
import { Page } from "./state.js";
import { TwoSides } from "./two.js";
import { bytesInFile } from "../file.js";
import { themeButton } from "../theme.js";

const TOPICS = { patch, features, changed }; // views of options of `cutaway explain`

function header(page) {
  const explanations = page.data.explanations.map((explanation) => make("div.title",
    make("p.sentence", make("bdi", ending(drawnText(explanation.text))), " ",
      make("span.together", make("span.arrow", "→ "),
        make("bdi.answer", answerText(explanation.token_texts[explanation.next_ids[0]])), " ",
        make("span.chance", percent(probabilities(explanation, 1, 1).first[0])))),
    remark(make("bdi", explanation.model), ` · ${explanation.layers} layers · ${explanation.mostHeads} heads · `
      + `width ${count(explanation.width)} · vocabulary ${count(explanation.vocabulary)}`)));
  const heading = make("h1.mark", "Cutaway", make("span.unseen", ": a language model explained on a text"));
  const note = page.states.length > 1 && !page.data.same_model
    ? make("p.quiet.note", "Two models: layers and heads are chosen for each by itself, because heads of different models do not correspond.") : null;
  document.querySelector("#head").append(make("div.top", heading, themeButton(() => page.states.forEach((state) => state.set({}, false)))), make("div.titles", explanations), note ?? "");
}

async function start() {
  const data = read(await bytesInFile());
  const page = new (data.explanations.length > 1 ? TwoSides : Page)({ ...data, views: data.views.length ? data.views : Object.keys(VIEWS) });
  const whole = page.data.views.length > 1;
  if (whole) header(page);
  document.querySelector("#strip").append(...strip(page));
  const main = document.querySelector("#views");
  main.classList.toggle("pair", page.states.length > 1);
  main.replaceChildren(...views(page, TOPICS));
  page.listen();
  document.querySelector("#foot").append(remark("Every number here comes from the model. This file makes no network request."));
  page.states.forEach((state) => state.set(page.data.start, false));
}

start();
