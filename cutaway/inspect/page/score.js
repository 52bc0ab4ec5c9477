// Query, key, value: one share of attention worked out with the numbers of the model.

const PRODUCTS = 4;
const SHOWN = 8;

const score = {
  title: "Query, key, value",
  said: () => "One share of that attention by hand: the query of the token that looks times the key of the one it looks at, "
    + "scaled, against the same for all the others.",
  build(state) {
    const { story } = state;
    const query = select("who looks", (value) => state.set({ token: value }));
    const key = select("at whom", (value) => state.set({ source: value }));
    const work = make("div", { class: "stack" });
    const strips = vectorStrips(state);
    const update = () => {
      const texts = story.tokens.map((_, t) => `${t}  ${drawn(story.tokenText(t))}`);
      options(query.input, texts, state.token);
      options(key.input, texts.slice(0, state.token + 1), state.source);
      const near = story.isNear(state.layer, state.head);
      strips.whole.hidden = !near;
      work.replaceChildren(...(near ? working(state) : [farAway(state)]));
      if (near) strips.update();
    };
    const chooser = make("div", { class: "chooser" }, headChooser(state), query.whole, key.whole);
    return { whole: make("div", { class: "stack" }, chooser, strips.whole, work), update, hover: strips.hover };
  },
};

function farAway(state) {
  const { near, attention: layers } = state.story;
  if (layers[state.layer].memory) return make("p", { class: "quiet" }, MEMORY);
  const buttons = near.map(([layer, head]) =>
    make("button", { type: "button", class: "small", click: () => state.set({ layer, head }) }, `${layer}.${head}`));
  return make("div", {},
    make("p", {}, `For a text this long the page keeps the queries, keys and values of the ${near.length} heads that moved the answer most:`),
    make("p", { class: "buttons" }, buttons));
}

function vectorStrips(state) {
  const names = ["query", "key", "q × k", "value"];
  const parts = () => {
    if (!state.story.isNear(state.layer, state.head)) return [[], [], [], []];
    const { q, k, v } = state.story.vectors(state.layer, state.head, state.token, state.source);
    return [q, k, q.map((one, i) => one * k[i]), v];
  };
  let now = [[], [], [], []];
  let largest = [];
  const map = heat(state, {
    name: "Query, key, their products and the value, number by number",
    hint: "One column a number of the head: query, key, their products, and the value that is passed on.",
    rows: () => 4,
    columns: () => Math.max(...now.map((one) => one.length)),
    size(width) {
      now = parts();
      largest = now.map((one) => Math.max(...one.map(Math.abs)));
      const side = clamp((width - 64) / Math.max(1, ...now.map((one) => one.length)), 4, 18);
      return { left: 64, top: 0, width: Math.floor(side * 2) / 2, height: 26 };
    },
    colour: (r, c) => (c < now[r].length ? twoSided(now[r][c], largest[r]) : null),
    rowName: (r) => names[r],
    say: (r, c) => (c < now[r].length ? `${names[r]}[${c}] = ${number(now[r][c])}` : ""),
  });
  const update = () => {
    now = parts();
    map.update();
  };
  return { ...map, update };
}

function working(state) {
  const { story, layer, head, token, source } = state;
  const { q, k, group } = story.vectors(layer, head, token, source);
  const { scale, softcap, share } = story.attention[layer];
  const products = [...q].map((one, i) => [one * k[i], i]).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
  const whole = dot(q, k);
  const first = products.slice(0, PRODUCTS);
  const rest = whole - first.reduce((sum, [product]) => sum + product, 0);
  const found = story.softmax(layer, head, token);
  const bias = story.bias(layer, head, token - source);
  const added = bias === null ? "" : `, ${signed(bias)} for being ${token - source} apart`;
  const rows = first.map(([product, i]) => [`q[${i}] × k[${i}]`, `${number(q[i])} × ${number(k[i])}`, fixed(product)]);
  rows.push([`the other ${products.length - first.length}`, "", fixed(rest)]);
  rows.push({ attributes: { class: "sum" }, cells: ["q · k", "", fixed(whole)] });
  rows.push({
    attributes: { class: "sum" },
    cells: ["score", `× ${number(scale)}${softcap ? `, bounded to ±${number(softcap)}` : ""}${added}`, fixed(found.scores[source])],
  });
  const weight = found.weights[source];
  const seen = found.scores[source] > -Infinity;
  const line = seen
    ? `exp(${fixed(found.scores[source])} − ${fixed(found.best)}) = ${number(weight)}, out of ${number(found.sum)} for all: `
    : "It lies outside what this layer sees: ";
  return [
    make("div", { class: "two even" },
      make("div", {}, make("h3", {}, "The score"),
        table("The score, step by step", [["", "left"], ["", "right"], ["", "right"]], rows),
        share > 1 ? make("p", { class: "quiet" }, `Head ${head} shares the keys and values of group ${group}.`) : null,
        story.attention[layer].reads > 1
          ? make("p", { class: "quiet" }, "The head reads twice; this is the first reading, from which the second is taken.") : null),
      make("div", {}, make("h3", {}, "Its share"),
        make("p", { class: "formula" }, line, make("strong", {}, percent(found.shares[source]))),
        softmaxTable(state, found))),
  ];
}

function softmaxTable(state, found) {
  const { story, source } = state;
  const order = found.shares.map((share, s) => [share, s]).sort((a, b) => b[0] - a[0]);
  const shown = order.slice(0, SHOWN).map(([, s]) => s);
  if (!shown.includes(source)) shown[shown.length - 1] = source;
  shown.sort((a, b) => a - b);
  const rows = shown.map((s) => ({
    attributes: { "data-t": s, class: s === source ? "row chosen" : "row" },
    cells: [
      tokenOf(story, s),
      found.scores[s] > -Infinity ? fixed(found.scores[s]) : "unseen",
      fixed(found.weights[s], 4), percent(found.shares[s]), bar(found.shares[s]),
    ],
  }));
  const left = order.length - shown.length;
  if (left) {
    const known = new Set(shown);
    const others = order.filter(([, s]) => !known.has(s));
    const share = others.reduce((sum, [one]) => sum + one, 0);
    const weight = others.reduce((sum, [, s]) => sum + found.weights[s], 0);
    rows.push([`${left} more`, "", fixed(weight, 4), percent(share), bar(share)]);
  }
  if (found.sink !== null) {
    const share = found.spent / found.sum;
    rows.push(["the sink, which gives nothing", fixed(found.sink), fixed(found.spent, 4), percent(share), bar(share)]);
  }
  return table("The softmax of the row",
    [["token", "left"], ["score", "right"], ["exp", "right"], ["share", "right"], ["", "left"]], rows);
}
