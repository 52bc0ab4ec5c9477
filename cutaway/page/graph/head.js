// The page's head: the text, what the graph is, and what it can be exported as.

import { drawn, make, percent } from "../elements.js";
import { toClipboard } from "../charts/figure.js";

export function head(graph, state, svg, theme) {
  const { facts } = graph;
  const status = make("span.quiet", { role: "status" });
  const say = (text) => {
    status.textContent = text;
    setTimeout(() => { status.textContent = ""; }, 3000);
  };
  const button = (name, click) => make("button", { type: "button", class: "small", click }, name);
  return make("div.inner",
    make("div.top", make("p.mark", "Cutaway"), theme),
    make("h1.sentence", graph.prompt.trim() || drawn(graph.prompt)),
    make("p.about",
      `What made the next token in ${graph.model}: ${graph.nodes.length} parts of the model and the effects of each on later ones, `
      + "with attention weights and the sizes of norms as they were. "
      + `Of the influence that reaches an end, ${percent(facts.replacement)} reaches the text's embeddings (replacement score); `
      + `${percent(facts.completeness)} of what parts read is in the graph (completeness).`),
    make("div.tools",
      button("Save JSON", () => save("graph.json", "application/json", exported(graph, state), say)),
      button("Copy JSON", async () => say((await toClipboard(exported(graph, state))) ? "Copied" : "The browser refused")),
      button("Save SVG", () => save("graph.svg", "image/svg+xml", pictured(svg), say)), status));
}

// The graph in Neuronpedia's schema, with the pins and groups of this page.
function exported(graph, state) {
  const id = (n) => graph.nodes[n].id;
  const own = { ...graph.export.qParams, pinnedIds: [...state.pinned].map(id), supernodes: state.groups.map((group) => [group.name, ...group.members.map(id)]) };
  return JSON.stringify({ ...graph.export, qParams: own });
}

const KEPT = ["fill", "stroke", "stroke-width", "opacity", "fill-opacity", "font", "text-anchor"];

// The drawing as it looks now, its colours written into it.
function pictured(svg) {
  const copy = svg.cloneNode(true);
  const both = [svg, ...svg.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((element, i) => {
    const style = getComputedStyle(both[i]);
    KEPT.forEach((name) => element.setAttribute(name, style.getPropertyValue(name)));
    element.removeAttribute("class");
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  return new XMLSerializer().serializeToString(copy);
}

function save(name, type, text, say) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  say(`Saved ${name}`);
}
