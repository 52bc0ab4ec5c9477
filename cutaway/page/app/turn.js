// A question with its answers: versions that go on from another token, and beside one what the same seed answers
// with edits, or by another model. The first token in which two differ is marked, and what edits changed is measured.

import { button, make, problem, readable, status, times } from "../elements.js";
import { plot } from "../charts/plot.js";
import { Answer, firstDifference } from "./answer.js";
import { instead } from "./server.js";

const ENDED = { length: "The longest answer is reached.", content_filter: "Stopped by a filter." };
const AT_ONCE = 48; // tokens whose divergence is asked in one request

export class Turn {
  versions = [];
  at = 0;
  trouble = problem("", { hidden: true });
  whole = make("article.turn");

  // chat: {open(turn, answer, index), copies(answer) -> buttons, server, shell}; messages: up to the question, with it.
  constructor(chat, user, messages) {
    this.chat = chat;
    this.user = user;
    this.messages = messages;
  }

  get shown() {
    return this.versions[this.at];
  }

  // An answer that is to come. `from`: {answer, index, token} that it goes on from; `name`: what it is called.
  begin(request, { name = "Answer", edits = [], from = null } = {}) {
    const answer = new Answer(name, (index) => this.chat.open(this, answer, index));
    Object.assign(answer, { request, name, edits, of: this });
    if (!from) return answer;
    answer.prompt = from.answer.prompt;
    [...from.answer.tokens.slice(0, from.index), from.token].forEach((token) => answer.add({ ...token, given: true }));
    answer.text = answer.tokens.map((one) => one.text).join("");
    return answer;
  }

  add(answer) {
    this.versions.push({ answer, beside: null });
    this.at = this.versions.length - 1;
    this.show();
  }

  // Another answer beside the shown one.
  pair(beside) {
    const version = this.shown;
    version.beside = beside;
    version.unmeasured = version.measuring = null;
    version.stop = instead(version.stop);
    version.chart = make("div.divergence");
    version.note = status();
    if (beside) {
      const update = () => version.beside && this.compare(version); // which undo takes away while it streams
      [version.answer, beside].forEach((one) => { one.changed = update; });
    }
    this.mark(version, null);
    this.show();
  }

  mark(version, at) {
    version.differs = at;
    for (const one of [version.answer, version.beside]) {
      one?.whole.querySelector(".differs")?.classList.remove("differs");
      if (at !== null) one?.at(at)?.classList.add("differs");
    }
  }

  compare(version) {
    const { answer, beside } = version;
    const at = firstDifference(answer, beside);
    const marked = at === null || [answer, beside].every((one) => one.at(at)?.classList.contains("differs")); // a token may come before its span
    if (at !== version.differs || !marked) this.mark(version, at);
    const done = answer.finish && beside.finish;
    version.found = at !== null ? `They differ from token ${at + 1} on.` : done ? "Both are the same." : "Both are the same so far.";
    version.note.textContent = version.found + (version.unmeasured ?? "");
    if (!version.measuring && (done || at !== null)) {
      version.measuring = true;
      this.measure(version, at ?? Math.max(0, answer.tokens.length - 1));
    }
  }

  // The divergence of each distribution from which both chose, up to the first difference: until there they read the same.
  async measure(version, last) {
    const { answer, beside, stop } = version;
    const first = answer.prompt.length - 1;
    const edits = beside.edits.length > 0;
    const body = { model: answer.request.model, prompt_token_ids: [...answer.prompt, ...answer.ids(last)],
      ...(edits ? { edits: beside.edits } : { against: beside.request.model }) };
    const kl = [];
    try {
      for (let i = 0; i <= last; i += AT_ONCE) {
        const positions = times(Math.min(AT_ONCE, last + 1 - i), (j) => first + i + j);
        kl.push(...(await this.chat.server.about("v1/divergence", { ...body, positions }, stop.signal)).kl);
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      version.unmeasured = edits ? ` Their divergence is not known: ${error.message}` : " They are models of their own, whose distributions are not compared.";
      version.note.textContent = version.found + version.unmeasured;
      return;
    }
    beside.kl = kl;
    version.chart.replaceChildren(plot({
      title: edits ? "What the edits change at each token" : "What the adapter changes at each token",
      note: "KL divergence of the next token’s distribution. From the first difference on the texts are others, and it is not defined.",
      x: { title: "token", low: 1, high: Math.max(2, kl.length), whole: true },
      y: { title: "KL divergence", unit: "nats", low: 0 },
      series: [{ name: "KL divergence", line: true, x: kl.map((_, i) => i + 1), y: kl }],
    }));
  }

  show() {
    const { answer, beside, note, chart } = this.shown;
    const many = this.versions.length;
    const step = (by) => button(by < 0 ? "‹" : "›", () => {
        this.at += by;
        this.show();
      }, { disabled: this.at + by < 0 || this.at + by >= many, label: by < 0 ? "The version before" : "The version after" });
    const column = (one) => make("div.column", make("p.column-name", one.name), one.whole, this.under(one));
    this.whole.replaceChildren(
      make("p.user", readable(this.user)),
      beside ? make("div.pair", column(answer), column(beside)) : answer.whole,
      ...(beside ? [note, chart] : [this.under(answer)]),
      many > 1 ? make("p.under-answer.quiet",
        make("span.versions", step(-1), ` ${this.at + 1} of ${many} `, step(1)),
        button("Tree of answers", () => this.chat.shell.tree(this))) : "",
      this.trouble);
    this.whole.classList.toggle("paired", Boolean(beside));
  }

  // What is below an answer. It changes in its place: the answer is not laid out again when it ends.
  under(answer) {
    const { finish, tokens } = answer;
    answer.foot ??= make("p.under-answer.quiet");
    answer.foot.replaceChildren(...(finish ? [make("span", `${tokens.length} tokens. ${ENDED[finish] ?? ""}`), ...this.chat.copies(answer)] : []));
    return answer.foot;
  }

  ended(answer, problem) {
    this.under(answer);
    this.trouble.textContent = problem;
    this.trouble.hidden = !problem;
  }
}
