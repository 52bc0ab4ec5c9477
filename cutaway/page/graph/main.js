// A graph's page: the drawing, what is chosen, groups of nodes, and what clamping them does.

import { make } from "../elements.js";
import { jsonInFile } from "../file.js";
import { themeButton } from "../theme.js";
import { drawing } from "./drawing.js";
import { groupsPanel } from "./groups.js";
import { nodePanel } from "./node.js";
import { head } from "./head.js";
import { stateOf } from "./state.js";

async function main() {
  const graph = await jsonInFile();
  const state = stateOf(graph);
  const later = [];
  const picture = drawing(graph, state);
  document.querySelector("#head").append(head(graph, state, picture.svg, themeButton(() => later.forEach((one) => one()))));
  document.querySelector("#graph").replaceChildren(
    picture.whole,
    make("div.panels", nodePanel(graph, state), groupsPanel(graph, state)),
  );
  state.changed();
  document.body.dataset.ready = "yes";
}

main();
