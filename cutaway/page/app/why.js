// Why a token: its logit as the exact sum of what each head and MLP wrote, then the causal check, side by side.

import { twoSided } from "../colours.js";
import { bar, button, drawn, fixed, labelled, make, marked, number, percent, picker, quoted, remark, signed, table, total } from "../elements.js";
import { logitParts } from "../explain/residual.js";
import { headMap } from "./headmap.js";

const CHECKED = 4; // parts that the causal check ablates
const SAMPLES = 5; // sets of others, drawn by chance
const LISTED = 8;

const nameOf = ({ layer, head }) => (head === null ? `MLP ${layer}` : `head ${layer}.${head}`);

export async function why(box, { answer, index, asked, edit }, { server, signal, kept, again }) {
  const { id, token, top = [] } = answer.tokens[index];
  const others = top.filter((one) => one.id !== id);
  const against = others.some((one) => one.id === kept.against) ? kept.against : null;
  const body = { ...asked, token: id, ...(against === null ? {} : { against }), check: CHECKED, samples: SAMPLES };
  const found = await server.about("v1/attribution", body, signal);
  const map = parts(found);
  const other = picker("against", [["", "all others"], ...others.map((one) => [one.id, drawn(one.token)])], against ?? "", (value) => {
    kept.against = value ? Number(value) : null;
    again("#against");
  });
  box.replaceChildren(
    make("p.select", labelled("Why this, and not", other)),
    make("p", against === null ? "The logit of " : "The logit by which it leads, that of ", quoted(token),
      ...(against === null ? [] : [" less that of ", quoted(others.find((one) => one.id === against).token)]),
      `${against === null ? "" : ","} is ${fixed(found.logit, 2)}: the exact sum of what each part wrote for it.`),
    logitParts("The parts of the token’s logit", { ...found, heads: total(found.heads.flat()), mlps: total(found.mlps) }),
    make("h3", "Each head and MLP"), map.whole,
    make("h3", "Largest writers"), writers(found, answer, edit),
    ...check(found));
  map.update();
  return ["v1/attribution", body];
}

function parts({ heads, mlps }) {
  const across = Math.max(...heads.map((own) => own.length));
  const value = (r, c) => (c < across ? heads[r][c] : mlps[r]);
  const most = Math.max(...heads.flat().map(Math.abs), ...mlps.map(Math.abs));
  const name = (r, c) => (c < across ? `head ${r}.${c}` : `MLP ${r}`);
  const has = (r, c) => value(r, c) !== undefined;
  return headMap({
    name: "What each head and MLP wrote for the token",
    hint: "A row is a layer, a column a head, the last column the MLP.",
    legend: { title: "logits", signed: true, largest: most, write: number },
    layers: heads.length, heads: across + 1, has,
    colour: (r, c) => (has(r, c) ? twoSided(value(r, c), most) : null),
    columnName: (c) => (c < across ? `h${c}` : "MLP"),
    say: (r, c) => `${name(r, c)}: ${signed(value(r, c))} logits`,
  });
}

function writers({ writers: found }, answer, edit) {
  const text = (at) => (at < answer.prompt.length ? null : answer.tokens[at - answer.prompt.length].token);
  const about = (one) => {
    if (one.head === null) {
      return one.neurons.slice(0, 1).map(({ neuron }) => button(`neuron ${neuron}`, () => edit({ part: "neuron", layer: one.layer, unit: neuron }), { label: `Switch off neuron ${one.layer}.${neuron}, its largest` }))[0] ?? "";
    }
    const [first] = one.attends_to;
    if (!first) return "recurrent";
    const own = text(first.position);
    return make("span", own === null ? `prompt ${first.position}` : quoted(own), ` ${percent(first.weight)}`);
  };
  const rows = found.slice(0, LISTED).map((one) => [
    nameOf(one), signed(one.logits), about(one),
    button("Off", () => edit(one.head === null
      ? { part: "mlp", layer: one.layer } : { part: "head", layer: one.layer, unit: one.head }), { label: `Switch off ${nameOf(one)}` }),
  ]);
  return table("The parts that wrote most", ["part", ["logits"], "attends to, or neuron", [""]], rows);
}

// The sum is a claim: without its top writers the token must lose far more than without others.
function check({ check: made, token }) {
  if (!made?.writers.ablated.length) return [];
  const count = made.writers.ablated.length;
  const mean = total(made.random.map((one) => one.probability)) / made.random.length;
  const rows = [["as it is", token.probability], [`without its ${count} top writers`, made.writers.probability], [`without ${count} others, on average`, mean]];
  return [
    make("h3", "Causal check"),
    table("The token’s probability with parts ablated at its position", ["", ["probability"], ""],
      rows.map(([name, part], i) => marked(i === 1 ? "chosen" : null, [make("span.wrapped", name), percent(part), bar(part)]))),
    remark(`Ablated together, at this position alone: ${made.writers.ablated.map(nameOf).join(", ")}; and ${made.random.length} sets of as many `
      + `others, drawn by chance: ${made.random.map((one) => percent(one.probability)).join(", ")}.`),
  ];
}
