// What runs in parallel: the steps of a forward pass, one after another, with operations, bytes and least time.

import { brief } from "../charts/scales.js";
import { LIVE, bar, chooser, count, make, remark, scrolling, table } from "../elements.js";

export const plan = {
  title: "What runs in parallel",
  about: "Inside a step nothing waits for anything else; the steps wait for each other, layer after layer. A prompt is read in one pass, while each new token needs a pass of its own.",
  build,
};

async function build({ source, text }) {
  const { machine, passes } = await source.ask("plan", { text: text() });
  const summary = make("p", LIVE);
  const rows = make("div");
  const which = chooser("pass", passes.map(({ name }) => name), (at) => {
    const { waits, flops, bytes, seconds, steps } = passes[at];
    summary.textContent = `${count(waits)} steps one after another: ${brief(flops)} operations, ${brief(bytes)} bytes, at least ${brief(1000 * seconds)} ms on this machine.`;
    const most = Math.max(...steps.map((one) => one.seconds * one.times));
    rows.replaceChildren(make("div.loose", scrolling("The steps", table("The steps of the pass", ["step", "at once", ["layers", "exact"], ["outputs", "exact"],
      ["operations", "derived"], ["bytes", "derived"], ["least time", "estimate", "by the roofline"], "", "limit"],
    steps.map((one) => [one.name, one.at_once, one.times, brief(one.outputs), brief(one.flops), brief(one.bytes), `${brief(1e6 * one.seconds * one.times)} µs`,
      bar((one.seconds * one.times) / most), one.memory ? "memory" : "arithmetic"])))));
  });
  return make("div.stack", make("div.chooser", which), summary, rows,
    remark(`Measured here: ${brief(machine.flops)} operations/s with ${machine.type} weights and ${machine.threads} threads, ${brief(machine.bandwidth)} bytes/s. `
      + `Above ${brief(machine.balance)} operations a byte arithmetic is the limit, below it memory.`));
}
