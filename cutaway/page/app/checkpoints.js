// The checkpoints of a run: one fixed sentence, induction heads and a map of embeddings as training goes on. Each answers.

import { heatmap } from "../charts/heatmap.js";
import { plot } from "../charts/plot.js";
import { button, count, drawn, fixed, form, labelled, make, percent, readable, remark, slider, status } from "../elements.js";
import { surprise } from "./answer.js";
import { Place } from "./place.js";
import { instead } from "./server.js";

const SENTENCE = "The capital of France is Paris.";
const MOST = 24; // checkpoints that are measured of a run with more
const LONGEST = 400; // letters of the sentence

export class Checkpoints extends Place {
  step = null;
  sentence = make("textarea", { id: "fixed" }, SENTENCE);
  at = slider("checkpoint", { min: 0, max: 0, step: 1, value: 0 }, (i) => this.choose(this.steps[i]), (i) => `step ${count(this.steps?.[i] ?? 0)}`);
  button = button("Chat with it", () => this.chat(), { class: "small primary" });
  note = status();
  read = make("div.reading");
  place = make("div"); // of the map
  charts = make("div.charts");
  tokens = make("div");
  whole = make("div.stack", { hidden: true, role: "region", "aria-labelledby": "checkpoints-title" }, make("h2", { id: "checkpoints-title" }, "Checkpoints"),
    make("p.about", "Each checkpoint is a model. All read the same sentence, so what changes is what was learned in between."),
    form("form.field", () => {
      this.shell.places.training.address();
      this.measure();
    }, labelled("sentence", this.sentence), make("button.small", "Measure")),
    make("div.scrub", this.at.whole, this.button), this.note, this.read, this.charts, this.tokens);

  get text() {
    return this.sentence.value === SENTENCE ? "" : this.sentence.value.slice(0, LONGEST);
  }

  set(step, text) {
    this.step = Number.isFinite(step) ? step : null;
    if (text) this.sentence.value = text.slice(0, LONGEST);
    this.run = null;
  }

  stop() {
    this.measuring?.abort();
  }

  // The run whose checkpoints are shown, or null.
  offer(run) {
    this.whole.hidden = !run?.checkpoints.length;
    if (this.whole.hidden) return this.stop();
    const same = this.run?.id === run.id && String(this.run.checkpoints) === String(run.checkpoints);
    this.run = run;
    if (same) return null;
    this.steps = run.checkpoints;
    this.at.input.max = this.steps.length - 1;
    if (!this.steps.includes(this.step)) this.step = this.steps.at(-1);
    this.choose(this.step, false);
    return this.measure();
  }

  choose(step, tell = true) {
    this.step = step;
    this.at.set(this.steps.indexOf(step));
    this.draw();
    if (!tell) return;
    this.shell.places.training.stepped();
    this.want(step);
  }

  async chat() {
    this.button.disabled = true;
    await this.tries(this.note, () => this.shell.use(`${this.run.id}@${this.step}`));
    this.button.disabled = false;
  }

  ask(step) {
    const body = { run: this.run.id, step, text: this.sentence.value.slice(0, LONGEST), reference: this.steps.at(-1) };
    return this.server.about("v1/runs/checkpoint", body, this.measuring.signal);
  }

  // Measures the checkpoints one after the other, the chosen one first; what is there is drawn.
  async measure() {
    const { signal } = this.measuring = instead(this.measuring);
    const apart = Math.max(1, (this.steps.length - 1) / (MOST - 1));
    const some = this.steps.filter((_, i) => this.steps.length <= MOST || Math.round(Math.round(i / apart) * apart) === i);
    this.found = new Map();
    await this.tries(this.note, async () => {
      for (const [i, step] of [this.step, ...some.filter((one) => one !== this.step)].entries()) {
        this.note.textContent = `Measuring checkpoint ${i + 1} of ${some.length} …`;
        this.found.set(step, await this.ask(step));
        if (signal.aborted) return;
        this.draw();
      }
      this.note.textContent = this.steps.length > some.length ? `${some.length} of ${this.steps.length} checkpoints are measured; choose any other, and it is too.` : "";
      this.overview();
    });
  }

