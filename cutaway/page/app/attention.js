// Where each head attended when a token was chosen: all heads as small rows, then one over the text, then its whole map.

import { palette, shade } from "../colours.js";
import { LIVE, bar, button, clamp, drawn, labelled, make, percent, picker, problem, quoted, readable, scrolling, status, table, times } from "../elements.js";
import { ALONE, PARTS, heat } from "../heat.js";
import { NO_WEIGHTS, headMap, weightOf } from "./headmap.js";
import { picture } from "../tiles.js";

const MOST = 2048; // cells of a row that are asked for; a longer text is pooled
const CELLS = 32; // of a row in small
const WHOLE = 256; // cells on a side of a whole map
const LISTED = 4;

export async function attention(box, { asked, edit }, { server, signal, kept }) {
  const body = { ...asked, positions: [-1], size: MOST };
  const found = await server.attention(body, signal);
  const rows = new Map(found.maps.map(([layer, head], i) => [`${layer}.${head}`, found.cells.subarray(i * found.shape[1], (i + 1) * found.shape[1])]));
  if (!rows.size) {
    box.replaceChildren(make("p", NO_WEIGHTS));
    return null;
  }
  if (!rows.has(`${kept.layer}.${kept.head}`)) [kept.layer, kept.head] = found.maps[strongest(found)];
  const large = make("div");
  const draw = () => large.replaceChildren(...oneHead(found, rows.get(`${kept.layer}.${kept.head}`), kept, {
    off: () => edit({ part: "head", layer: kept.layer, unit: kept.head }),
    whole: (place) => wholeMap(place, server, asked, kept, signal),
  }));
  const choose = (one) => {
    [kept.layer, kept.head] = one;
    draw();
    glance.update();
  };
  const glance = allHeads(found, rows, kept, choose);
  box.replaceChildren(make("h3", "Every head"), glance.whole, byToken(found, rows, kept, choose), large);
  choose([kept.layer, kept.head]);
  return ["v1/attention", body];
}

// The head whose largest weight on a token but the first is largest: heads attend to the first when they have nothing to add.
function strongest({ maps, shape: [, columns], cells }) {
  const most = maps.map((_, i) => Math.max(0, ...cells.subarray(i * columns + 1, (i + 1) * columns - 1)));
  return most.indexOf(Math.max(...most));
}

// The heads that attend to one token most, whichever is chosen.
function byToken({ maps, tokens, pooled }, rows, kept, choose) {
  const list = make("p.buttons", LIVE);
  const last = tokens.length - 1;
  const choices = tokens.flatMap((token, i) => (i % pooled[1] ? [] : [[i, `${i} ${drawn(token)}`]])).reverse();
  const which = picker("attended-token", [["", "a token …"], ...choices], kept.attended ?? "", (value) => {
    kept.attended = value;
    draw();
  });
  const draw = () => {
    const at = which.value === "" ? -1 : Math.min(last, Number(which.value));
    const all = at < 0 ? [] : maps.map(([layer, head]) => [layer, head, rows.get(`${layer}.${head}`)[Math.floor(at / pooled[1])]]);
    list.replaceChildren(...all.sort((a, b) => b[2] - a[2]).slice(0, LISTED).map(([layer, head, byte]) => button([`${layer}.${head} `, make("span.quiet", percent(weightOf(byte)))], () => choose([layer, head]), { label: `Head ${layer}.${head}, ${percent(weightOf(byte))} on this token` })));
  };
  draw();
  return make("div.by-token", make("p.select", labelled("Heads that attend most to", which)), list);
}

