// What is selected: a token of an answer, with its probability, its alternatives, where the model looked, its lens, and why.

import { button, fixed, make, percent, quoted } from "../elements.js";
import { alternatives } from "./alternatives.js";
import { attention } from "./attention.js";
import { features } from "./features.js";
import { lens } from "./lens.js";
import { why } from "./why.js";

const TABS = [["Alternatives", alternatives], ["Attention", attention], ["Lens", lens], ["Features", features], ["Why", why]];
const WAIT = 80; // milliseconds: arrow keys pass over tokens on their way

export class Inspector {
  constructor(box, shell) {
    this.box = box;
    this.shell = shell;
    this.tab = 0;
    this.kept = {}; // what panels remember from token to token, such as the chosen head
    this.looking = null;
  }

  // A panel draws itself, and gives back what it asked the server: a path and a body.
  // look: {answer, index, ids, asked, close(), fork(one), edit(edit), inside()}
  open(look) {
    this.look = look;
    const { tokens, kl } = look.answer;
    const { token, logprob, given } = tokens[look.index];
    const tabs = TABS.map(([name], i) => make("button", {
      type: "button", role: "tab", id: `tab-${i}`, "aria-controls": "panel", "aria-selected": String(i === this.tab),
      tabindex: i === this.tab ? "0" : "-1", click: () => this.choose(i),
    }, name));
    this.tabs = tabs;
    this.panel = make("div", { role: "tabpanel", id: "panel", class: "panel", tabindex: "-1" });
    this.box.hidden = false;
    this.box.replaceChildren(
      make("div", { class: "inspected" },
        make("p", { class: "step" }, `Token ${look.index + 1}${look.answer.finish ? ` of ${tokens.length}` : ""}`),
        button({ "aria-label": "Close", click: () => this.close() }, "×")),
      make("p", { class: "big" }, quoted(token)),
      make("p", { "aria-live": "polite" }, given ? "Given, and not sampled. Probability " : "Probability ", make("strong", {}, percent(Math.exp(logprob))),
        make("span", { class: "quiet" }, `, logarithm ${fixed(logprob, 2)}`),
        kl?.[look.index] === undefined ? null : make("span", { class: "quiet" }, `. Here the distribution diverges by ${fixed(kl[look.index], 3)} nats`)),
      make("div", { class: "tabs", role: "tablist", "aria-label": "About this token", keydown: (event) => this.key(event) }, tabs),
      this.panel);
    this.draw(WAIT);
  }

  choose(i) {
    this.tab = i;
    this.tabs.forEach((one, at) => {
      one.setAttribute("aria-selected", String(at === i));
      one.tabIndex = at === i ? 0 : -1;
    });
    this.draw(0);
  }

  key(event) {
    const to = { ArrowRight: this.tab + 1, ArrowLeft: this.tab - 1, Home: 0, End: TABS.length - 1 }[event.key];
    if (!TABS[to]) return;
    event.preventDefault();
    this.choose(to);
    this.tabs[to].focus();
  }

  // What a panel asks the server for is cancelled as soon as another token or panel is looked at.
  draw(wait, focused = null) {
    clearTimeout(this.waiting);
    this.looking?.abort();
    this.looking = new AbortController();
    const { signal } = this.looking;
    const [name, panel] = TABS[this.tab];
    this.panel.setAttribute("aria-labelledby", `tab-${this.tab}`);
    const work = async () => {
      try {
        const asked = await panel(this.panel, this.look, {
          server: this.shell.server, signal, kept: this.kept, again: (selector) => this.draw(0, selector),
        });
        if (asked) this.panel.append(this.copying(...asked));
        if (focused) this.panel.querySelector(focused)?.focus();
      } catch (error) {
        if (error.name === "AbortError" || signal.aborted) return;
        this.panel.replaceChildren(make("p", { class: "bad", role: "alert" }, error.message));
        this.shell.failed(error);
      }
    };
    if (panel === alternatives) work();
    else {
      if (!focused && (!wait || !this.panel.childElementCount)) this.panel.replaceChildren(make("p", { class: "quiet", role: "status" }, `${name} …`));
      this.waiting = setTimeout(work, wait);
    }
  }

  // What the panel's numbers were asked by, for a shell and for Python.
  copying(path, body) {
    const { chat, server } = this.shell;
    const copied = (name, text) => button({ click: (event) => chat.copy(event.target, text) }, name);
    return make("p", { class: "buttons" }, copied("Copy as curl", server.curl(path, body)), copied("Copy as Python", server.pythonRequest(path, body)));
  }

  close() {
    if (this.box.hidden) return;
    this.hide();
    this.look?.close();
  }

  hide() {
    clearTimeout(this.waiting);
    this.looking?.abort();
    this.box.hidden = true;
  }
}
