// Training: the runs of a folder while they train: their curves, what they wrote, and their checkpoints.

import { plot } from "../charts/plot.js";
import { brief } from "../charts/scales.js";
import { button, count, decoded, fixed, make, marked, problem, remark, scrolling, table } from "../elements.js";
import { Checkpoints } from "./checkpoints.js";
import { Place } from "./place.js";
import { samples } from "./samples.js";
import { instead } from "./server.js";

const AGAIN = 4000; // milliseconds between looks at runs that train
const MANY = 3; // runs from which on one curve of each is drawn
const MOST = 24;
const TITLES = { // of curves that belong into one chart: [title, unit]
  loss: ["Loss", "nats per token"], reward: ["Reward", ""], accuracy: ["Accuracy", ""], completion_length: ["Length of answers", "tokens"],
  induction: ["Induction score", ""], previous_token: ["Score of previous-token heads", ""], learning_rate: ["Learning rate", ""], gradient_norm: ["Norm of the gradient", ""],
};
const FIRST = ["loss", "reward", "accuracy", "completion_length", "induction"];
const HELD_OUT = "validation_";

export class Training extends Place {
  chosen = [];
  drawn = "";
  list = make("div");
  note = problem("", { hidden: true });
  curves = make("div.stack");
  written = make("div.stack");
  checkpoints = new Checkpoints(this.shell);
  whole = make("div.training", this.list, this.note, this.curves, this.checkpoints.whole, this.written);

  // rest: of the address: runs with commas between, a step and the sentence.
  async show(rest) {
    const [runs, step, text] = rest.split("/").map(decoded);
    if (runs) this.chosen = runs.split(",").filter(Boolean).slice(0, MOST);
    this.checkpoints.set(step ? Number(step) : null, text);
    this.drawn = "";
    await this.look();
  }

  hide() {
    clearTimeout(this.waiting);
    this.looking?.abort();
    this.checkpoints.stop();
  }

  address() {
    const { step, text } = this.checkpoints;
    const parts = [this.chosen.join(","), step ?? "", text].map((one) => encodeURIComponent(one));
    history.replaceState(null, "", `#training/${parts.join("/").replace(/\/+$/, "")}`);
  }

  // Another checkpoint is chosen.
  stepped() {
    this.address();
    this.write();
  }

  // Looks again while the place is open, so that what trains is seen to.
  async look() {
    clearTimeout(this.waiting);
    const { signal } = this.looking = instead(this.looking);
    try {
      const { data, served } = await this.server.json("v1/runs", undefined, signal);
      this.note.hidden = true;
      this.runs = data;
      if (!data.length) return this.empty(served);
      this.chosen = this.chosen.filter((id) => data.some((one) => one.id === id));
      if (!this.chosen.length) this.chosen = [data[0].id];
      this.draw();
      await this.measure(signal);
    } catch (error) {
      if (error.name === "AbortError") return null;
      this.shell.failed(error, this.note);
    }
    this.waiting = setTimeout(() => this.look(), AGAIN);
    return null;
  }

  empty(served) {
    this.list.replaceChildren(make("div.empty",
      make("p.sentence", "A model that trains can be watched here, and every checkpoint of it answers."),
      remark(served ? "The folder of runs is empty so far. " : "This server shows no runs. Start it with its folder of runs: ",
        make("code", served ? "cutaway pretrain nano" : "cutaway serve --runs runs"))));
    this.waiting = setTimeout(() => this.look(), AGAIN);
    return null;
  }

  draw() {
    const held = document.activeElement?.dataset?.run;
    const rows = this.runs.map((one) => {
      const pick = (add) => {
        const rest = this.chosen.filter((id) => id !== one.id);
        this.choose(add ? [...rest, one.id].slice(-MOST) : rest.length ? rest : [one.id]);
      };
      const box = make("input", { type: "checkbox", checked: this.chosen.includes(one.id), "data-run": `draw ${one.id}`,
        label: `Draw ${one.id}`, change: (event) => pick(event.target.checked) });
      const open = button(one.id, () => this.choose([one.id]), { class: "link", "data-run": `open ${one.id}` });
      return marked(this.chosen.includes(one.id) ? "chosen" : null, [box, make("span.run-name", open, arms(one, (id) => this.experiment(id))),
        `${one.objective}${one.adapter ? `, ${one.adapter}` : ""}`, make(`span.state.${one.state}`, one.state), `${count(one.step)}${one.steps ? ` of ${count(one.steps)}` : ""}`,
        one.loss === null ? "" : fixed(one.loss, 3), one.error ? make("span.bad", one.error) : one.checkpoints.length]);
    });
    this.list.replaceChildren(scrolling("Runs", table("Training runs", ["", "run", "objective", "state", ["step"], ["loss"], ["checkpoints"]], rows)));
    if (held) [...this.list.querySelectorAll("[data-run]")].find((one) => one.dataset.run === held)?.focus();
  }

