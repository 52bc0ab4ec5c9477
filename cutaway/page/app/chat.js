// Chat: answers stream in as tokens, each of which opens; an answer goes on from another token as a version beside it.

import { make, slider } from "../elements.js";
import { toClipboard } from "../charts/figure.js";
import { Answer, LEGEND } from "./answer.js";
import { inspect } from "./inspector.js";

const ALTERNATIVES = 8;
const CHAT = "v1/chat/completions";

export class Chat {
  // shell: {server, inspector, announce(text), failed(error), inside(messages, about), speed(text)}
  constructor(shell) {
    this.shell = shell;
    this.turns = []; // {user, versions: [{answer, request}], at}
    this.settings = { temperature: 0.3, max_tokens: 256, seed: null, system: "" };
    this.running = null;
    this.list = make("div", { class: "turns", tabindex: "0", role: "region", "aria-label": "Conversation" }, this.empty());
    this.input = make("textarea", { id: "message", rows: "2", placeholder: "Write to the model", keydown: (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    } });
    this.button = make("button", { type: "submit", class: "small primary" }, "Send");
    const form = make("form", { class: "composer", submit: (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else this.send();
    } }, make("label", { class: "unseen", for: "message" }, "Message"), this.input, this.button);
    this.whole = make("div", { class: "chat" }, this.list, this.options(), form);
  }

  empty() {
    const example = (text) => make("button", { type: "button", class: "small", click: () => {
      this.input.value = text;
      this.send();
    } }, text);
    return make("div", { class: "empty" },
      make("p", { class: "sentence" }, "Ask, then open any token of the answer."),
      make("p", { class: "buttons" }, ["What is gravity?", "Why is the sky blue?", "Tell me a short story about a lighthouse."].map(example)));
  }

  options() {
    const { settings } = this;
    const temperature = slider("temperature", { min: 0, max: 2, step: 0.05, value: settings.temperature }, (value) => {
      settings.temperature = value;
      temperature.shown.textContent = value.toFixed(2);
    });
    temperature.shown.textContent = settings.temperature.toFixed(2);
    const longest = slider("longest answer", { min: 16, max: 1024, step: 16, value: settings.max_tokens }, (value) => {
      settings.max_tokens = value;
      longest.shown.textContent = `${value} tokens`;
    });
    longest.shown.textContent = `${settings.max_tokens} tokens`;
    const seed = make("input", { id: "seed", type: "text", inputmode: "numeric", size: "8", input: () => {
      settings.seed = /^\d{1,9}$/.test(seed.value) ? Number(seed.value) : null;
    } });
    const system = make("textarea", { id: "system", rows: "2", input: () => { settings.system = system.value; } });
    const legend = make("ul", { class: "legend" }, LEGEND.map(([text, n]) => make("li", {}, make("span", { class: `t p${n}` }, "token"), text)));
    const colours = make("input", { id: "colours", type: "checkbox", checked: true, change: () => {
      this.list.classList.toggle("plain", !colours.checked);
      legend.hidden = !colours.checked;
    } });
    return make("details", { class: "settings" }, make("summary", {}, "Settings and colours"),
      temperature.whole, longest.whole,
      make("p", { class: "field" }, make("label", { for: "seed" }, "seed"), seed),
      make("p", { class: "field" }, make("label", { for: "system" }, "system message"), system),
      make("p", { class: "field" }, make("label", { for: "colours" }, "colour tokens by probability"), colours), legend);
  }

  // The conversation before a turn, as the API takes it.
  history(turns) {
    const system = this.settings.system.trim() ? [{ role: "system", content: this.settings.system }] : [];
    return [...system, ...turns.flatMap(({ user, versions, at }) => [
      { role: "user", content: user }, { role: "assistant", content: versions[at].answer.text },
    ])];
  }

  async send() {
    const user = this.input.value.trim();
    if (!user || this.running) return;
    this.input.value = "";
    const messages = [...this.history(this.turns), { role: "user", content: user }];
    const turn = { user, versions: [], at: 0, whole: make("article", { class: "turn" }) };
    if (!this.turns.length) this.list.replaceChildren();
    this.turns.push(turn);
    this.list.append(turn.whole);
    await this.answer(turn, { messages });
  }

