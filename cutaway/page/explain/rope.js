// RoPE: the pairs of a query and a key as clock hands, rotated by their real angles.

import { dot } from "./explanation.js";
import { button, draw, fixed, make, minus, roving, slider, still, table, times, tokenOf, total } from "../elements.js";

const SWEEP = 1100; // milliseconds

export const rope = {
  title: "Rotary position embedding (RoPE)",
  about: ({ attention: layers }) => (layers.some(({ rope: one }) => one)
    ? "Each pair of dimensions of a query and a key is rotated by an angle that grows with the token's position, "
      + "so that their dot product depends only on the distance."
    : "This model has no RoPE: it encodes positions otherwise."),
  build,
};

function build(state) {
  const { explanation } = state;
  let shown = null;
  const pair = slider("pair", { min: 0, max: 1, step: 1 }, (value) => state.set({ pair: value }), () => shown?.dimensions.join(" and ") ?? "");
  const dial = draw("svg", { viewBox: "-120 -120 240 240", class: "dial", role: "img", label: "A pair being rotated" });
  const detail = make("div.stack");
  const clocks = make("div.clocks", { role: "group", label: "Every pair" });
  const figure = make("div.two", make("div.dial-whole", dial, make("div.chooser", pair.whole, button("Rotate again", sweep))), detail);
  const none = make("p.quiet");
  roving(clocks);
  let frame = 0;

  function sweep() {
    cancelAnimationFrame(frame);
    if (still.matches) return hands(dial, shown, 1);
    const start = performance.now();
    const step = (now) => {
      const done = Math.min(1, (now - start) / SWEEP);
      hands(dial, shown, done < 0.5 ? 4 * done ** 3 : 1 - (2 - 2 * done) ** 3 / 2);
      if (done < 1) frame = requestAnimationFrame(step);
    };
    frame = requestAnimationFrame(step);
  }

  const update = () => {
    none.textContent = missing(state);
    figure.hidden = clocks.hidden = !(none.hidden = !none.textContent);
    if (figure.hidden) return;
    const pairs = rotatedPairs(state);
    const index = Math.min(state.pair ?? strongestPair(state.page.leader(state)), pairs.length - 1);
    const what = [state.layer, state.head, state.token, state.source, index].join();
    if (shown?.what === what) return;
    shown = { ...pairs[index], what };
    pair.input.max = pairs.length - 1;
    pair.set(index);
    describe(dial, detail, state, shown);
    clockFaces(clocks, state, pairs, index);
    sweep();
  };
  return { whole: make("div.stack", none, figure, clocks), update };
}

// Why the chosen head's rotations are not shown, where they are not.
export function missing(state) {
  if (state.attention.rope === null) return "This layer has no RoPE.";
  return state.detailed ? "" : `The page does not keep head ${state.layer}.${state.head} in detail: choose one of the heads above.`;
}

// The pair whose rotation changes the score most.
function strongestPair(state) {
  return missing(state) ? 0 : rotatedPairs(state).reduce((a, b) => (Math.abs(b.change) > Math.abs(a.change) ? b : a)).index;
}

// Every pair of the chosen query and key: after the rotation as the model has it, before as it is rotated back.
function rotatedPairs(state) {
  const { rope: facts } = state.attention;
  const { q, k } = state.explanation.vectors(state.layer, state.head, state.token, state.source);
  const half = facts.radians.length;
  return facts.radians.map((frequency, index) => {
    const pair = facts.interleaved ? [2 * index, 2 * index + 1] : [index, index + half];
    const dimensions = pair.map((dimension) => dimension + facts.first);
    const query = rotation(q, dimensions, state.token, frequency, facts.magnitude);
    const key = rotation(k, dimensions, state.source, frequency, facts.magnitude);
    const after = query.after[0] * key.after[0] + query.after[1] * key.after[1];
    const before = query.before[0] * key.before[0] + query.before[1] * key.before[1];
    return { index, dimensions, frequency, query, key, before, after, change: after - before };
  });
}

// The chosen query and key before their rotation: the pairs, and the part of the score that no pair has.
export function unrotated(state) {
  const { q, k } = state.explanation.vectors(state.layer, state.head, state.token, state.source);
  const pairs = rotatedPairs(state);
  const rest = dot(q, k) - total(pairs.map(({ after }) => after));
  return { rest: rest / state.attention.rope.magnitude ** 2, pairs: pairs.map(({ query, key }) => ({ q: query.before, k: key.before })) };
}

function rotation(vector, [i, j], position, frequency, magnitude) {
  const angle = position * frequency;
  const [x, y] = [vector[i], vector[j]];
  const [cos, sin] = [Math.cos(angle) / magnitude, Math.sin(angle) / magnitude];
  return { position, angle, after: [x, y], before: [x * cos + y * sin, y * cos - x * sin] };
}

