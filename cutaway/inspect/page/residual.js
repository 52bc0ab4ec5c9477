// The residual stream: how long it grows, what each head and MLP wrote into it, and what that did for the answer.

const stream = {
  title: "The residual stream",
  said: () => "Everything a layer finds is added to one vector a token: how long that grows, how much each head and MLP wrote, "
    + "and how far that moved the answer.",
  build(state) {
    const { story } = state;
    const chart = draw("svg", { class: "chart", role: "img", viewBox: "0 0 720 150", preserveAspectRatio: "none" });
    const ends = make("p", { class: "quiet chart-ends" });
    const wrote = writers(state, "What each head and MLP wrote, by length", (layer, head) => (head === null
      ? story.array(`wrote.mlp.${layer}`)[state.token] : story.row(`wrote.${layer}`, state.token)[head]),
    (value, most) => shade(value / most), (value) => `wrote a vector ${number(value)} long`);
    const moved = writers(state, "What each head and MLP added to the answer's score", (layer, head) => (head === null
      ? story.array("moved.mlp")[layer] : story.array(`moved.${layer}`)[head]),
    twoSided, (value) => `added ${signed(value)} logits`);
    const writtenTitle = make("h3", {});
    const update = () => {
      growth(chart, ends, state);
      writtenTitle.replaceChildren("Written at ", tokenOf(story, state.token));
      wrote.update();
      moved.update();
    };
    const answer = () => make("bdi", { class: "word" }, drawn(story.moved.text));
    const whole = make("div", { class: "stack" },
      make("div", {}, make("h3", {}, "Its length"), chart, ends),
      make("div", {}, writtenTitle, wrote.whole),
      make("div", {}, make("h3", {}, "Moved the score of ", answer(), ", the answer"), moved.whole, ...sums(state)));
    return { whole, update, hover: () => [wrote, moved].forEach((map) => map.hover()) };
  },
};

// The length of the selected token's stream after each half of each block, on a logarithmic scale.
function growth(chart, ends, state) {
  const { story } = state;
  const lengths = [...story.row("norms", state.token)].map((one) => Math.max(one, 1e-9));
  const all = [...story.array("norms")].map((one) => Math.log10(Math.max(one, 1e-9)));
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const at = (values) => values.map((value, i) =>
    `${i ? "L" : "M"}${((i / Math.max(1, values.length - 1)) * 716 + 2).toFixed(1)} `
    + `${(144 - ((Math.log10(value) - low) / (high - low || 1)) * 138).toFixed(1)}`).join("");
  const decades = [];
  for (let power = Math.ceil(low); power <= high; power++) {
    const y = 144 - ((power - low) / (high - low || 1)) * 138;
    decades.push(draw("line", { class: "grid", x1: 0, x2: 720, y1: y, y2: y }));
  }
  chart.replaceChildren(...decades, draw("path", { class: "line", d: at(lengths) }));
  const text = `from ${number(lengths[0])} at the embedding to ${number(lengths.at(-1))} after the last block; `
    + `a line across is ten times the one below`;
  chart.setAttribute("aria-label", `The stream's length goes ${text}`);
  ends.replaceChildren(tokenOf(story, state.token), ` ${text}.`);
}

// Layers from left to right; a row a head, and the MLP below them.
function writers(state, name, value, colour, said) {
  const { story } = state;
  const rows = story.mostHeads + 1;
  const part = (r) => (r < story.mostHeads ? r : null);
  const has = (r, c) => part(r) === null || r < story.heads[c];
  let most = 1;
  const map = heat(state, {
    name: `${name}: a column a layer, a row a head, the last row the MLP; Enter chooses`,
    hint: "Layers from left to right, heads from top to bottom, the MLP in the last row.",
    rows: () => rows,
    columns: () => story.layers,
    size(width) {
      const side = clamp(Math.floor((width - 44) / story.layers), 16, 40);
      return { left: 44, top: 22, width: side, height: 18 };
    },
    colour: (r, c) => (has(r, c) ? colour(value(c, part(r)), most) : null),
    rowName: (r) => (part(r) === null ? "MLP" : `h ${r}`),
    columnName: (c) => String(c),
    say: (r, c) => (has(r, c)
      ? `Layer ${c}, ${part(r) === null ? "MLP" : `head ${r}`}: ${said(value(c, part(r)))}` : "This layer has fewer heads."),
    pick: (r, c) => state.set(part(r) === null ? { layer: c } : { layer: c, head: r }),
    chosen: () => [state.head, state.layer],
  });
  const update = () => {
    most = 0;
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < story.layers; c++) if (has(r, c)) most = Math.max(most, Math.abs(value(c, part(r))));
    }
    map.update();
  };
  return { ...map, update };
}

// The parts of the answer's score, which add up to it; and the heads that moved it most.
function sums(state) {
  const { story } = state;
  const { moved } = story;
  const heads = story.heads.reduce((sum, _, i) => sum + story.array(`moved.${i}`).reduce((a, b) => a + b, 0), 0);
  const mlps = story.array("moved.mlp").reduce((a, b) => a + b, 0);
  const parts = [["the embedding", moved.embed], ["all heads", heads], ["all MLPs", mlps]];
  if (Math.abs(moved.biases) > 5e-3) parts.push(["biases", moved.biases]);
  if (Math.abs(moved.rest) > 5e-3) parts.push(["the rest", moved.rest]);
  const rows = parts.map(([name, value]) => [name, signed(value)]);
  rows.push({ attributes: { class: "sum" }, cells: ["its score", fixed(moved.logit, 2)] });
  const best = moved.heads.map(({ layer, head, contribution, looked_at: t, share }) => ({
    attributes: t === null ? { class: "row" } : { class: "row", "data-t": t },
    cells: [
      make("button", { type: "button", class: "small", click: () => state.set({ layer, head, source: t ?? state.source }),
        "aria-label": `Choose layer ${layer}, head ${head}` }, `${layer}.${head}`),
      signed(contribution), t === null ? "a memory" : tokenOf(story, t), t === null ? "" : percent(share),
    ],
  }));
  return [make("div", { class: "two even" },
    table("The parts of the answer's score", [["", "left"], ["logits", "right"]], rows),
    table("The heads that moved the answer most",
      [["head", "left"], ["logits", "right"], ["looked at", "left"], ["share", "right"]], best))];
}
