"use strict";
// The map: one cloud of points by WebGL, the chosen word and its neighbours over it, and a list beside it.
const bytes = Uint8Array.from(atob(document.getElementById("data").textContent), one => one.charCodeAt(0));
const facts = JSON.parse(new TextDecoder().decode(bytes));
const byId = id => document.getElementById(id);
const map = byId("map");
const index = new Map(facts.words.map((word, i) => [word, i]).reverse());
const ink = matchMedia("(prefers-color-scheme: dark)").matches ? "#e6e8eb" : "#1b1f24";
const line = ink + "30";
const NAMED = 60; // the first words of the table carry their names

const spelt = word => word.replace(/\s/g, sign => (sign === " " ? "␣" : JSON.stringify(sign).slice(1, -1)));
// Plotly reads a little markup in labels: what a word spells is shown, and never obeyed.
const label = word => spelt(word).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const labels = facts.words.map(label);
const cloud = {
  type: "scattergl", mode: "markers", x: facts.x, y: facts.y, text: labels, hoverinfo: "text",
  marker: { size: 5, opacity: 0.55, color: "#3b78c2" },
};
const names = {
  type: "scatter", mode: "text", x: facts.x.slice(0, NAMED), y: facts.y.slice(0, NAMED), text: labels.slice(0, NAMED),
  hoverinfo: "skip", textfont: { size: 11, color: ink },
};
const marked = {
  type: "scatter", mode: "markers+text", x: [], y: [], text: [], textposition: "top center", hoverinfo: "skip",
  marker: { size: 9, color: "#d9590f" }, textfont: { size: 13, color: ink },
};
const axis = { zeroline: false, gridcolor: line, color: ink };
const layout = {
  margin: { l: 40, r: 10, t: 10, b: 30 }, showlegend: false, hovermode: "closest", dragmode: "pan",
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: { ...axis }, yaxis: { ...axis },
};
const settings = { scrollZoom: true, responsive: true, displaylogo: false };

function choose(id, zoom) {
  const near = facts.near[id];
  byId("chosen").textContent = spelt(facts.words[id]);
  byId("near").replaceChildren(...near.map((other, i) => {
    const item = document.createElement("li"), button = document.createElement("button"), how = document.createElement("span");
    button.textContent = spelt(facts.words[other]);
    button.addEventListener("click", () => choose(other, true));
    how.textContent = facts.cosines[id][i].toFixed(3);
    item.append(button, how);
    return item;
  }));
  const shown = [id, ...near];
  const of = list => [shown.map(i => list[i])];
  Plotly.restyle(map, { x: of(facts.x), y: of(facts.y), text: of(labels) }, [2]);
  byId("message").textContent = "";
  if (zoom) look(shown);
}

// Moves so that these words fill the map, with room around them.
function look(ids) {
  const range = list => {
    const values = ids.map(i => list[i]), low = Math.min(...values), high = Math.max(...values);
    const room = Math.max((high - low) * 0.25, 1e-6);
    return [low - room, high + room];
  };
  Plotly.relayout(map, { "xaxis.range": range(facts.x), "yaxis.range": range(facts.y) });
}

function find(typed) {
  const lower = typed.toLowerCase();
  for (const word of [typed, " " + typed, lower, " " + lower]) if (index.has(word)) return index.get(word);
  return undefined;
}

function suggest() {
  const typed = byId("word").value.toLowerCase();
  const found = typed ? facts.words.filter(word => word.trim().toLowerCase().startsWith(typed)).slice(0, 12) : [];
  byId("words").replaceChildren(...found.map(word => {
    const option = document.createElement("option");
    option.value = word;
    return option;
  }));
}

const kept = facts.kept === null ? "" : `, which keep ${Math.round(facts.kept * 100)}% of the variance`;
const how = facts.method === "pca" ? "two principal components" + kept : "UMAP";
byId("about").textContent = `${facts.words.length} of ${facts.all} words by ${how}. Scroll to zoom, drag to move, click a word for its neighbours.`;
byId("word").addEventListener("input", suggest);
byId("search").addEventListener("submit", event => {
  event.preventDefault();
  const id = find(byId("word").value);
  if (id === undefined) byId("message").textContent = `“${byId("word").value}” is not on this map.`;
  else choose(id, true);
});
byId("whole").addEventListener("click", () => Plotly.relayout(map, { "xaxis.autorange": true, "yaxis.autorange": true }));
Plotly.newPlot(map, [cloud, names, marked], layout, settings).then(() => {
  map.on("plotly_click", event => choose(event.points[0].pointIndex, false));
  document.body.dataset.ready = "yes";
});
