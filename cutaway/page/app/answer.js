// An answer as its tokens: each a span, coloured and underlined by how surprising it was; arrow keys move over them.

import { drawn, make, readable, stepped } from "../elements.js";

const STEPS = [[0.9, 0], [0.5, 1], [0.2, 2], [0.05, 3]]; // probability from which a token is so surprising; else 4
const CONTROL = /^<\|?[\w /]+\|?>$/;
const FROZEN = 128; // tokens of a part of the answer that no later token lays out again

export const surprise = (logprob) => STEPS.find(([from]) => Math.exp(logprob) >= from)?.[1] ?? 4;

export const LEGEND = [["≥ 90%", 0], ["≥ 50%", 1], ["≥ 20%", 2], ["≥ 5%", 3], ["below", 4]];

export class Answer {
  tokens = []; // {id, text, token, logprob, top, bytes, given}
  prompt = []; // ids that the model read before it
  text = "";
  finish = null;
  chosen = null;
  changed = () => {}; // called once a frame in which tokens came
  decoder = new TextDecoder();
  pending = [];
  part = null;

  // name: what its group is called; select(index): a token is chosen.
  constructor(name, select) {
    this.select = select;
    this.whole = make("div.answer", {
      tabindex: "0", role: "group", label: `${name}; arrow keys move from token to token`,
      click: (event) => {
        const at = event.target.closest?.(".t");
        if (at) this.choose(Number(at.dataset.i));
      },
      keydown: (event) => this.key(event),
    });
  }

  // One event of the stream. Spans are added once a frame, however many tokens arrive.
  push(event) {
    if (event.prompt_token_ids && !this.prompt.length) this.prompt = event.prompt_token_ids;
    const [choice] = event.choices;
    if (!choice) return;
    this.text += choice.delta?.content ?? "";
    for (const one of choice.logprobs?.content ?? []) {
      const text = this.decoder.decode(Uint8Array.from(one.bytes), { stream: true });
      this.add({ id: one.id, text, token: one.token, logprob: one.logprob, top: one.top_logprobs, bytes: one.bytes });
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
    for (const i of this.pending) this.place(i);
    this.pending = [];
    this.changed();
    if (follow) scroller.scrollTop = scroller.scrollHeight;
  }

  // A part ends with a line, so that it can be a block of its own, which stays as it is laid out.
  place(i) {
    const before = this.part?.lastChild?.textContent ?? "";
    if (!this.part || (this.part.childElementCount >= FROZEN && before.endsWith("\n"))) {
      if (this.part) this.part.lastChild.textContent = before.slice(0, -1);
      this.part = make("div.lines");
      this.whole.append(this.part);
    }
    this.part.append(this.span(i));
  }

  span(i) {
    const { text, token, logprob, given } = this.tokens[i];
    const control = CONTROL.test(token);
    const kind = given ? "given" : `p${surprise(logprob)}`;
    return make("span", { class: `t ${kind}${control ? " control" : ""}`, "data-i": i }, control ? drawn(token) : readable(text));
  }

  at(i) {
    return this.whole.querySelector(`[data-i="${i}"]`);
  }

  choose(i) {
    this.mark(i);
    this.select(i);
  }

  mark(i) {
    this.whole.querySelector(".picked")?.classList.remove("picked");
    this.chosen = i;
    if (i === null) return;
    this.at(i)?.classList.add("picked");
    this.at(i)?.scrollIntoView({ block: "nearest" });
  }

  key(event) {
    const to = stepped(event, this.chosen ?? -1, this.tokens.length - 1);
    if (to !== null) this.choose(to);
  }

  // The ids of its first tokens.
  ids(count = this.tokens.length) {
    return this.tokens.slice(0, count).map((one) => one.id);
  }
}

// How many tokens two answers begin with alike.
export function shared(one, other) {
  let at = 0;
  while (at < one.tokens.length && one.tokens[at].id === other.tokens[at]?.id) at += 1;
  return at;
}

// Where two answers differ first: the index of a token, or null while none does.
export function firstDifference(one, other) {
  const at = shared(one, other);
  const [shorter, longer] = one.tokens.length < other.tokens.length ? [one, other] : [other, one];
  return longer.tokens.length > at && (shorter.tokens.length > at || shorter.finish) ? at : null;
}
