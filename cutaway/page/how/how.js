// How it works: chapters, each on the user's own sentence and the loaded model. One is in sight at a time.

import { current, make, problem, tagLegend } from "../elements.js";
import { VIEWS } from "../explain/build.js";
import { architecture } from "./architecture.js";
import { mechanisms } from "./mechanisms.js";
import { plan } from "./plan.js";
import { quantized } from "./quantized.js";
import { tokenizers } from "./tokenizers.js";
import { vectors } from "./vectors.js";

// Views of the explanation, in a chapter of their own.
const traced = (title, about, ...names) => ({
  title,
  about,
  async build({ page }) {
    const [state] = (await page()).states;
    const built = names.map((name) => VIEWS[name].build(state));
    state.views.push(...built);
    state.set({}, false);
    return make("div.stack", { "data-explanation": "0" }, built.map(({ whole }, i) => make("div", { id: names[i] },
      names.length > 1 ? make("h3", VIEWS[names[i]].title) : null, whole)));
  },
});

export const CHAPTERS = {
  tokenizers,
  vectors,
  qkv: traced("Query, key, value", "A head makes three vectors of each token. The dot product of one token's query with another's key is the score; "
    + "softmax over the scores gives the attention weights.", "projection", "score"),
  positions: traced("Positions by RoPE", "Each pair of dimensions is rotated by an angle that grows with the position. Move both positions: the score depends on their distance alone.", "rope", "distance"),
  mechanisms,
  architecture,
  plan,
  sampler: traced("The sampler", "The logits become probabilities. Temperature flattens or sharpens them; top-k and top-p leave the unlikely ones out.", "next"),
  quantized,
};

export class How {
  view = make("div.chapter");
  built = new Map();
  at = null;

  // place: {source, text, page() -> the traced Page, address(chapter) -> a link, announce(text)}
  constructor(place) {
    this.place = place;
    this.links = make("nav.chapters", { label: "Chapters" }, Object.entries(CHAPTERS).map(([id, { title }], i) => make("a", {
      href: place.address(id), "data-chapter": id }, `${i + 1}  ${title}`)));
    this.whole = make("div.how", this.links, this.view, tagLegend());
  }

  // Another sentence: everything is computed anew.
  clear() {
    this.built.clear();
    this.at = null;
  }

  async show(id) {
    const chosen = id in CHAPTERS ? id : Object.keys(CHAPTERS)[0];
    this.links.querySelectorAll("a").forEach((link) => {
      current(link, link.dataset.chapter === chosen);
      link.href = this.place.address(link.dataset.chapter);
    });
    this.at = chosen;
    const { title, about, build } = CHAPTERS[chosen];
    const head = [make("h2", title), make("p.about", about)];
    if (!this.built.has(chosen)) {
      this.view.replaceChildren(...head, make("p.wait", { role: "status" }, "Computing …"));
      try {
        this.built.set(chosen, await build(this.place));
      } catch (error) {
        if (error.name === "AbortError") return;
        if (this.at === chosen) this.view.replaceChildren(...head, problem(error.message));
        this.place.failed?.(error);
        return;
      }
    }
    if (this.at !== chosen) return;
    this.view.replaceChildren(...head, this.built.get(chosen));
    this.view.dataset.ready = chosen;
    this.place.announce?.(title);
  }
}
