// The page at the server's address: the model, the places, what is selected, and what went wrong.

import { count, decoded, form, labelled, make, problem, remark, submits } from "../elements.js";
import { themeButton } from "../theme.js";
import { Chat } from "./chat.js";
import { HowItWorks } from "./how.js";
import { Inside } from "./inside.js";
import { Inspector } from "./inspector.js";
import { Safety } from "./safety.js";
import { Server } from "./server.js";
import { Share } from "./share.js";
import { Tours } from "./tours.js";
import { Training } from "./training.js";
import { Tree } from "./tree.js";

const AGAIN = 2500; // milliseconds between tries to reach a server that does not answer
const PLACES = [["chat", "Chat"], ["tree", "Tree"], ["inside", "Inside"], ["how", "How it works"], ["training", "Training"], ["safety", "Safety"], ["tours", "Tours"]];

const byId = (id) => document.getElementById(id);

// What all places are given: the server, each other, and what they tell the reader.
class Shell {
  constructor() {
    this.server = new Server();
    this.inspector = new Inspector(byId("inspector"), this);
    this.chip = make("span.chip-model");
    this.rate = make("span.quiet");
    this.banner = make("p.banner", { role: "alert", hidden: true });
    this.chat = new Chat(this);
    this.answers = new Tree(this);
    this.traced = new Inside(this);
    this.chapters = new HowItWorks(this);
    this.training = new Training(this);
    this.guarded = new Safety(this);
    this.tours = new Tours(this, byId("tour"));
    this.share = new Share(this);
    const theme = themeButton(() => [this.traced, this.chapters].forEach((one) => one.page?.states.forEach((state) => state.set({}, false))));
    byId("bar").append(make("h1.mark", "Cutaway"), this.chip, this.rate, make("span.right", this.share.whole, theme), this.banner);
    byId("places").append(...PLACES.map(([id, name]) => make("a", { href: `#${id}`, id: `to-${id}` }, name)));
    byId("inspector").before(this.chat.edits.bar);
    addEventListener("hashchange", () => this.go());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.inspector.close();
    });
  }

  announce(text) {
    byId("announce").textContent = text;
  }

  speed(text) {
    this.rate.textContent = text;
  }

  // A refusal is shown at the place where it happened; a server that is gone is looked for until it is back. What the
  // page cancelled is no failure.
  failed(error, place = null) {
    if (error.name === "AbortError") return;
    place?.replaceChildren(place.tagName === "P" ? error.message : problem(error.message));
    if (place) place.hidden = false;
    if (error.status === 401) this.askKey(error.message);
    if (error.status !== 0 || !this.banner.hidden) return;
    this.banner.hidden = false;
    this.banner.textContent = "The server does not answer. It is tried again until it does.";
    const again = setInterval(async () => {
      try {
        await this.server.ask("health");
      } catch (problem) {
        if (problem.status === 0) return;
      }
      clearInterval(again);
      this.banner.hidden = true;
      if (!this.server.models.length) this.start();
    }, AGAIN);
  }

  async start() {
    try {
      await this.server.open();
    } catch (error) {
      if (error.status !== 401) byId("place").replaceChildren(make("p.wait", error.message));
      this.failed(error);
      return;
    }
    this.showModel();
    this.go();
  }

  showModel() {
    const { models, model } = this.server;
    const name = models.length > 1
      ? make("select", { "aria-label": "Model", change: (event) => {
        this.server.model = models[event.target.selectedIndex];
        this.showModel();
      } }, models.map((one) => make("option", { selected: one === model }, one.id)))
      : make("strong", model.id);
    this.chat.offer(models, model);
    this.chip.replaceChildren(name, model.max_model_len ? make("span.quiet", ` ${count(model.max_model_len)} tokens of context`) : "");
  }

  askKey(message) {
    const key = make("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false" });
    byId("place").replaceChildren(form("form.key-asked", () => {
      this.server.key = key.value.trim();
      this.start();
    }, make("p.sentence", "This server needs an API key."),
    remark("It is kept in this page's memory alone, and goes when the page does."),
    make("p.field", labelled("API key", key), submits("Open")), problem(this.server.key ? message : "")));
    key.focus();
  }

  // Another model answers from now on, such as a checkpoint of a run.
  async use(id) {
    const { server } = this;
    const found = await (await server.ask(`v1/models/${id.split("/").map(encodeURIComponent).join("/")}`)).json();
    server.models = [...server.models.filter((one) => one.id !== found.id), found];
    server.model = server.models.at(-1);
    this.showModel();
    location.hash = "chat";
  }

  // at: what is selected there, such as {token, layer, head}.
  inside(given, at = null) {
    this.traced.trace(given, at);
    location.hash = "inside";
  }

  // An address that shows what is shown now; of the chat it holds the last question and its settings, and asks nothing by itself.
  link() {
    const turn = this.chat.turns.at(-1);
    if (this.place !== "chat" || !turn) return location.hash || "#chat";
    const { temperature, max_tokens, seed } = turn.shown.answer.request;
    return `#chat/${encodeURIComponent(JSON.stringify({ message: turn.user, temperature, max_tokens, seed, system: this.chat.settings.system }))}`;
  }

  // What a turn's model read, and who wrote it.
  safety(turn) {
    this.guarded.look(turn);
    location.hash = "safety";
  }

  tree(turn) {
    this.answers.show(turn);
    location.hash = "tree";
  }

  // A turn has another answer.
  grown(turn) {
    if (this.place === "tree" && this.answers.turn === turn) this.answers.show(turn);
  }

  // The place that the address names; what follows a slash is a text, whatever it spells.
  go() {
    if (!this.server.model) return;
    const [, id, rest] = location.hash.match(/^#(\w*)(?:\/(.*))?$/s) ?? [];
    const place = PLACES.some(([one]) => one === id) ? id : "chat";
    if (place !== this.place) this.server.asked.clear();
    this.place = place;
    this.share.whole.open = false;
    for (const [one] of PLACES) {
      if (one === place) byId(`to-${one}`).setAttribute("aria-current", "page");
      else byId(`to-${one}`).removeAttribute("aria-current");
    }
    this.inspector.hide();
    this.training.hide();
    if (place !== "safety") this.guarded.hide();
    byId("place").replaceChildren({ inside: this.traced, tree: this.answers, chat: this.chat, how: this.chapters, training: this.training, safety: this.guarded, tours: this.tours }[place].whole);
    if (place === "inside") this.traced.show(rest ? decoded(rest) : null);
    else if (place === "tree") this.answers.show();
    else if (place === "how") this.chapters.show(rest ?? "");
    else if (place === "safety") this.guarded.show();
    else if (place === "tours") this.tours.show();
    else if (place === "training") this.training.show(rest ?? "");
    else this.chat.show(rest ?? "");
  }
}

new Shell().start();
