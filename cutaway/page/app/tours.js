// Tours: guess, change one thing, see what follows. A step is data: an address, a sentence, and how it is known to be done.

import { button, make, remark } from "../elements.js";
import { Place } from "./place.js";

const LOOK = 250; // milliseconds between looks at whether a step is done

// A control of the view by its label.
function control({ label, within = "#place" }) {
  const found = [...document.querySelectorAll(`${within} label`)].find((one) => one.textContent === label);
  return found ? document.getElementById(found.htmlFor) : null;
}

const valueOf = (input) => (input.tagName === "SELECT" ? input.selectedOptions[0]?.textContent ?? "" : input.value);

// Whether a step's condition holds: an address, a text that is shown, or a control's value.
export function holds(done, before) {
  if (done.address) return new RegExp(done.address).test(location.hash);
  if (done.shown) return [...document.querySelectorAll(done.shown)].some((one) => new RegExp(done.matches).test(one.textContent));
  const input = control(done);
  if (!input) return false;
  const value = valueOf(input);
  if (done.atEnd) return Number(input.max) > 0 && value === input.max;
  if (done.is) return new RegExp(done.is).test(value);
  if (done.changed) return before !== null && value !== before;
  return done.above === undefined ? Number(value) < done.below : Number(value) > done.above;
}

export class Tours extends Place {
  taken = new Set();
  whole = make("div.training.tours");
  bar = document.getElementById("tour"); // where a step is shown, beside every view

  async show() {
    this.all ??= await this.tries(this.whole, () => this.server.json("page/app/tours.json"));
    if (!this.all) return;
    this.whole.replaceChildren(make("div", make("h2", "Tours"), make("p.about", "Guess, change one thing, see what follows. Each takes two minutes, on your own model, and belongs to a chapter of the course.")),
      make("ol.tour-list", this.all.map((tour) => make("li", make("h3", tour.title), remark(this.taken.has(tour.id) ? "✓ taken. " : "", `Chapter ${tour.chapter}`),
        button("Start", () => this.start(tour), { label: `Start: ${tour.title}` })))));
  }

  start(tour) {
    Object.assign(this, { tour, at: 0, chosen: null });
    this.step();
  }

  leave() {
    clearInterval(this.looking);
    this.tour = null;
    this.bar.hidden = true;
    document.getElementById("place").focus();
  }

  step() {
    clearInterval(this.looking);
    const step = this.tour.steps[this.at];
    this.chosen = null;
    if (step.view && location.hash !== step.view) location.hash = step.view;
    this.draw(!step.choices && !step.done);
    this.bar.querySelector(".tour-say").focus();
    if (!step.done) return;
    let before = null;
    this.looking = setInterval(() => {
      const input = step.done.changed ? control(step.done) : null;
      if (input && before === null) before = valueOf(input);
      if (!holds(step.done, before)) return;
      clearInterval(this.looking);
      this.shell.announce("Done");
      this.draw(true);
    }, LOOK);
  }

  draw(done) {
    const { steps, title, chapter, id } = this.tour;
    const { say, choices, right } = steps[this.at];
    const last = this.at === steps.length - 1;
    if (last) this.taken.add(id);
    const choose = (i) => {
      this.chosen = i;
      this.draw(true);
      this.bar.querySelector(".primary").focus();
    };
    const answer = this.chosen === null ? null : this.chosen === right ? "That is right." : `It is: ${choices[right]}.`;
    this.bar.hidden = false;
    this.bar.replaceChildren(
      make("p.tour-title", make("span.step", `${title} · ${this.at + 1} of ${steps.length}`), button("×", () => this.leave(), { label: "Leave the tour" })),
      make("p.tour-say", { tabindex: "-1" }, steps[this.at].done ? make("span", { class: done ? "good" : "quiet", "aria-hidden": "true" }, done ? "✓ " : "○ ") : "", say),
      make("p.buttons", { role: "group", label: "Your guess" }, ...(choices ?? []).map((text, i) => button(text, () => choose(i), { class: i === this.chosen ? "small chosen-guess" : "small", "aria-pressed": i === this.chosen })),
      answer ? make("span.quiet", { role: "status" }, answer) : null,
      last ? make("span.quiet", "More in chapter ", chapter, ": ", make("code", `cutaway course start ${chapter}`)) : null,
      this.at ? button("Back", () => this.move(-1)) : null,
      last ? button("All tours", () => { this.leave(); location.hash = "tours"; }, { class: "small primary" })
        : button("Next", () => this.move(1), { class: "small primary", disabled: !done })));
  }

  move(by) {
    this.at += by;
    this.step();
  }
}
