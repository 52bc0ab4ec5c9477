// Chat: answers stream in as tokens, each of which opens; an answer goes on from another token as a version of it, and with
// edits, or by another model, beside it.

import { button, decoded, field, form, labelled, make, picker, slider, submits } from "../elements.js";
import { copying } from "../charts/figure.js";
import { LEGEND } from "./answer.js";
import { Edits } from "./edits.js";
import { Place } from "./place.js";
import { Turn } from "./turn.js";

const ALTERNATIVES = 8;
const CHAT = "v1/chat/completions";
const LONGEST = 8000; // letters of a message and its settings in an address
const SEED = /^\d{1,9}$/;
const WAIT = 300; // milliseconds after the last change of the edits

export class Chat extends Place {
  turns = [];
  settings = { temperature: 0.3, max_tokens: 256, seed: null, system: "", beside: "" };
  running = new Set();
  list = make("div.turns", this.empty());
  input = make("textarea", { id: "message", placeholder: "Write to the model", keydown: (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.send();
  } });
  button = submits("Send");
  edits = new Edits({
    changed: () => this.edited(), failed: (error) => this.shell.failed(error),
    direction: (layer, towards, away) => this.direction(layer, towards, away),
  });
  whole = make("div.chat", this.list, this.options(), this.other,
    form("form.composer", () => (this.running.size ? this.stop() : this.send()), make("label.unseen", { for: "message" }, "Message"), this.input, this.button));

  empty() {
    const example = (text) => button(text, () => {
      this.input.value = text;
      this.send();
    });
    return make("div.empty",
      make("p.sentence", "Ask, then open any token of the answer."),
      make("p.buttons", ["What is gravity?", "Why is the sky blue?", "Tell me a short story about a lighthouse."].map(example)));
  }

  options() {
    const { settings } = this;
    const temperature = slider("temperature", { min: 0, max: 2, step: 0.05, value: settings.temperature }, (value) => {
      settings.temperature = value;
    }, (value) => value.toFixed(2));
    const longest = slider("longest answer", { min: 16, max: 1024, step: 16, value: settings.max_tokens }, (value) => {
      settings.max_tokens = value;
    }, (value) => `${value} tokens`);
    const seed = make("input", { id: "seed", inputmode: "numeric", size: "8", input: () => {
      settings.seed = SEED.test(seed.value) ? Number(seed.value) : null;
    } });
    const system = make("textarea", { id: "system", input: () => { settings.system = system.value; } });
    this.fields = { temperature: temperature.input, max_tokens: longest.input, seed, system };
    const legend = make("ul.legend", LEGEND.map(([text, n]) => make("li", make("span", { class: `t p${n}` }, "token"), text)));
    const colours = make("input", { id: "colours", type: "checkbox", checked: true, change: () => {
      this.list.classList.toggle("plain", !colours.checked);
      legend.hidden = !colours.checked;
    } });
    this.other = make("p.field.beside", { hidden: true });
    return make("details.settings", make("summary", "Settings, edits and colours"),
      temperature.whole, longest.whole,
      field("seed", seed),
      field("system message", system),
      this.edits.form,
      field("colour tokens by probability", colours), legend);
  }

  // rest: of an address, a message with its settings, which are written into the form and not sent.
  show(rest) {
    this.input.focus();
    if (!rest || rest.length > LONGEST || rest === this.given) return;
    this.given = rest;
    let found = null;
    try {
      found = JSON.parse(decoded(rest));
    } catch {
      return;
    }
    for (const [name, field] of Object.entries({ message: this.input, ...this.fields })) {
      const value = found?.[name];
      const inside = field.type === "range" ? value >= Number(field.min) && value <= Number(field.max) : name !== "seed" || SEED.test(value);
      if (typeof value === (name === "message" || name === "system" ? "string" : "number") && inside) field.value = String(value);
      field.dispatchEvent(new Event("input"));
    }
  }

  // The models that may answer beside the chosen one.
  offer(models, chosen) {
    const others = models.filter((one) => one !== chosen);
    this.other.hidden = !others.length;
    this.settings.beside = "";
    this.other.replaceChildren(...labelled("answer beside", picker("beside", [["", "no other model"], ...others.map(({ id }) => [id, id])], "", (value) => {
      this.settings.beside = value;
    })));
  }

  // The conversation before a turn, as the API takes it.
  history(turns) {
    const system = this.settings.system.trim() ? [{ role: "system", content: this.settings.system }] : [];
    return [...system, ...turns.flatMap(({ user, shown }) => [
      { role: "user", content: user }, { role: "assistant", content: shown.answer.text },
    ])];
  }

  // An answer's request. Its seed is drawn here, so that the same answer can be asked for again with edits.
  request(messages, more = {}) {
    const { seed, temperature, max_tokens } = this.settings;
    return { model: this.server.model.id, temperature, max_tokens, seed: seed ?? Math.floor(Math.random() * 1e9), messages, ...more,
      logprobs: true, top_logprobs: ALTERNATIVES, return_token_ids: true };
  }