  choose(runs) {
    this.chosen = runs;
    this.drawn = "";
    this.checkpoints.set(null);
    this.look().then(() => this.address());
  }

  // The arms of an experiment side by side: the runs that trained to its end.
  experiment(id) {
    const arms = this.runs.filter((one) => one.experiment === id);
    const most = Math.max(...arms.map((one) => one.steps ?? 0));
    this.choose(arms.filter((one) => one.steps === most).slice(0, MOST).map((one) => one.id).sort());
  }

  async measure(signal) {
    const chosen = this.chosen.map((id) => this.runs.find((one) => one.id === id));
    const state = JSON.stringify(chosen.map((one) => [one.id, one.step, one.checkpoints]));
    if (state === this.drawn) return;
    const { data } = await this.server.json("v1/runs/curves", { runs: this.chosen }, signal);
    const groups = grouped(data, this.chosen);
    const charts = (list) => make("div.charts", list.map(chart));
    const [first, rest] = [true, false].map((is) => groups.filter(({ name }) => FIRST.includes(name) === is));
    const more = make("details", make("summary", "All other measurements"));
    more.addEventListener("toggle", () => more.childElementCount > 1 || more.append(charts(rest)));
    const open = this.curves.querySelector("details")?.open;
    this.curves.replaceChildren(make("h2.unseen", "Curves"), charts(first), rest.length ? more : "");
    more.open = Boolean(open);
    this.drawn = state;
    const single = chosen.length === 1 ? chosen[0] : null;
    this.checkpoints.offer(single);
    this.single = single;
    await this.write(signal);
  }

  async write(signal) {
    if (!this.single) this.written.replaceChildren();
    else this.written.replaceChildren(make("h2.unseen", "What it wrote"), ...await samples(this.server, this.single.id, this.checkpoints.step, signal));
  }
}

function arms({ experiment }, draw) {
  return experiment === null ? null : button("all arms", () => draw(experiment), { class: "link quiet", label: `Draw the arms of ${experiment}` });
}

// Curves of one kind of all runs: [{name, series}], those of the training rows beside the held-out ones.
function grouped(data, runs) {
  const names = [...new Set(data.flatMap(({ curves }) => Object.keys(curves).map((name) => name.replace(HELD_OUT, ""))))];
  const arms = [...new Set(runs.map(armOf))]; // which have a colour each, their runs the same
  return names.map((name) => ({ name, series: data.flatMap(({ run, curves }, i) => {
    const [own, held] = [curves[name], curves[HELD_OUT + name]];
    const label = shortened(run, runs);
    const pair = [[own, runs.length > 1 ? label : "training"], [held, runs.length > 1 ? `${label}, held out` : "held out"]];
    const shown = runs.length > MANY ? [[held ?? own, label]] : pair;
    return shown.filter(([one]) => one).map(([{ x, y }, called], k) => ({ name: called, x, y, line: true, points: x.length < 30, color: runs.length <= MANY ? 2 * i + k : arms.length > 1 ? arms.indexOf(armOf(run)) : i }));
  }) })).filter(({ series }) => series.length);
}

const armOf = (run) => run.slice(0, Math.max(0, run.lastIndexOf("/")));

// A run's name without what all of the chosen ones begin with.
function shortened(run, runs) {
  const parts = runs.map((one) => one.split("/"));
  let shared = 0;
  while (runs.length > 1 && parts.every((one) => one.length > shared + 1 && one[shared] === parts[0][shared])) shared += 1;
  return run.split("/").slice(shared).join("/");
}

function chart({ name, series }) {
  const [title, unit] = TITLES[name] ?? [name.replaceAll("_", " "), ""];
  const last = series.map((one) => `${one.name} ${brief(one.y.at(-1))}`).join(", ");
  return plot({ title, note: series.length > 4 ? "" : `Now: ${last}.`, x: { title: "step", whole: true }, y: { title: title.toLowerCase(), unit }, series });
}
