// A report: what Python wrote as HTML, and a chart in each place that is kept for one.

import { bars } from "./charts/bars.js";
import { grid } from "./charts/grid.js";
import { heatmap } from "./charts/heatmap.js";
import { intervals, reference } from "./charts/ranges.js";
import { jsonInFile } from "./file.js";
import { plot } from "./charts/plot.js";
import { themeButton } from "./theme.js";

const KINDS = { bars, grid, heatmap, plot: (spec) => plot({ ...spec, ranges: { intervals, reference } }) };

async function report() {
  const charts = await jsonInFile();
  const later = [];
  document.querySelectorAll("[data-chart]").forEach((place) => {
    const spec = charts[Number(place.dataset.chart)];
    place.replaceWith(KINDS[spec.kind](spec, later));
  });
  document.querySelector("#theme").append(themeButton(() => later.forEach((update) => update())));
  document.body.dataset.ready = "yes";
}

report();
