// The node that is chosen: what it is, what it promotes and attends to, what it reads and what reads it.

import { bar, drawn, make, number, percent, remark, signed } from "../elements.js";

const LISTED = 8;
const KINDS = {
  embedding: "a token's embedding", head: "an attention head", mlp: "an MLP", neuron: "a neuron", feature: "a transcoder's feature",
  error: "what a transcoder leaves of its MLP", logit: "a token's logit, less the mean of all",
};

export function nodePanel(graph, state) {
  const box = make("section.panel", { "aria-live": "polite", label: "The chosen node" });
  state.heard(() => box.replaceChildren(...(state.shown === null ? start(graph) : about(graph, state, state.shown))));
  return box;
}

function start(graph) {
  const logits = graph.logits.map(([n, p]) => make("tr", make("td", word(drawn(graph.nodes[n].name))), make("td.number", percent(p)), make("td", bar(p))));
  return [
    make("h2", "Next token"), make("table", make("tbody", logits)),
    remark("Columns are tokens, rows are layers. Hover a node to see what it reads (below it) and what reads it (above it); "
      + "click to keep it, then pin it or put it into a group. Warm edges add, cool ones take away."),
    make("ul.legend", [["head", "head"], ["mlp", "MLP"], ["neuron", "neuron"], ["feature", "feature"], ["error", "error"], ["embedding", "embedding"]]
      .filter(([kind]) => graph.nodes.some((node) => node.kind === kind))
      .map(([kind, name]) => make("li", { class: `swatch ${kind}` }, name))),
  ];
}

function about(graph, state, n) {
  const node = graph.nodes[n];
  const facts = [["at", word(drawn(graph.tokens[node.position]))], ["value", number(node.value)]];
  if (node.kind !== "logit") facts.push(["influence", node.influence.toFixed(3)]);
  if (node.promotes.length) facts.push(["promotes", words(node.promotes)]);
  if (node.attends.length) facts.push(["attends to", node.attends.map(([p, by], i) => [i ? ", " : "", word(drawn(graph.tokens[p])), ` ${percent(by)}`]).flat()]);
  const checked = graph.checked.nodes?.[node.id];
  if (node.clamped) {
    facts.push(["ablated", graph.logits.slice(0, 3).map(([logit], i) => [
      i ? ", " : "", word(drawn(graph.nodes[logit].name)), ` ${signed(alone(graph, n)[i])} predicted`, checked ? `, ${signed(checked[i])} true` : ""]).flat()]);
  }
  return [
    make("h2", node.kind === "logit" || node.kind === "embedding" ? word(drawn(node.name)) : node.name), remark(KINDS[node.kind]),
    make("dl.facts", facts.flatMap(([name, value]) => [make("dt", name), make("dd", value)])),
    buttons(state, n, node), listing(graph, state, "Reads", state.into[n]), listing(graph, state, "Is read by", state.from[n]),
  ];
}

// The change of each logit that the graph predicts when a node alone is clamped to 0.
function alone(graph, n) {
  const changes = new Float64Array(graph.nodes.length);
  graph.nodes.forEach((node, t) => {
    if (t === n) changes[t] = -node.value;
    else graph.direct[t].forEach((by, s) => { changes[t] += by * changes[s]; });
  });
  return graph.logits.map(([t]) => changes[t]);
}

function buttons(state, n, node) {
  const pin = make("button", { type: "button", class: "small", click: () => {
    if (!state.pinned.delete(n)) state.pinned.add(n);
    state.changed();
  } }, state.pinned.has(n) ? "Unpin" : "Pin");
  if (!node.clamped) return make("div.tools", pin);
  const group = state.groupOf(n);
  const into = state.groups.map((one, i) => (i === group ? null : make("button", { type: "button", class: "small", click: () => {
    state.groups.forEach((other) => { other.members = other.members.filter((m) => m !== n); });
    one.members = [...one.members, n].sort((a, b) => a - b);
    state.changed();
  } }, `Into ${one.name}`)));
  const out = group < 0 ? null : make("button", { type: "button", class: "small", click: () => {
    state.groups[group].members = state.groups[group].members.filter((m) => m !== n);
    state.changed();
  } }, `Out of ${state.groups[group].name}`);
  return make("div.tools", pin, into, out);
}

function listing(graph, state, title, edges) {
  if (!edges.length) return null;
  const most = Math.max(...edges.map(([, effect]) => Math.abs(effect)));
  const rows = [...edges].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, LISTED).map(([other, effect]) => make("tr",
    make("td", make("button", { type: "button", class: "plain", click: () => { state.hovered = null; state.chosen = other; state.changed(); } }, named(graph, other))),
    make("td.number", signed(effect)), make("td", bar(Math.abs(effect) / most))));
  const more = edges.length - rows.length;
  return make("div", make("h3", more > 0 ? `${title} ${edges.length}, the strongest` : title), make("table", make("tbody", rows)));
}

function named(graph, n) {
  const node = graph.nodes[n];
  return node.kind === "logit" || node.kind === "embedding" ? [word(drawn(node.name))] : [node.name, " · ", word(drawn(graph.tokens[node.position]))];
}

function words(list) {
  return list.map((text, i) => [i ? " " : "", word(drawn(text))]).flat();
}

function word(text) {
  return make("bdi.word", text);
}