  async answer(turn, asked, given = []) {
    const { seed, temperature, max_tokens } = this.settings;
    const request = { model: this.shell.server.model.id, temperature, max_tokens, ...(seed === null ? {} : { seed }),
      ...asked, logprobs: true, top_logprobs: ALTERNATIVES };
    const answer = new Answer((index) => this.open(turn, answer, index));
    given.forEach((token) => answer.add({ ...token, given: true }));
    answer.text = given.length ? asked.messages.at(-1).content : "";
    turn.versions.push({ answer, request });
    turn.at = turn.versions.length - 1;
    this.show(turn);
    this.list.scrollTop = this.list.scrollHeight;
    this.running = new AbortController();
    this.button.textContent = "Stop";
    this.shell.announce("Answering");
    const began = performance.now();
    try {
      for await (const event of this.shell.server.stream(CHAT, request, this.running.signal)) {
        answer.push(event);
        const made = answer.tokens.length - given.length;
        if (made > 1) this.shell.speed(`${(made / ((performance.now() - began) / 1000)).toFixed(0)} tokens/s`);
      }
      this.shell.announce(`Answer: ${answer.text.slice(0, 200)}`);
    } catch (error) {
      if (error.name !== "AbortError") this.failed(turn, error);
      else this.shell.announce("Stopped");
    }
    this.running = null;
    this.button.textContent = "Send";
    this.show(turn);
  }

  failed(turn, error) {
    turn.problem = error.message;
    this.shell.failed(error);
  }

  // A turn: the question, the version of the answer that is shown, and where there are several, a way between them.
  show(turn) {
    const { answer, request } = turn.versions[turn.at];
    const many = turn.versions.length;
    const step = (by) => make("button", {
      type: "button", class: "small", disabled: turn.at + by < 0 || turn.at + by >= many,
      "aria-label": by < 0 ? "The version before" : "The version after", click: () => {
        turn.at += by;
        this.show(turn);
      },
    }, by < 0 ? "‹" : "›");
    const ended = { length: "The longest answer is reached.", content_filter: "Stopped by a filter." }[answer.finish];
    turn.whole.replaceChildren(
      make("p", { class: "user" }, turn.user), answer.whole,
      make("p", { class: "under-answer quiet" },
        many > 1 ? make("span", { class: "versions" }, step(-1), ` ${turn.at + 1} of ${many} `, step(1)) : null,
        answer.finish ? make("span", {}, `${answer.tokens.length} tokens. ${ended ?? ""}`) : null,
        answer.finish ? make("button", { type: "button", class: "small", click: (event) => this.copy(event.target, request) }, "Copy as curl") : null,
        turn.problem ? make("span", { class: "bad", role: "alert" }, turn.problem) : null));
  }

  async copy(button, request) {
    const done = await toClipboard(this.shell.server.curl(CHAT, request));
    button.textContent = done ? "Copied" : "The browser refused";
    setTimeout(() => { button.textContent = "Copy as curl"; }, 2500);
  }

  open(turn, answer, index) {
    if (this.opened && this.opened !== answer) this.opened.mark(null);
    this.opened = answer;
    const before = this.history(this.turns.slice(0, this.turns.indexOf(turn)));
    const upTo = (end) => [...before, { role: "user", content: turn.user }, ...(end ? [{ role: "assistant", content: end }] : [])];
    const asked = (at) => {
      const end = answer.before(at);
      return { messages: upTo(end), ...(end ? { continue_final_message: true } : {}) };
    };
    inspect(this.shell.inspector, {
      answer, index,
      close: () => {
        this.shell.inspector.hidden = true;
        answer.mark(null);
        answer.whole.focus();
      },
      fork: (at, one) => this.fork(turn, answer, at, one, upTo),
      inside: (at) => this.shell.inside(asked(at)),
      lens: (at) => this.shell.server.lens(asked(at)),
    });
  }

  // The same answer again, with another token in one place, as a further version.
  async fork(turn, answer, index, one, upTo) {
    if (this.running) return;
    const kept = answer.tokens.slice(0, index);
    const bytes = Uint8Array.from(one.bytes);
    const given = [...kept, { text: new TextDecoder().decode(bytes), token: one.token, logprob: one.logprob, top: answer.tokens[index].top, bytes: one.bytes }];
    const content = answer.before(index) + new TextDecoder().decode(bytes);
    this.shell.inspector.hidden = true;
    await this.answer(turn, { messages: upTo(content), continue_final_message: true }, given);
  }
}
