// An answer as its tokens: each a span, coloured and underlined by how surprising it was; arrow keys move over them.

import { drawn, make } from "../elements.js";

const STEPS = [[0.9, 0], [0.5, 1], [0.2, 2], [0.05, 3]]; // probability from which a token is so surprising; else 4
const CONTROL = /^<\|?[\w /]+\|?>$/;

const surprise = (logprob) => STEPS.find(([from]) => Math.exp(logprob) >= from)?.[1] ?? 4;

export const LEGEND = [["≥ 90%", 0], ["≥ 50%", 1], ["≥ 20%", 2], ["≥ 5%", 3], ["below", 4]];

export class Answer {
  // select(index): a token is chosen, or none.
  constructor(select) {
    this.tokens = [];
    this.text = "";
    this.finish = null;
    this.chosen = null;
    this.select = select;
    this.decoder = new TextDecoder();
    this.pending = [];
    this.whole = make("div", {
      class: "answer", tabindex: "0", role: "group", "aria-label": "Answer; arrow keys move from token to token",
      click: (event) => {
        const at = event.target.closest?.(".t");
        if (at) this.choose(Number(at.dataset.i));
      },
      keydown: (event) => this.key(event),
    });
  }

  // One event of the stream. Spans are added once a frame, however many tokens arrive.
  push(event) {
    const [choice] = event.choices;
    if (!choice) return;
    this.text += choice.delta?.content ?? "";
    for (const one of choice.logprobs?.content ?? []) {
      const shown = this.decoder.decode(Uint8Array.from(one.bytes), { stream: true });
      this.add({ text: shown, token: one.token, logprob: one.logprob, top: one.top_logprobs, bytes: one.bytes });
    }
    if (choice.finish_reason) this.finish = choice.finish_reason;
  }

  add(token) {
    this.tokens.push(token);
    this.pending.push(this.tokens.length - 1);
    if (this.pending.length === 1) requestAnimationFrame(() => this.paint());
  }

  paint() {
    const scroller = this.whole.closest(".turns");
    const follow = scroller && scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
    this.whole.append(...this.pending.map((i) => this.span(i)));
    this.pending = [];
    if (follow) scroller.scrollTop = scroller.scrollHeight;
  }

  span(i) {
    const { text, token, logprob, given } = this.tokens[i];
    const control = CONTROL.test(token);
    const kind = given ? "given" : `p${surprise(logprob)}`;
    return make("span", { class: `t ${kind}${control ? " control" : ""}`, "data-i": i }, control ? drawn(token) : text);
  }

  choose(i) {
    this.mark(i);
    this.select(i);
  }

  mark(i) {
    this.whole.querySelector(".picked")?.classList.remove("picked");
    this.chosen = i;
    if (i === null) return;
    const span = this.whole.querySelector(`[data-i="${i}"]`);
    span?.classList.add("picked");
    span?.scrollIntoView({ block: "nearest" });
  }

  key(event) {
    const last = this.tokens.length - 1;
    const now = this.chosen ?? -1;
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.choose(Math.max(0, Math.min(last, to)));
  }

  // The text before a token, for a continuation: what the template's control tokens spell is no part of it.
  before(i) {
    const bytes = this.tokens.slice(0, i).filter(({ token }) => !CONTROL.test(token)).flatMap((one) => one.bytes);
    return new TextDecoder().decode(Uint8Array.from(bytes));
  }
}
