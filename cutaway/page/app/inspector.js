// What is selected: a token of an answer, with its probability, its alternatives, where the model looked, its lens, and why.

import { LIVE, button, fixed, make, percent, quoted, status, stepped } from "../elements.js";
import { alternatives } from "./alternatives.js";
import { attention } from "./attention.js";
import { features } from "./features.js";
import { lens } from "./lens.js";
import { why } from "./why.js";
import { copying } from "../charts/figure.js";
import { Place } from "./place.js";
import { instead } from "./server.js";

const TABS = [["Alternatives", alternatives], ["Attention", attention], ["Lens", lens], ["Features", features], ["Why", why]];
const WAIT = 80; // milliseconds: arrow keys pass over tokens on their way

export class Inspector extends Place {
  box = document.getElementById("inspector");
  tab = 0;
  kept = {}; // what panels remember from token to token, such as the chosen head
  looking = null;

  // A panel draws itself, and gives back what it asked the server: a path and a body.
  // look: {answer, index, ids, asked, close(), fork(one), edit(edit), inside()}
  open(look) {
    this.look = look;
    const { tokens, kl } = look.answer;
    const { token, logprob, given } = tokens[look.index];
    const tabs = TABS.map(([name], i) => make("button", {
      type: "button", role: "tab", id: `tab-${i}`, "aria-controls": "panel", "aria-selected": i === this.tab,
      tabindex: i === this.tab ? "0" : "-1", click: () => this.choose(i),
    }, name));
    this.tabs = tabs;
    this.panel = make("div", { role: "tabpanel", id: "panel", class: "panel", tabindex: "-1" });
    this.box.hidden = false;
    this.box.replaceChildren(
      make("div.inspected",
        make("p.step", `Token ${look.index + 1}${look.answer.finish ? ` of ${tokens.length}` : ""}`),
        button("×", () => this.close(), { label: "Close" })),
      make("p.big", quoted(token)),
      make("p", LIVE, given ? "Given, and not sampled. Probability " : "Probability ", make("strong", percent(Math.exp(logprob))),
        make("span.quiet", `, logarithm ${fixed(logprob, 2)}`),
        kl?.[look.index] === undefined ? null : make("span.quiet", `. Here the distribution diverges by ${fixed(kl[look.index], 3)} nats`)),
      make("div.tabs", { role: "tablist", label: "About this token", keydown: (event) => this.key(event) }, tabs),
      this.panel);
    this.draw(WAIT);
  }

  choose(i) {
    this.tab = i;
    this.tabs.forEach((one, at) => {
      one.setAttribute("aria-selected", at === i);
      one.tabIndex = at === i ? 0 : -1;
    });
    this.draw(0);
  }

  key(event) {
    const to = stepped(event, this.tab, TABS.length - 1);
    if (to === null) return;
    this.choose(to);
    this.tabs[to].focus();
  }

  // What a panel asks the server for is cancelled as soon as another token or panel is looked at.
  draw(wait, focused = null) {
    clearTimeout(this.waiting);
    const { signal } = this.looking = instead(this.looking);
    const [name, panel] = TABS[this.tab];
    this.panel.setAttribute("aria-labelledby", `tab-${this.tab}`);
    const work = async () => {
      try {
        const asked = await panel(this.panel, this.look, {
          server: this.server, signal, kept: this.kept, again: (selector) => this.draw(0, selector),
        });
        if (asked) this.panel.append(this.copying(...asked));
        if (focused) this.panel.querySelector(focused)?.focus();
      } catch (error) {
        if (!signal.aborted) this.shell.failed(error, this.panel);
      }
    };
    if (panel === alternatives) work();
    else {
      if (!focused && (!wait || !this.panel.childElementCount)) this.panel.replaceChildren(status(`${name} …`));
      this.waiting = setTimeout(work, wait);
    }
  }

  // What the panel's numbers were asked by, for a shell and for Python.
  copying(path, body) {
    const { server } = this;
    return make("p.buttons", copying("Copy as curl", () => server.curl(path, body)), copying("Copy as Python", () => server.pythonRequest(path, body)));
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