function allHeads({ maps, tokens, pooled }, rows, kept, choose) {
  const [layers, heads] = [0, 1].map((axis) => Math.max(...maps.map((one) => one[axis])) + 1);
  const small = new Map();
  const has = (r, c) => rows.has(`${r}.${c}`);
  return headMap({
    name: "Where every head attends",
    hint: "A row is a layer, a column a head; inside, the text from its beginning to the token before.",
    legend: { title: "attention weight", ...PARTS }, layers, heads, has, height: clamp(Math.floor(280 / layers), 7, 24),
    paint(pen, x, y, w, h, r, c) {
      if (!has(r, c)) return;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(thumb(small, `${r}.${c}`, rows.get(`${r}.${c}`)), x, y, w, h);
    },
    say(r, c) {
      const row = rows.get(`${r}.${c}`);
      const at = row.indexOf(Math.max(...row));
      return `Layer ${r}, head ${c}: ${percent(weightOf(row[at]))} on ${drawn(tokens[at * pooled[1]])}`;
    },
    pick: (r, c) => has(r, c) && choose([r, c]),
    chosen: () => [kept.layer, kept.head],
  });
}

// A row as few pixels, each the largest weight it covers. Drawn again when the colours change.
function thumb(small, name, row) {
  const { pixels } = palette();
  if (small.pixels !== pixels) small.clear();
  small.pixels = pixels;
  if (!small.has(name)) {
    const count = Math.min(CELLS, row.length);
    small.set(name, picture(times(count, (i) => {
      const [from, to] = [i, i + 1].map((at) => Math.floor((at * row.length) / count));
      return 1 + Math.max(...row.subarray(from, Math.max(from + 1, to)));
    }), count, pixels));
  }
  return small.get(name);
}

function oneHead({ tokens, pooled }, row, kept, { off, whole }) {
  const best = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, LISTED);
  const place = make("div");
  const text = make("p.attended", runs(tokens, (i) => Math.round((55 * row[Math.floor(i / pooled[1])]) / 255)).map(({ shade, words }) => make("span", {
    css: { "background-color": `color-mix(in srgb, var(--heat) ${shade}%, transparent)` } }, readable(words))));
  const wider = button("Whole map", () => whole(place));
  requestAnimationFrame(() => { text.parentElement.scrollTop = text.parentElement.scrollHeight; });
  return [
    make("h3", `Layer ${kept.layer}, head ${kept.head} attends to`),
    scrolling("The text, shaded by attention weight", text),
    table("The tokens of largest attention weight", ["token", ["position"], ["weight"], ""],
      best.map((at) => [quoted(tokens[at * pooled[1]]), at * pooled[1], percent(weightOf(row[at])), bar(weightOf(row[at]))])),
    make("p.buttons", button("Switch this head off", off), wider),
    place,
  ];
}

// Tokens in a row of one shade, as one text: most of a long text has none, so that it is few elements.
function runs(tokens, shadeOf) {
  const found = [];
  tokens.forEach((token, i) => {
    const [shade, last] = [shadeOf(i), found.at(-1)];
    if (last?.shade === shade) last.words += token;
    else found.push({ shade, words: token });
  });
  return found;
}

async function wholeMap(place, server, asked, { layer, head }, signal) {
  place.replaceChildren(status("Reading the whole text …"));
  try {
    const { shape, pooled, tokens, cells } = await server.attention({ ...asked, layers: [layer], heads: [head], size: WHOLE }, signal);
    const name = (at) => (pooled[0] === 1 ? drawn(tokens[at]) : `${at * pooled[0]}`);
    const each = pooled[0] === 1 ? "" : ` A cell is the largest weight of ${pooled[0]} by ${pooled[1]} tokens.`;
    const map = heat(ALONE, {
      name: `Attention map of layer ${layer}, head ${head}`,
      hint: `A row is a query, a column a key.${each}`,
      legend: { title: "attention weight", ...PARTS },
      rows: shape[0],
      columns: shape[1],
      size: { left: 44, width: [1, 24], tall: 420 },
      colour: (r, c) => (c > r ? null : shade(weightOf(cells[r * shape[1] + c]))),
      rowName: name,
      columnName: name,
      say: (r, c) => (c > r ? "A later token is not visible." : `From ${name(r)} to ${name(c)}: ${percent(weightOf(cells[r * shape[1] + c]))}`),
    });
    place.replaceChildren(map.whole);
    map.update();
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(problem(error.message));
  }
}