const degrees = (radians) => `${minus(((radians * 180) / Math.PI).toFixed(1))}°`;

const SIDES = ["query", "key"];
const longest = (shown) => Math.max(...SIDES.map((one) => Math.hypot(...shown[one].after)), 1e-9);

// The hands of the dial when this part of the rotation is done.
function hands(dial, shown, done) {
  for (const one of SIDES) {
    const { before, angle } = shown[one];
    const [length, start] = [(Math.hypot(...before) / longest(shown)) * 100, Math.atan2(before[1], before[0])];
    const now = start + angle * done;
    const hand = dial.querySelector(`.hand.${one}`);
    hand.setAttribute("x2", length * Math.cos(now));
    hand.setAttribute("y2", -length * Math.sin(now));
    dial.querySelector(`.arc.${one}`).setAttribute("d", arc(start, angle * done, one === "query" ? 46 : 34));
  }
}

// The path of a hand: whole rotations are drawn as a spiral.
function arc(start, angle, radius) {
  const steps = Math.max(2, Math.ceil(Math.abs(angle) / 0.1));
  const rounds = Math.min(Math.abs(angle) / (2 * Math.PI), 40);
  return times(steps + 1, (i) => {
    const r = radius + (rounds > 1 ? (12 * i) / steps : 0);
    const at = start + (angle * i) / steps;
    return `${i ? "L" : "M"}${(r * Math.cos(at)).toFixed(2)} ${(-r * Math.sin(at)).toFixed(2)}`;
  }).join("");
}

function describe(dial, detail, state, shown) {
  const { explanation } = state;
  const ghost = (one) => {
    const [x, y] = shown[one].before.map((value) => (value / longest(shown)) * 100);
    return draw("line", { class: `ghost ${one}`, x1: 0, y1: 0, x2: x, y2: -y });
  };
  const ticks = times(24, (i) => draw("line.tick", {
    x1: 104, x2: i % 6 ? 108 : 112, y1: 0, y2: 0, transform: `rotate(${i * 15})`,
  }));
  const parts = SIDES.toReversed().flatMap((one) => [
    ghost(one), draw("path", { class: `arc ${one}` }), draw("line", { class: `hand ${one}`, x1: 0, y1: 0 })]);
  dial.replaceChildren(draw("circle", { r: 104, class: "face" }), ...ticks, ...parts, draw("circle", { r: 2.5, class: "pin" }));
  dial.setAttribute("aria-label", `The query's pair rotated by ${degrees(shown.query.angle)}, the key's by ${degrees(shown.key.angle)}`);
  const sides = [["query", state.token], ["key", state.source]];
  const row = (name, cell) => [name, ...sides.map(cell)];
  detail.replaceChildren(
    make("p", `Dimensions ${shown.dimensions.join(" and ")} rotate by ${degrees(shown.frequency)} a token. The tokens are `
      + `${state.token - state.source} apart, so the angle between query and key changes by ${degrees(shown.query.angle - shown.key.angle)}.`),
    table("The selected pair before and after its rotation", ["", ["query", "derived", "exact once rotated"], ["key", "derived", "exact once rotated"]], [
      row("token", ([one, t]) => make("span", { class: `key-line ${one}`, "data-t": t }, tokenOf(explanation, t))),
      row("position", ([, t]) => t),
      row("angle", ([one]) => degrees(shown[one].angle)),
      row("before", ([one]) => pairText(shown[one].before)),
      row("after", ([one]) => pairText(shown[one].after)),
    ]),
    make("p", "This pair's part of q · k changes from ", make("strong", fixed(shown.before)), " to ",
      make("strong", fixed(shown.after)), "."),
  );
}

const pairText = (pair) => `(${pair.map((one) => fixed(one, 2)).join(", ")})`;

function clockFaces(clocks, state, pairs, index) {
  const focused = clocks.contains(document.activeElement);
  clocks.replaceChildren(...pairs.map((one) => {
    const hand = (name, angle, length) => draw("line", {
      class: name, x1: 0, y1: 0, x2: length * Math.cos(angle), y2: -length * Math.sin(angle) });
    return make("button", {
      type: "button", tabindex: one.index === index ? "0" : "-1", "aria-pressed": one.index === index,
      label: `pair ${one.index}, ${degrees(one.frequency)} a token`, click: () => state.set({ pair: one.index }),
    }, draw("svg", { viewBox: "-12 -12 24 24", "aria-hidden": "true" }, draw("circle", { r: 10.5, class: "face" }),
      hand("hand key", one.key.angle, 7), hand("hand query", one.query.angle, 9)));
  }));
  if (focused) clocks.children[index].focus();
}
