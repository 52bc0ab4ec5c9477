// The nodes by layer and token. The edges of the node under the pointer, of pinned ones, else the strongest.

import { draw, drawn, make } from "../elements.js";

const FEW = 160; // edges that are drawn where no node is chosen
const MOST = 60; // of a node's, each way

export function drawing(graph, state) {
  const edges = draw("g.edges");
  const marks = draw("g.nodes");
  const svg = draw("svg", { width: graph.width, height: graph.height, viewBox: `0 0 ${graph.width} ${graph.height}`, class: "graph" },
    background(graph), edges, marks, texts(graph));
  const nodes = graph.nodes.map((node, n) => {
    const one = draw("g", {
      class: `node ${node.kind}`, transform: `translate(${node.x} ${node.y})`, tabindex: n === first(graph) ? "0" : "-1", role: "button",
      label: `${node.name} at ${drawn(graph.tokens[node.position])}`,
      pointerenter: () => hover(n), pointerleave: () => hover(null), click: () => choose(n), focus: () => choose(n),
      keydown: (event) => keyed(event, n),
    }, draw("rect.hit", { x: -7.5, y: -7.5, width: 15, height: 15 }), shape(node.kind));
    marks.append(one);
    return one;
  });
  const hover = (n) => { state.hovered = n; state.changed(); };
  const choose = (n) => { state.chosen = n; state.changed(); };
  svg.addEventListener("click", (event) => { if (!event.target.closest(".node")) choose(null); });
  const keyed = (event, n) => {
    if (event.key === "Enter" || event.key === " ") pin(n);
    else if (event.key in ARROWS) focus(nearest(graph, n, ...ARROWS[event.key]));
    else return;
    event.preventDefault();
  };
  const pin = (n) => { if (!state.pinned.delete(n)) state.pinned.add(n); state.changed(); };
  const focus = (n) => {
    if (n === null) return;
    nodes.forEach((one, i) => one.setAttribute("tabindex", i === n ? "0" : "-1"));
    nodes[n].focus();
  };
  state.heard(() => {
    const lit = shownEdges(graph, state);
    edges.replaceChildren(...lit.map(([s, t, effect, part]) => edge(graph, s, t, effect, part)));
    const near = new Set(lit.flatMap(([s, t]) => [s, t]));
    const busy = state.shown !== null || state.pinned.size > 0;
    nodes.forEach((one, n) => {
      one.classList.toggle("far", busy && !near.has(n) && !state.pinned.has(n));
      one.classList.toggle("pinned", state.pinned.has(n));
      one.classList.toggle("chosen", state.shown === n);
      const group = state.groupOf(n);
      one.classList.toggle("grouped", group >= 0);
      one.style.setProperty("--group", `var(--series-${1 + (Math.max(0, group) % 6)})`);
    });
  });
  return { svg, whole: make("div.board", { tabindex: "-1", role: "region", label: "The graph: arrow keys move between nodes, Enter pins one" }, svg) };
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function first(graph) {
  return graph.logits[0][0];
}

// The nearest node in a direction; distance to the side counts twice.
function nearest(graph, from, dx, dy) {
  const { x, y } = graph.nodes[from];
  let best = null;
  let least = Infinity;
  graph.nodes.forEach((node, n) => {
    const along = (node.x - x) * dx + (node.y - y) * dy;
    const aside = Math.abs((node.x - x) * dy) + Math.abs((node.y - y) * dx);
    if (along > 0.5 && along + 2 * aside < least) [best, least] = [n, along + 2 * aside];
  });
  return best;
}

// [source, target, effect, width from 0 to 1] of the edges that are drawn.
function shownEdges(graph, state) {
  const around = [...new Set([...state.pinned, ...(state.shown === null ? [] : [state.shown])])];
  const sized = (list, total) => list.map(([s, t, effect]) => [s, t, effect, Math.abs(effect) / (total(t) || 1)]);
  if (!around.length) {
    const all = sized(graph.edges, (t) => state.totals[t] / (graph.nodes[t].influence || (t >= graph.logits[0][0] ? 1 : 0)));
    return all.sort((a, b) => b[3] - a[3]).slice(0, FEW);
  }
  return around.flatMap((n) => {
    const into = sized(state.into[n].map(([s, effect]) => [s, n, effect]), (t) => state.totals[t]);
    const from = sized(state.from[n].map(([t, effect]) => [n, t, effect]), (t) => state.totals[t]);
    return [into, from].flatMap((list) => list.sort((a, b) => b[3] - a[3]).slice(0, MOST));
  });
}

function edge(graph, s, t, effect, part) {
  const [a, b] = [graph.nodes[s], graph.nodes[t]];
  const bend = (a.y + b.y) / 2;
  return draw("path", {
    class: effect > 0 ? "edge up" : "edge down", d: `M${a.x} ${a.y}C${a.x} ${bend} ${b.x} ${bend} ${b.x} ${b.y}`,
    "stroke-width": (0.6 + 4 * Math.sqrt(Math.min(1, part))).toFixed(2),
  });
}

export function shape(kind) {
  if (kind === "mlp") return draw("rect.mark", { x: -4.5, y: -4.5, width: 9, height: 9, rx: 1 });
  if (kind === "error") return draw("path.mark", { d: "M-5 -5L5 5M5 -5L-5 5" });
  if (kind === "neuron") return draw("path.mark", { d: "M0 -6L6 0L0 6L-6 0Z" });
  return draw("circle.mark", { r: 5 });
}

function background(graph) {
  const columns = graph.columns.map(([left, right], i) => draw("rect", { class: i % 2 ? "column" : "column even", x: left, y: 0, width: right - left, height: graph.height }));
  const bands = graph.bands.flatMap(([name, y]) => [
    draw("line.band", { x1: 38, x2: graph.width, y1: y, y2: y }), draw("text.layer", { x: 0, y: y + 4 }, name)]);
  return draw("g", columns, bands);
}

function texts(graph) {
  const short = (text) => (text.length > 12 ? `${text.slice(0, 11)}…` : text);
  return draw("g", [16, graph.height - 8].map((y) => graph.columns.map(([left, right], i) => (
    draw("text.text", { x: (left + right) / 2, y }, short(drawn(graph.tokens[i])))))).flat());
}
