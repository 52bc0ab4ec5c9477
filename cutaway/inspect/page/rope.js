// RoPE: the pairs of a query and a key as clock hands, turned by their real angles.

const SWEEP = 1100; // milliseconds

const turning = {
  title: "Position, by turning",
  said: ({ attention: layers }) => (layers.some(({ turn }) => turn)
    ? "Before query and key meet, each pair of their numbers is turned by an angle that grows with the token's position, "
      + "so that the score feels only how far apart the two are."
    : "This model turns nothing: its positions were added to the embeddings."),
  build(state) {
    const { story } = state;
    const pair = slider("pair", { min: 0, max: 1, step: 1 }, (value) => state.set({ pair: value }, false));
    const dial = draw("svg", { viewBox: "-120 -120 240 240", class: "dial", role: "img" });
    const facts = make("div", { class: "stack" });
    const clocks = make("div", { class: "clocks", role: "group", "aria-label": "Every pair" });
    const again = make("button", { type: "button", class: "small", click: () => sweep() }, "Turn again");
    const figure = make("div", { class: "two" },
      make("div", { class: "dial-whole" }, dial, make("div", { class: "chooser" }, pair.whole, again)), facts);
    const none = make("p", { class: "quiet" });
    roving(clocks);
    let shown = null;
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
      const turn = story.attention[state.layer].turn;
      const possible = turn !== null && story.isNear(state.layer, state.head);
      figure.hidden = clocks.hidden = !possible;
      none.hidden = possible;
      none.textContent = turn === null ? "In this layer nothing is turned."
        : `The pairs of head ${state.layer}.${state.head} are not in this page: choose one of the heads above that are.`;
      if (!possible) return;
      const pairs = turnedPairs(state, turn);
      const best = pairs.reduce((a, b) => (Math.abs(b.change) > Math.abs(a.change) ? b : a)).index;
      const index = Math.min(state.pair ?? best, pairs.length - 1);
      const what = [state.layer, state.head, state.token, state.source, index].join();
      if (shown?.what === what) return;
      shown = { ...pairs[index], what };
      pair.input.max = pairs.length - 1;
      pair.input.value = index;
      pair.shown.textContent = `${shown.dimensions.join(" and ")}`;
      describe(dial, facts, state, shown);
      clockFaces(clocks, state, pairs, index);
      sweep();
    };
    return { whole: make("div", { class: "stack" }, none, figure, clocks), update };
  },
};

// Every pair of the chosen query and key: after turning as the model has it, before as it is turned back.
function turnedPairs(state, turn) {
  const { q, k } = state.story.vectors(state.layer, state.head, state.token, state.source);
  const half = turn.radians.length;
  return turn.radians.map((speed, index) => {
    const places = turn.interleaved ? [2 * index, 2 * index + 1] : [index, index + half];
    const dimensions = places.map((place) => place + turn.first);
    const query = turnOf(q, dimensions, state.token, speed, turn.magnitude);
    const key = turnOf(k, dimensions, state.source, speed, turn.magnitude);
    const after = query.after[0] * key.after[0] + query.after[1] * key.after[1];
    const before = query.before[0] * key.before[0] + query.before[1] * key.before[1];
    return { index, dimensions, speed, query, key, before, after, change: after - before };
  });
}

function turnOf(vector, [i, j], position, speed, magnitude) {
  const angle = position * speed;
  const [x, y] = [vector[i], vector[j]];
  const [cos, sin] = [Math.cos(angle) / magnitude, Math.sin(angle) / magnitude];
  return { position, angle, after: [x, y], before: [x * cos + y * sin, y * cos - x * sin] };
}

const degrees = (radians) => `${minus(((radians * 180) / Math.PI).toFixed(1))}°`;

// The hands of the dial when this part of the turn is done.
function hands(dial, shown, done) {
  const longest = Math.max(...["query", "key"].map((one) => Math.hypot(...shown[one].after)), 1e-9);
  for (const one of ["query", "key"]) {
    const { before, angle } = shown[one];
    const [length, start] = [(Math.hypot(...before) / longest) * 100, Math.atan2(before[1], before[0])];
    const now = start + angle * done;
    const hand = dial.querySelector(`.hand.${one}`);
    hand.setAttribute("x2", length * Math.cos(now));
    hand.setAttribute("y2", -length * Math.sin(now));
    dial.querySelector(`.arc.${one}`).setAttribute("d", arc(start, angle * done, one === "query" ? 46 : 34));
  }
}

