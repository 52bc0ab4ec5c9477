// The page at the server's address: the model, the places, what is selected, and what went wrong.

import { count, current, form, labelled, make, problem, remark, submits } from "../elements.js";
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
const byId = (id) => document.getElementById(id);

// What all places are given: the server, each other, and what they tell the reader.
class Shell {
  server = new Server();
  inspector = new Inspector(this);
  chip = make("span.chip-model");
  rate = make("span.quiet");
  banner = make("p.banner", { role: "alert", hidden: true });
  share = new Share(this);
  places = {
    chat: new Chat(this), tree: new Tree(this), inside: new Inside(this), how: new HowItWorks(this), training: new Training(this),
    safety: new Safety(this), tours: new Tours(this),
  };
  links = Object.keys(this.places).map((id) => make("a", { href: `#${id}`, id: `to-${id}` }, id === "how" ? "How it works" : id[0].toUpperCase() + id.slice(1)));

  constructor() {
    const theme = themeButton(() => ["inside", "how"].forEach((id) => this.places[id].page?.states.forEach((state) => state.set({}, false))));
    byId("bar").append(make("h1.mark", "Cutaway"), this.chip, this.rate, make("span.right", this.share.whole, theme), this.banner);
    byId("places").append(...this.links);
    byId("inspector").before(this.places.chat.edits.bar);
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
      ? make("select", { label: "Model", change: (event) => {
        this.server.model = models[event.target.selectedIndex];
        this.showModel();
      } }, models.map((one) => make("option", { selected: one === model }, one.id)))
      : make("strong", model.id);
    this.places.chat.offer(models, model);
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
    const found = await server.json(`v1/models/${id.split("/").map(encodeURIComponent).join("/")}`);
    server.models = [...server.models.filter((one) => one.id !== found.id), found];
    server.model = server.models.at(-1);
    this.showModel();
    location.hash = "chat";
  }

  // at: what is selected there, such as {token, layer, head}.
  inside(given, at = null) {
    this.places.inside.trace(given, at);
    location.hash = "inside";
  }

  // An address that shows what is shown now; of the chat it holds the last question and its settings, and asks nothing by itself.
  link() {
    const { turns, settings: { system } } = this.places.chat;
    const turn = turns.at(-1);
    if (this.place !== "chat" || !turn) return location.hash || "#chat";
    const { temperature, max_tokens, seed } = turn.shown.answer.request;
    return `#chat/${encodeURIComponent(JSON.stringify({ message: turn.user, temperature, max_tokens, seed, system }))}`;
  }

  // What a turn's model read, and who wrote it.
  safety(turn) {
    this.places.safety.look(turn);
    location.hash = "safety";
  }

  tree(turn) {
    this.places.tree.turn = turn;
    location.hash = "tree";
  }

  // A turn has another answer.
  grown(turn) {
    if (this.place === "tree" && this.places.tree.turn === turn) this.places.tree.show();
  }

  // The place that the address names; what follows a slash is a text, whatever it spells.
  go() {
    if (!this.server.model) return;
    const [, id, rest] = location.hash.match(/^#(\w*)(?:\/(.*))?$/s) ?? [];
    const place = Object.hasOwn(this.places, id) ? id : "chat";
    if (place !== this.place) {
      this.server.asked.clear();
      this.places[this.place]?.hide?.();
    }
    this.place = place;
    this.share.whole.open = false;
    for (const link of this.links) current(link, link.id === `to-${place}`);
    this.inspector.hide();
    byId("place").replaceChildren(this.places[place].whole);
    this.places[place].show(rest ?? "");
  }
}

new Shell().start();