  async want(step) {
    if (this.found?.has(step) || this.note.textContent.startsWith("Measuring")) return;
    await this.tries(this.note, async () => this.found.set(step, await this.ask(step)));
    if (this.step === step) this.draw();
  }

  // The sentence at the chosen checkpoint: each token as surprising as it is there, and the map.
  draw() {
    const one = this.found?.get(this.step);
    if (!one) return;
    const tokens = one.tokens.map(({ text, nats }) => make("span", { class: `t ${nats === null ? "" : `p${surprise(-nats)}`}`,
      title: nats === null ? "no token before it" : `${fixed(nats, 2)} nats, ${percent(Math.exp(-nats))}` }, readable(text)));
    const best = one.induction ? ` Its strongest induction head is ${one.induction.layer}.${one.induction.head}, with ${percent(one.induction.score)} of its attention.` : "";
    this.read.replaceChildren(make("p.answer.read", tokens),
      remark(one.mean === null ? "" : `Mean surprisal ${fixed(one.mean, 3)} nats a token: it gave each token a probability of ${percent(Math.exp(-one.mean))}, as a geometric mean.${best}`));
    if (!this.place.isConnected) this.charts.replaceChildren(this.place);
    this.place.replaceChildren(one.map ? this.map(one.map) : "");
  }

  map({ texts, at, kept, distance }) {
    const all = [...this.found.values()].flatMap((one) => one.map?.at ?? []);
    const ends = (axis) => {
      const values = all.map((point) => point[axis]);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      return { low: low - 0.05 * (high - low), high: high + 0.05 * (high - low) };
    };
    return plot({
      title: "Embeddings of the sentence’s tokens",
      note: `Rotated onto the last checkpoint’s (Procrustes), whose two largest components keep ${percent(kept)}. What no rotation explains is ${percent(distance)} of its spread.`,
      x: { title: "first component", ...ends(0) }, y: { title: "second component", ...ends(1) },
      series: [{ name: "tokens", points: true, line: false, x: at.map(([x]) => x), y: at.map(([, y]) => y), labels: texts.map(drawn) }],
    });
  }

  // All checkpoints side by side.
  overview() {
    const all = [...this.found.entries()].sort(([a], [b]) => a - b);
    if (all.length < 2) return this.charts.replaceChildren(this.place);
    const steps = all.map(([step]) => step);
    const line = (title, value, y, note = "") => plot({ title, note, x: { title: "step", whole: true }, y, series: [{ name: title, line: true, points: true, x: steps, y: all.map(([, one]) => value(one)) }] });
    const later = [];
    const tokens = all[0][1].tokens;
    const whole = heatmap({
      title: "Surprisal of each token", note: largestDrop(all), rows: { title: "step", labels: steps.map(String) }, columns: { title: "token", labels: tokens.map((one) => one.text) },
      values: all.map(([, one]) => one.tokens.map(({ nats }) => nats)), value: "surprisal, nats", signed: false,
    }, later);
    const scored = all.every(([, one]) => one.induction);
    this.charts.replaceChildren(
      line("Surprisal of the sentence", (one) => one.mean, { title: "mean surprisal", unit: "nats", low: 0 }),
      scored ? line("Induction", (one) => one.induction.score, { title: "highest score of a head", low: 0 }, "Attention of the strongest head to what followed the last time, on random tokens that repeat.") : "", this.place);
    this.tokens.replaceChildren(whole);
    later.forEach((update) => update());
    return null;
  }
}

const SEEN = 0.01; // nats

// Between which two checkpoints a token became less surprising than any other did.
function largestDrop(all) {
  let best = null;
  all.slice(1).forEach(([step, { tokens }], i) => tokens.forEach(({ text, nats }, t) => {
    const [before, { tokens: earlier }] = all[i];
    const drop = nats === null ? 0 : earlier[t].nats - nats;
    if (drop > (best?.drop ?? SEEN)) best = { drop, text, before, step, from: earlier[t].nats, to: nats };
  }));
  return best ? `The largest drop is that of ${drawn(best.text)}, from ${fixed(best.from, 2)} to ${fixed(best.to, 2)} nats between steps ${count(best.before)} and ${count(best.step)}.`
    : all.length > 1 ? "Between these checkpoints no token became less surprising." : "";
}