// The way a hand went: whole turns are drawn as a spiral.
function arc(start, angle, radius) {
  const steps = Math.max(2, Math.ceil(Math.abs(angle) / 0.1));
  const rounds = Math.min(Math.abs(angle) / (2 * Math.PI), 40);
  return Array.from({ length: steps + 1 }, (_, i) => {
    const r = radius + (rounds > 1 ? (12 * i) / steps : 0);
    const at = start + (angle * i) / steps;
    return `${i ? "L" : "M"}${(r * Math.cos(at)).toFixed(2)} ${(-r * Math.sin(at)).toFixed(2)}`;
  }).join("");
}

function describe(dial, facts, state, shown) {
  const { story } = state;
  const longest = Math.max(...["query", "key"].map((one) => Math.hypot(...shown[one].after)), 1e-9);
  const ghost = (one) => {
    const [x, y] = shown[one].before.map((value) => (value / longest) * 100);
    return draw("line", { class: `ghost ${one}`, x1: 0, y1: 0, x2: x, y2: -y });
  };
  const ticks = Array.from({ length: 24 }, (_, i) => draw("line", {
    class: "tick", x1: 104, x2: i % 6 ? 108 : 112, y1: 0, y2: 0, transform: `rotate(${i * 15})`,
  }));
  const parts = ["key", "query"].flatMap((one) => [
    ghost(one), draw("path", { class: `arc ${one}` }), draw("line", { class: `hand ${one}`, x1: 0, y1: 0 })]);
  dial.replaceChildren(draw("circle", { r: 104, class: "face" }), ...ticks, ...parts, draw("circle", { r: 2.5, class: "pin" }));
  dial.setAttribute("aria-label", `The query's pair turned by ${degrees(shown.query.angle)}, the key's by ${degrees(shown.key.angle)}`);
  const rows = [["query", state.token], ["key", state.source]].map(([one, t]) => ({
    attributes: { class: "row", "data-t": t },
    cells: [
      make("span", { class: `key-line ${one}` }, one), tokenOf(story, t), String(t), degrees(shown[one].angle),
      pairText(shown[one].before), pairText(shown[one].after),
    ],
  }));
  facts.replaceChildren(
    make("p", {}, `Numbers ${shown.dimensions.join(" and ")} turn by ${degrees(shown.speed)} a token. The two tokens are `
      + `${state.token - state.source} apart, so between the hands ${degrees(shown.query.angle - shown.key.angle)} were added.`),
    scrolling("The turned pair", table("The selected pair before and after it is turned",
      [["", "left"], ["token", "left"], ["position", "right"], ["turned", "right"], ["before", "right"], ["after", "right"]], rows)),
    make("p", {}, "This pair's part of q · k goes from ", make("strong", {}, fixed(shown.before)), " to ",
      make("strong", {}, fixed(shown.after)), "."),
  );
}

const pairText = (pair) => `(${pair.map((one) => fixed(one, 2)).join(", ")})`;

function clockFaces(clocks, state, pairs, index) {
  const focused = clocks.contains(document.activeElement);
  clocks.replaceChildren(...pairs.map((one) => {
    const hand = (name, angle, length) => draw("line", {
      class: name, x1: 0, y1: 0, x2: length * Math.cos(angle), y2: -length * Math.sin(angle) });
    return make("button", {
      type: "button", tabindex: one.index === index ? "0" : "-1", "aria-pressed": String(one.index === index),
      "aria-label": `pair ${one.index}, ${degrees(one.speed)} a token`, click: () => state.set({ pair: one.index }, false),
    }, draw("svg", { viewBox: "-12 -12 24 24", "aria-hidden": "true" }, draw("circle", { r: 10.5, class: "face" }),
      hand("hand key", one.key.angle, 7), hand("hand query", one.query.angle, 9)));
  }));
  if (focused) clocks.children[index].focus();
}
