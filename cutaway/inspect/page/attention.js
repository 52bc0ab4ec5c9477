// Attention: every head at a glance, and the chosen one large.

const THUMB = 32;
const MEMORY = "This layer looks at no token: it keeps the past as one memory a head, and its heads read it whole.";

const attention = {
  title: "Attention",
  said: ({ layers, mostHeads }) =>
    `Each of ${layers} × ${mostHeads} heads decides how much every token takes from each token before it; choose one to see it large.`,
  build(state) {
    const glance = allHeads(state);
    const large = oneHead(state);
    const title = make("h3", {});
    const row = make("div", { class: "near" });
    const update = () => {
      title.textContent = `Layer ${state.layer}, head ${state.head}`;
      row.replaceChildren(...sharesOf(state));
      glance.update();
      large.update();
    };
    const whole = make("div", { class: "stack" },
      make("h3", {}, "Every head"), glance.whole, make("div", { class: "chooser" }, title, headChooser(state)),
      make("div", { class: "two wide" }, row, large.whole));
    return { whole, update, hover: (t) => [glance, large].forEach((map) => map.hover(t)) };
  },
};

// Two selects for the layer and the head; they follow the state by themselves.
function headChooser(state) {
  const { story } = state;
  const layer = select("layer", (value) => state.set({ layer: value }));
  const head = select("head", (value) => state.set({ head: value }));
  const update = () => {
    options(layer.input, Array.from({ length: story.layers }, (_, i) => String(i)), state.layer);
    options(head.input, Array.from({ length: story.heads[state.layer] }, (_, i) => String(i)), state.head);
  };
  state.views.push({ update });
  return make("div", { class: "selects" }, layer.whole, head.whole);
}

function allHeads(state) {
  const { story } = state;
  const thumbs = new Map();
  let across = true;
  const at = (r, c) => (across ? [c, r] : [r, c]);
  return heat(state, {
    name: "Every head's attention, small: arrow keys move over layers and heads, Enter chooses",
    hint: "Layers run from first to last. In each little map a row is a token that looks, a column one that is looked at.",
    rows: () => (across ? story.mostHeads : story.layers),
    columns: () => (across ? story.layers : story.mostHeads),
    size(width) {
      across = (width - 44) / story.layers >= 24;
      const cells = across ? story.layers : story.mostHeads;
      const side = clamp(Math.floor((width - 44) / cells), 24, 64);
      return { left: 44, top: 26, width: side, height: side, tall: 640 };
    },
    paint(drawing, x, y, w, h, r, c) {
      const [layer, head] = at(r, c);
      if (head >= story.heads[layer]) return;
      drawing.imageSmoothingEnabled = story.length > 8;
      drawing.drawImage(thumb(story, thumbs, layer, head), x, y, w - 1, h - 1);
    },
    lit(drawing, t, view, x, y, size) {
      drawing.globalAlpha = 0.55;
      const side = size.width - 2;
      const thick = Math.max(1, side / story.length);
      for (let r = view.fromRow; r < view.toRow; r++) {
        for (let c = view.fromColumn; c < view.toColumn; c++) {
          drawing.fillRect(x(c), y(r) + (t / story.length) * side, side, Math.min(thick, 1.5));
          drawing.fillRect(x(c) + (t / story.length) * side, y(r), Math.min(thick, 1.5), side);
        }
      }
    },
    rowName: (r) => (across ? `h ${r}` : `${r}`),
    columnName: (c) => (across ? `${c}` : `h${c}`),
    say(r, c) {
      const [layer, head] = at(r, c);
      if (head >= story.heads[layer]) return "This layer has fewer heads.";
      const moved = story.array(`moved.${layer}`)[head];
      return `Layer ${layer}, head ${head}: added ${signed(moved)} logits to ${drawn(story.moved.text)}, by itself.`;
    },
    pick(r, c) {
      const [layer, head] = at(r, c);
      if (head < story.heads[layer]) state.set({ layer, head });
    },
    chosen: () => (across ? [state.head, state.layer] : [state.layer, state.head]),
  });
}

// A head's map at the size of a thumb: of the tokens that share a pixel, the largest share. Made anew in other colours.
function thumb(story, thumbs, layer, head) {
  const { up } = palette();
  const key = layer * 4096 + head;
  if (thumbs.colours !== up) {
    thumbs.clear();
    thumbs.colours = up;
  }
  if (thumbs.has(key)) return thumbs.get(key);
  const side = Math.min(story.length, THUMB);
  const most = new Float32Array(side * side);
  for (let q = 0; q < story.length; q++) {
    const row = Math.floor((q * side) / story.length) * side;
    for (let s = 0; s <= q; s++) {
      const cell = row + Math.floor((s * side) / story.length);
      most[cell] = Math.max(most[cell], story.share(layer, head, q, s));
    }
  }
  const canvas = make("canvas", { width: side, height: side });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(side, side);
  most.forEach((share, i) => image.data.set([...up[Math.round(255 * Math.sqrt(share))], 255], i * 4));
  pen.putImageData(image, 0, 0);
  thumbs.set(key, canvas);
  return canvas;
}

function oneHead(state) {
  const { story } = state;
  const about = (share) => (story.isNear(state.layer, state.head) ? percent(share) : `about ${Math.round(share * 100)}%`);
  let key = null;
  let rows = [];
  const shares = (q) => {
    const now = `${state.layer}.${state.head}`;
    if (key !== now) [key, rows] = [now, []];
    return (rows[q] ??= story.shares(state.layer, state.head, q));
  };
  return heat(state, {
    name: "Attention of the chosen head: a row a token that looks, a column a token that is looked at; Enter chooses both",
    hint: "Each row shares out one whole. Choose a cell to work its number out below.",
    rows: () => story.length,
    columns: () => story.length,
    size(width) {
      const left = story.length > 40 ? 84 : 96;
      const side = clamp(Math.floor((width - left) / story.length), 3, 48);
      return { left, top: 74, slant: true, width: side, height: side, tall: 720 };
    },
    colour: (r, c) => (c <= r ? shade(shares(r)[c]) : null),
    rowName: (r) => drawn(story.tokenText(r)),
    columnName: (c) => drawn(story.tokenText(c)),
    rowToken: (r) => r,
    columnToken: (c) => c,
    say: (r, c) => (story.attention[state.layer].memory ? MEMORY : c <= r
      ? `${drawn(story.tokenText(r))} gives ${about(shares(r)[c])} to ${c === r ? "itself" : drawn(story.tokenText(c))}`
      : `${drawn(story.tokenText(r))} cannot see ${drawn(story.tokenText(c))}: it comes later`),
    pick: (r, c) => state.set({ token: r, source: c }),
    chosen: () => [state.token, state.source],
  });
}

function sharesOf(state) {
  const { story } = state;
  if (story.attention[state.layer].memory) return [make("p", { class: "quiet" }, MEMORY)];
  const near = story.isNear(state.layer, state.head);
  const shares = [...story.shares(state.layer, state.head, state.token).entries()];
  const best = shares.sort((a, b) => b[1] - a[1]).slice(0, 8);
  const rows = best.map(([s, share]) => ({
    attributes: { "data-t": s, class: "row" },
    cells: [tokenOf(story, s), near ? percent(share) : `≈ ${Math.round(share * 100)}%`, bar(share)],
  }));
  return [
    make("p", {}, tokenOf(story, state.token), " takes from"),
    table("Where the chosen token looks most", [["token", "left"], ["share", "right"], ["", "left"]], rows),
  ];
}
