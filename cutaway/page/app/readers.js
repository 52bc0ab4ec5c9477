// Which heads read a line while the model answered, and whether they matter: attention to it, then the causal check.

import { bar, button, fixed, make, marked, percent, problem, remark, scrolling, status, table, times, total } from "../elements.js";
import { NO_WEIGHTS, headMap, weightOf } from "./headmap.js";
import { SOURCES } from "./sources.js";
import { PARTS } from "../heat.js";

const ANSWERED = 8; // first tokens of the answer, whose choice is looked at
const MOST = 2048;
const CHECKED = 4; // heads that are ablated together
const SETS = 7; // of as many others
const LISTED = 8;

// asked: {model, ids, from: the answer's first token, count}; tokens: the prompt's, with sources; line: {first, last}.
export async function readers({ model, ids, from, count }, tokens, line, { server, signal, off }) {
  const places = times(Math.min(ANSWERED, count), (i) => from - 1 + i);
  const asked = { model, prompt_token_ids: ids.slice(0, places.at(-1) + 1) };
  const found = await server.attention({ ...asked, positions: places, size: MOST }, signal);
  if (!found.maps.length) return [make("p", NO_WEIGHTS)];
  const heads = shares(found, tokens, line);
  const best = [...heads].sort((a, b) => b.line - a.line);
  const check = make("div", status("The causal check …"));
  const map = everyHead(heads);
  causal(asked, places, heads, best, server, signal).then((made) => check.replaceChildren(...made)).catch((error) => {
    if (error.name !== "AbortError") check.replaceChildren(problem(error.message));
  });
  const listed = ["line", ...SOURCES].filter((name) => heads.some((one) => one[name] > 0.005));
  return [
    make("h3", "Every head’s attention to the line"), map.whole,
    make("h3", "The heads that read it most"),
    scrolling("Heads and what they read", table(`Attention of heads, the mean over the answer’s first ${places.length} tokens`, ["head", ...listed.map((name) => [name === "line" ? "the line" : `rest of ${name}`])],
        best.slice(0, LISTED).map((one) => [`${one.layer}.${one.head}`, ...listed.map((name) => percent(one[name]))]))),
    remark("Each row sums to 100% with what the heads read of the answer itself. A head that adds nothing attends to the first token, which is the template’s."),
    check,
    make("p.buttons", button(`Switch the first ${CHECKED} off, and answer again`, () => off(best.slice(0, CHECKED)))),
    map.update,
  ];
}

// Of each head the mean attention to the line, and to the rest of what each source wrote.
export function shares({ maps, shape: [rows, columns], cells, pooled }, tokens, line) {
  const kind = times(columns, (c) => {
    const at = c * pooled[1];
    return at >= line.first && at <= line.last ? "line" : tokens[at]?.source ?? "answer";
  });
  return maps.map(([layer, head], m) => {
    const found = { layer, head, line: 0, ...Object.fromEntries([...SOURCES, "answer"].map((name) => [name, 0])) };
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) found[kind[c]] += weightOf(cells[(m * rows + r) * columns + c]) / rows;
    return found;
  });
}

function everyHead(heads) {
  const [layers, across] = ["layer", "head"].map((axis) => Math.max(...heads.map((one) => one[axis])) + 1);
  const by = new Map(heads.map((one) => [`${one.layer}.${one.head}`, one]));
  const line = (r, c) => by.get(`${r}.${c}`).line;
  return headMap({
    name: "Attention to the line", legend: { title: "attention to the line", ...PARTS },
    layers, heads: across, has: (r, c) => by.has(`${r}.${c}`), part: line,
    say: (r, c) => `Head ${r}.${c}: ${percent(line(r, c))} on the line`,
  });
}

// Attention is no proof: without the heads that read the line the answer must change more than without others.
async function causal(asked, places, heads, best, server, signal) {
  const without = (some) => some.map(({ layer, head }) => ({ kind: "ablate", layer, part: "head", head, positions: places }));
  const measure = async (some) => {
    const { kl } = await server.about("v1/divergence", { ...asked, positions: places, edits: without(some) }, signal);
    return total(kl) / kl.length;
  };
  const top = best.slice(0, CHECKED);
  const found = await measure(top);
  const others = [];
  for (const some of drawn(heads.filter((one) => !top.includes(one)))) others.push(await measure(some));
  const mean = total(others) / others.length;
  const most = Math.max(found, ...others, 1e-9);
  const more = found > Math.max(...others)
    ? `They matter here: the answer changes more without them than without any of ${others.length} other sets, which happens by chance once in ${others.length + 1} times.`
    : "They do not matter more than others do here: attention to a line is no proof that it is followed.";
  return [
    make("h3", "Causal check"),
    table("How far the answer’s distributions move without heads", ["ablated there", ["KL, nats"], ""],
      [[`the ${top.length} that read the line most`, found], [`${top.length} others, mean of ${others.length} draws`, mean]].map(([name, value], i) => marked(i ? null : "chosen",
        [make("span.wrapped", name), fixed(value, 4), bar(value / most)]))),
    remark(`${more} Each draw: ${others.map((one) => fixed(one, 4)).join(", ")}.`),
  ];
}

// Sets of heads by chance, the same ones each time.
function drawn(heads) {
  let state = 7;
  const next = () => { state = (state * 1103515245 + 12345) % 2147483648; return state / 2147483648; };
  return times(Math.min(SETS, heads.length), () => {
    const left = [...heads];
    return times(Math.min(CHECKED, left.length), () => left.splice(Math.floor(next() * left.length), 1)[0]);
  });
}