  async send() {
    const user = this.input.value.trim();
    if (!user || this.running.size) return;
    this.input.value = "";
    const turn = new Turn(this, user, [...this.history(this.turns), { role: "user", content: user }]);
    this.adopt(turn);
    const { beside } = this.settings;
    const request = this.request(turn.messages);
    const answer = turn.begin(request, beside ? { name: request.model } : {});
    turn.add(answer);
    this.list.scrollTop = this.list.scrollHeight;
    if (beside) {
      const other = turn.begin({ ...request, model: beside }, { name: beside });
      turn.pair(other);
      this.run(turn, other);
    } else if (this.edits.active.length) {
      this.counterfactual(turn);
    }
    await this.run(turn, answer);
  }

  // A turn is part of the conversation from now on.
  adopt(turn) {
    if (!this.turns.length) this.list.replaceChildren();
    this.turns.push(turn);
    this.list.append(turn.whole);
  }

  // The shown answer again, by the same seed and with the active edits, beside it.
  counterfactual(turn) {
    const { answer, beside } = turn.shown;
    beside?.running?.abort();
    const edits = this.edits.active;
    answer.name = edits.length ? "Without edits" : "Answer";
    if (!edits.length) return turn.pair(null);
    const given = answer.tokens.filter((one) => one.given).length;
    const from = given ? { answer, index: given - 1, token: answer.tokens[given - 1] } : null;
    const other = turn.begin({ ...answer.request, edits }, { name: this.edits.described, edits, from });
    turn.pair(other);
    return this.run(turn, other);
  }

  edited() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => {
      const turn = this.opened?.of ?? this.turns.at(-1);
      if (turn) this.counterfactual(turn);
    }, WAIT);
  }

  async run(turn, answer) {
    const { request } = answer;
    const controller = answer.running = new AbortController();
    this.running.add(controller);
    this.button.textContent = "Stop";
    this.shell.announce("Answering");
    const [began, given] = [performance.now(), answer.tokens.length];
    let problem = "";
    try {
      for await (const event of this.server.stream(CHAT, request, controller.signal)) {
        answer.push(event);
        const made = answer.tokens.length - given;
        if (made > 1) this.shell.speed(`${(made / ((performance.now() - began) / 1000)).toFixed(0)} tokens/s`);
      }
      this.shell.announce(`Answer: ${answer.text.slice(0, 200)}`);
    } catch (error) {
      if (error.name !== "AbortError") {
        problem = error.message;
        this.shell.failed(error);
      } else {
        answer.finish = "stopped";
        this.shell.announce("Stopped");
      }
    }
    this.running.delete(controller);
    this.button.textContent = this.running.size ? "Stop" : "Send";
    answer.changed();
    turn.ended(answer, problem);
    this.shell.grown(turn);
  }

  stop() {
    this.running.forEach((one) => one.abort());
  }

  copies({ request, prompt, of }) {
    return [button("What it read", () => this.shell.safety(of)), copying("Copy as curl", () => this.server.curl(CHAT, request)),
      copying("Copy as Python", () => this.server.python(request, prompt))];
  }

  open(turn, answer, index) {
    if (this.opened && this.opened !== answer) this.opened.mark(null);
    this.opened = answer;
    const ids = [...answer.prompt, ...answer.ids(index)];
    this.shell.inspector.open({
      answer, index, ids,
      asked: { model: answer.request.model, prompt_token_ids: ids, ...(answer.edits.length ? { edits: answer.edits } : {}) },
      close: () => {
        answer.mark(null);
        (answer.whole.isConnected ? answer.whole : document.querySelector("[role='treeitem'][aria-selected='true']"))?.focus();
      },
      fork: (one) => this.fork(turn, answer, index, one),
      edit: (edit) => this.edits.add(edit),
      inside: () => this.shell.inside({ model: answer.request.model, prompt_token_ids: ids, edits: answer.edits }),
    });
  }

  // The same answer again, with another token in one place, as a further version.
  async fork(turn, answer, index, one) {
    const token = { ...one, text: new TextDecoder().decode(Uint8Array.from(one.bytes)), top: answer.tokens[index].top };
    const forked = turn.begin({ ...answer.request, continue_token_ids: [...answer.ids(index), one.id] },
      { name: answer.edits.length ? answer.name : "Answer", edits: answer.edits, from: { answer, index, token } });
    turn.add(forked);
    this.shell.grown(turn);
    forked.paint();
    forked.choose(index);
    await this.run(turn, forked);
  }

  // A direction of the residual stream after a layer: where one text ends, less where the other does.
  async direction(layer, towards, away) {
    const ends = await Promise.all([towards, away].map(async (text) => {
      const body = { model: this.server.model.id, text, values: ["out"], layers: [layer], positions: [-1] };
      const { values } = await this.server.json("v1/trace", body);
      return values[`blocks.${layer}.out`].data[0];
    }));
    return ends[0].map((one, i) => one - ends[1][i]);
  }
}
