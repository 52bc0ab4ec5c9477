// A chart as a picture of its own: SVG with its colours written into it, and PNG of that or of a canvas.

import { draw, make } from "../elements.js";
import { palette } from "../colours.js";

const KEPT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "opacity", "font-size", "font-family", "font-weight", "paint-order", "display"];
const [MARGIN, TITLE, SCALE] = [16, 34, 2];

export function saveFile(name, type, content) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// The drawing of a figure as an element of its own, the title above it.
function alone(title, svg) {
  const copy = svg.cloneNode(true);
  const [from, to] = [svg, copy].map((root) => [root, ...root.querySelectorAll("*")]);
  from.forEach((one, i) => {
    const style = getComputedStyle(one);
    to[i].style.removeProperty("--c"); // the colour, by whose role the style's rules name it
    for (const key of KEPT) to[i].style.setProperty(key, style.getPropertyValue(key));
  });
  copy.querySelectorAll(".cursor, .under").forEach((one) => one.remove());
  const { width, height } = svg.getBoundingClientRect();
  const { ink, ground } = palette();
  copy.setAttribute("x", MARGIN);
  copy.setAttribute("y", TITLE);
  const [wide, high] = [width + 2 * MARGIN, height + TITLE + MARGIN];
  return draw("svg", { xmlns: "http://www.w3.org/2000/svg", width: wide, height: high, viewBox: `0 0 ${wide} ${high}` },
    draw("rect", { width: wide, height: high, fill: ground }),
    draw("text", { x: MARGIN, y: 22, fill: ink, "font-size": 15, "font-weight": 600, "font-family": "system-ui, sans-serif" }, title), copy);
}

export function svgText(title, svg) {
  return new XMLSerializer().serializeToString(alone(title, svg));
}

// The picture of a figure, from its drawing: an SVG's, or what a canvas shows.
export async function png(title, svg, canvas) {
  if (!svg) return new Promise((done) => { canvas.toBlob(done, "image/png"); });
  const image = new Image();
  const text = svgText(title, svg);
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const drawn = make("canvas", { width: image.width * SCALE, height: image.height * SCALE });
  drawn.getContext("2d").drawImage(image, 0, 0, drawn.width, drawn.height);
  return png(title, null, drawn);
}
