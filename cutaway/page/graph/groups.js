// Groups of nodes with names: each can be clamped to a multiple of its nodes' values.

import { LIVE, drawn, make, remark, signed } from "../elements.js";
import { groupOf, predicted } from "./state.js";

export function groupsPanel(graph, state) {
  const list = make("div");
  const result = make("div", LIVE);
  const made = make("button", { type: "button", class: "small", click: () => {
    const members = [...state.pinned].filter((n) => graph.nodes[n].clamped && state.groupOf(n) < 0).sort((a, b) => a - b);
    state.groups.push(groupOf(`group ${state.groups.length + 1}`, members));
    state.pinned.clear();
    rebuild();
    state.changed();
  } }, "New group of what is pinned");
  const rebuild = () => list.replaceChildren(...state.groups.map((group) => row(graph, state, group, rebuild)));
  rebuild();
  state.heard(() => {
    state.groups.forEach((group, i) => { list.children[i].querySelector(".count").textContent = counted(group); });
    result.replaceChildren(...effects(graph, state));
  });
  return make("section.panel", { label: "Groups" }, make("h2", "Groups"),
    remark("Pin nodes, make a group of them, and clamp it: the table shows how the graph expects the logits to change."),
    list, made, result);
}

function counted(group) {
  return `${group.members.length} node${group.members.length === 1 ? "" : "s"}`;
}

function row(graph, state, group, rebuild) {
  const name = make("input", { type: "text", maxlength: 40, label: "Name of the group", input: () => { group.name = name.value; state.changed(); } });
  name.value = group.name;
  const shown = make("output", `${group.times} times`);
  const times = make("input", { type: "range", min: -2, max: 3, step: 0.5, label: `Multiple of ${group.name}`, input: () => {
    group.times = Number(times.value);
    shown.textContent = `${group.times} times`;
    if (!group.clamped) { group.clamped = true; clamped.checked = true; }
    state.changed();
  } });
  times.value = String(group.times);
  const clamped = make("input", { type: "checkbox", change: () => { group.clamped = clamped.checked; state.changed(); } });
  clamped.checked = group.clamped;
  const remove = make("button", { type: "button", class: "small", label: `Remove ${group.name}`, click: () => {
    state.groups.splice(state.groups.indexOf(group), 1);
    rebuild();
    state.changed();
  } }, "Remove");
  return make("div.group", name, make("span.count.quiet", counted(group)), remove,
    make("label.clamp", clamped, "clamp to"), times, shown);
}

// The change of each logit, as the graph predicts it, and as the model made it where that was measured.
function effects(graph, state) {
  const groups = state.groups.filter((group) => group.clamped && group.members.length);
  if (!groups.length) return [];
  const changes = predicted(graph, state.groups);
  const truth = measured(graph, groups);
  const rows = graph.logits.map(([n], i) => make("tr", make("td", make("bdi.word", drawn(graph.nodes[n].name))),
    make("td.number", signed(changes[i])), make("td.number", truth ? signed(truth[i]) : "–")));
  return [
    make("h3", "Change of the logits"),
    make("table", make("thead", make("tr", ["logit", "predicted", "true"].map((text, i) => make("th", { scope: "col", class: i ? "number" : null }, text)))), make("tbody", rows)),
    truth ? null : remark("To measure the true change at 0 and 2 times: save the JSON, then cutaway graph … --groups graph.json --check --html FILE."),
  ].filter(Boolean);
}

// One group as it was measured, or one node alone.
function measured(graph, groups) {
  if (groups.length !== 1) return null;
  const [group] = groups;
  const known = graph.groups.find(({ name }) => name === group.name);
  const ids = group.members.map((n) => graph.nodes[n].id);
  if (known && known.members.length === ids.length && known.members.every((id) => ids.includes(id))) {
    const found = graph.checked.groups?.[group.name] ?? {};
    const at = Object.keys(found).find((times) => Number(times) === group.times);
    if (at !== undefined) return found[at];
  }
  return group.times === 0 && ids.length === 1 ? graph.checked.nodes?.[ids[0]] ?? null : null;
}
