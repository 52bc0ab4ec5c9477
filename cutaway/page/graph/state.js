// What is hovered, pinned, grouped and clamped; views ask to hear of changes.

export function stateOf(graph) {
  const listeners = [];
  const into = graph.nodes.map(() => []);
  const from = graph.nodes.map(() => []);
  const totals = graph.nodes.map(() => 0);
  graph.edges.forEach(([source, target, effect]) => {
    into[target].push([source, effect]);
    from[source].push([target, effect]);
    totals[target] += Math.abs(effect);
  });
  const byId = new Map(graph.nodes.map((node, n) => [node.id, n]));
  const state = {
    hovered: null, chosen: null, pinned: new Set(), into, from, totals,
    groups: graph.groups.map(({ name, members }) => groupOf(name, members.map((id) => byId.get(id)).filter((n) => n !== undefined))),
    heard: (listener) => listeners.push(listener),
    changed: () => listeners.forEach((listener) => listener()),
    // The node that is shown: under the pointer, else the chosen one.
    get shown() { return state.hovered ?? state.chosen; },
    groupOf: (n) => state.groups.findIndex((group) => group.members.includes(n)),
  };
  return state;
}

export function groupOf(name, members) {
  return { name, members, clamped: false, times: 0 };
}

// The change of every node's value when the groups that are clamped have a multiple of theirs: along all paths.
export function predicted(graph, groups) {
  const times = new Map();
  groups.filter((group) => group.clamped).forEach((group) => group.members.forEach((n) => times.set(n, group.times)));
  const changes = new Float64Array(graph.nodes.length);
  graph.nodes.forEach((node, n) => {
    if (times.has(n)) changes[n] = (times.get(n) - 1) * node.value;
    else graph.direct[n].forEach((by, s) => { changes[n] += by * changes[s]; });
  });
  return graph.logits.map(([n]) => changes[n]);
}
