// What runs in parallel: the steps of a forward pass, one after another, with operations, bytes and least time.

import { brief } from "../charts/scales.js";
import { bar, count, make, options, remark, scrolling, select, table } from "../elements.js";

export const plan = {
  title: "What runs in parallel",
  about: "Inside a step nothing waits for anything else; the steps wait for each other, layer after layer. A prompt is read in one pass, while each new token needs a pass of its own.",
  async build({ source, text }) {
    const { machine, passes } = await source.ask("plan", { text: text() });
    let at = 0;
    const which = select("pass", (value) => {
      at = value;
      update();
    });
    const summary = make("p", { "aria-live": "polite" });
    const rows = make("div", {});
    const update = () => {
      options(which.input, passes.map(({ name }) => name), at);
      const { waits, flops, bytes, seconds, steps } = passes[at];
      summary.textContent = `${count(waits)} steps one after another: ${brief(flops)} operations, ${brief(bytes)} bytes, at least ${brief(1000 * seconds)} ms on this machine.`;
      const most = Math.max(...steps.map((one) => one.seconds * one.times));
      rows.replaceChildren(make("div", { class: "loose" }, scrolling("The steps", table("The steps of the pass", [["step", "left"], ["at once", "left"], ["layers", "right", "exact"], ["outputs", "right", "exact"],
        ["operations", "right", "derived"], ["bytes", "right", "derived"], ["least time", "right", "estimate", "by the roofline"], ["", "left"], ["limit", "left"]],
      steps.map((one) => [one.name, one.at_once, String(one.times), brief(one.outputs), brief(one.flops), brief(one.bytes), `${brief(1e6 * one.seconds * one.times)} µs`,
        bar((one.seconds * one.times) / most), one.memory ? "memory" : "arithmetic"])))));
    };
    update();
    return make("div", { class: "stack" }, make("div", { class: "chooser" }, which.whole), summary, rows,
      remark(`Measured here: ${brief(machine.flops)} operations/s with ${machine.type} weights and ${machine.threads} threads, ${brief(machine.bandwidth)} bytes/s. `
        + `Above ${brief(machine.balance)} operations a byte arithmetic is the limit, below it memory.`));
  },
};
