// What a run wrote while it trained: samples by step, and its answers to held-out questions with their scores.

import { fixed, make, readable } from "../elements.js";

const SHOWN = 12;

// step: those of the last evaluation up to there; null: the newest.
export async function samples(server, run, step, signal) {
  const found = await server.json("v1/runs/samples", { run }, signal);
  return [...texts(found.samples, step), ...answers(found.answers, step)];
}

function until(list, step) {
  const steps = list.map((one) => one.step).filter((one) => step === null || one <= step);
  const last = Math.max(...steps, -1);
  return [last, list.filter((one) => one.step === last)];
}

function texts(list, step) {
  const [at, shown] = until(list, step);
  if (!shown.length) return [];
  return [make("h3", `Samples after step ${at}`), ...shown.slice(0, SHOWN).map(({ prompt, text }) => make("p.sample", make("span.quiet", readable(prompt)), readable(text)))];
}

function answers(list, step) {
  const [at, shown] = until(list, step);
  if (!shown.length) return [];
  const before = new Map(list.filter((one) => one.step === list[0].step).map((one) => [one.question, one]));
  const score = ({ score: value }) => make("span", { class: value >= 1 ? "good" : "quiet" }, value === null ? "" : fixed(value, 2));
  return [make("h3", `Answers to held-out questions after step ${at}`), ...shown.slice(0, SHOWN).map((one) => {
    const first = before.get(one.question);
    return make("details.answered", make("summary", score(one), " ", one.question),
      make("dl", ...[["expected", one.answer], ["answer", one.completion], ...(first && first !== one && first.step < at ? [[`after step ${first.step}`, first.completion]] : [])]
        .flatMap(([name, text]) => [make("dt.quiet", name), make("dd.sample", readable(text))])));
  })];
}
