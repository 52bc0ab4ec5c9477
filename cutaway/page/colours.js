// The colours of style.css as numbers, for what is drawn on a canvas, and the ramps between them.

let colours = null;

// The page's colours as numbers, and the ramps between them.
export function palette() {
  if (colours) return colours;
  const style = getComputedStyle(document.documentElement);
  const read = (name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    return [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
  };
  const [paper, accent, cool, ink, quiet, rule, ground] =
    ["--cell", "--heat", "--cool", "--ink", "--quiet", "--rule", "--paper"].map(read);
  const css = (rgb) => `rgb(${rgb.map(Math.round).join(" ")})`;
  const ramp = (to) => Array.from({ length: 256 }, (_, i) => paper.map((from, j) => from + ((to[j] - from) * i) / 255));
  const up = ramp(accent);
  const down = ramp(cool);
  colours = {
    up, upCss: up.map(css), downCss: down.map(css),
    paper: css(paper), accent: css(accent), cool: css(cool), ink: css(ink), quiet: css(quiet), rule: css(rule),
    ground: css(ground),
  };
  return colours;
}

// A part from 0 to 1, its square root as the colour, so that small ones are visible; `strength`: of 255, the fullest.
export function shade(part, strength = 255) {
  return palette().upCss[Math.round(strength * Math.sqrt(Math.max(0, Math.min(1, part))))];
}

// A signed number relative to the largest: warm is positive, cool negative.
export function twoSided(value, largest, strength = 255) {
  const at = Math.round(strength * Math.sqrt(Math.min(1, Math.abs(value) / (largest || 1))));
  return palette()[value >= 0 ? "upCss" : "downCss"][at];
}

// Colours are read again: the theme has changed.
export function recolour() {
  colours = null;
}
