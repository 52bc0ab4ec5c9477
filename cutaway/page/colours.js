// The colours of style.css, for what is drawn on a canvas. A cell's colour is a number: 0 is none, then come the warm
// ramp from paper to its end, and the cool one.

const STEPS = 256; // of a ramp
let colours = null;

// Roles as CSS, and the colours of cells by their numbers: as CSS, and as pixels.
export function palette() {
  if (colours) return colours;
  const probe = document.body.appendChild(document.createElement("i"));
  const read = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color.match(/\d+/g).slice(0, 3).map(Number);
  };
  const [paper, accent, cool, ink, quiet, rule, ground] = ["--cell", "--heat", "--cool", "--ink", "--quiet", "--rule", "--paper"].map(read);
  probe.remove();
  const css = (rgb) => `rgb(${rgb.join(" ")})`;
  const ramp = (to) => Array.from({ length: STEPS }, (_, i) => paper.map((from, j) => Math.round(from + ((to[j] - from) * i) / (STEPS - 1))));
  const cells = [...ramp(accent), ...ramp(cool)];
  colours = {
    css: [null, ...cells.map(css)], pixels: Uint32Array.from([0, ...cells.map(([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0)]),
    paper: css(paper), accent: css(accent), cool: css(cool), ink: css(ink), quiet: css(quiet), rule: css(rule), ground: css(ground),
  };
  return colours;
}

// A part from 0 to 1, its square root as the colour, so that small ones are visible; `strength`: of 255, the fullest.
export function shade(part, strength = STEPS - 1) {
  return 1 + Math.round(strength * Math.sqrt(Math.max(0, Math.min(1, part))));
}

// A signed number relative to the largest: warm is positive, cool negative.
export function twoSided(value, largest, strength) {
  return shade(Math.abs(value) / (largest || 1), strength) + (value >= 0 ? 0 : STEPS);
}

// Colours are read again: the theme has changed.
export function recolour() {
  colours = null;
}
