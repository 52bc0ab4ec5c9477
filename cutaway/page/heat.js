// A grid of cells on a canvas: as large as it must be, drawn only where it is seen, with a cursor for keys and pointer.

import { palette, shade, twoSided } from "./colours.js";
import { tile } from "./tiles.js";
import { clamp, cut, freshId, make, tag } from "./elements.js";

const MANY = 16384; // cells of a map that is drawn as tiles
const TILE = 256; // cells on a side of one

// The state of a map of its own: it follows no token.
export const ALONE = { hovered: null, page: { later: (_, task) => requestAnimationFrame(task), hover() {} } };

// A legend of parts of 1.
export const PARTS = { largest: 1, write: (part) => `${Math.round(100 * part)}%` };

// options: name, rows, columns, size: {width, height, left, top, slant, tall}, colour(r, c) or paint(pen, x, y, w, h, r, c),
// text(r, c), rowName(r), columnName(c), rowToken(r), columnToken(c), say(r, c), pick(r, c), chosen() -> [r, c],
// chosenRow() -> r, axes: what its rows and its columns are, legend: {title, largest, signed, write, strength, tag: [kind, how]}.
// What may change is a function. The width of a cell is [least, most], and its height is as much where none is given.
export function heat(state, options) {
  const base = make("canvas");
  const over = make("canvas");
  const layer = make("div.layer", base, over);
  const spacer = make("div.spacer", layer);
  const readout = make("p.readout", { id: freshId("readout"), "aria-live": "polite" });
  const axes = options.axes ? make("p.axes", { id: freshId("axes") }) : null;
  const box = make("div.heat", {
    tabindex: "0", role: "application", label: options.name, "aria-describedby": `${axes?.id ?? ""} ${readout.id}`,
    "aria-roledescription": options.pick ? "map, arrow keys move, Enter chooses" : "map, arrow keys move",
    pointermove(event) {
      const cell = cellAt(event);
      if (cell) moveTo(...cell, false);
    },
    pointerleave() {
      leave();
      state.page.hover(state, null);
      readout.textContent = options.hint ?? "";
    },
    click(event) {
      const cell = cellAt(event);
      if (cell) options.pick?.(...cell);
    },
    focus: () => !cursor && box.matches(":focus-visible") && moveTo(...(options.chosen?.() ?? [0, 0]), true),
    blur: () => leave(),
    keydown(event) {
      const [r, c] = cursor ?? options.chosen?.() ?? [0, 0];
      const to = {
        ArrowUp: [r - 1, c], ArrowDown: [r + 1, c], ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1],
        Home: [r, 0], End: [r, grid.columns - 1], PageUp: [0, c], PageDown: [grid.rows - 1, c],
      }[event.key];
      if (event.key === "Enter" || event.key === " ") options.pick?.(r, c);
      else if (!to) return;
      event.preventDefault();
      if (to) moveTo(clamp(to[0], 0, grid.rows - 1), clamp(to[1], 0, grid.columns - 1), true);
    },
  }, spacer);
  const edge = make("div.heat-frame", box);
  const legend = options.legend ? ramp(options.legend) : null;
  const whole = make("div.heat-whole", axes, edge, readout, legend?.whole);
  let cursor = null;
  let size = null;
  let grid = { rows: 0, columns: 0 };
  let ratio = 1;
  let version = 0; // of the colours, by which tiles are known
  const drawn = new Map();

  function layout() {
    const room = box.clientWidth || whole.clientWidth;
    grid = { rows: now(options.rows, room), columns: now(options.columns, room) };
    const { left = 0, top = 0, width: [least, most], ...more } = now(options.size, room);
    const side = clamp(Math.floor((room - left) / grid.columns), least, most);
    size = { left, top, width: side, height: side, ...more };
    const width = size.left + grid.columns * size.width;
    const height = size.top + grid.rows * size.height;
    spacer.style.width = `${width}px`;
    spacer.style.height = `${height}px`;
    box.style.maxHeight = size.tall ? `${size.tall}px` : "";
    ratio = devicePixelRatio || 1;
    const seen = [Math.min(width, box.clientWidth), Math.min(height, size.tall ?? height)];
    for (const canvas of [base, over]) {
      [canvas.width, canvas.height] = seen.map((one) => Math.round(one * ratio));
      [canvas.style.width, canvas.style.height] = seen.map((one) => `${one}px`);
    }
    layer.style.width = `${seen[0]}px`;
    layer.style.height = `${seen[1]}px`;
  }

  function visible() {
    const across = [Math.floor(box.scrollLeft / size.width), Math.ceil((box.scrollLeft + box.clientWidth) / size.width)];
    const down = [Math.floor(box.scrollTop / size.height), Math.ceil((box.scrollTop + box.clientHeight) / size.height)];
    return {
      fromColumn: Math.max(0, across[0]), toColumn: Math.min(grid.columns, across[1]),
      fromRow: Math.max(0, down[0]), toRow: Math.min(grid.rows, down[1]),
    };
  }

  const x = (column) => size.left + column * size.width - box.scrollLeft;
  const y = (row) => size.top + row * size.height - box.scrollTop;

  function pen(canvas) {
    const drawing = canvas.getContext("2d");
    drawing.setTransform(ratio, 0, 0, ratio, 0, 0);
    drawing.clearRect(0, 0, canvas.width, canvas.height);
    return drawing;
  }

  function inside(drawing, work) {
    drawing.save();
    drawing.beginPath();
    drawing.rect(size.left, size.top, box.clientWidth, 1e5);
    drawing.clip();
    work();
    drawing.restore();
  }

  function paint() {
    if (!size || !box.clientWidth) return;
    edges();
    const drawing = pen(base);
    const view = visible();
    const gap = Math.min(size.width, size.height) >= 9 ? 1 : 0;
    inside(drawing, () => {
      if (!options.paint && !gap && grid.rows * grid.columns > (options.many ?? MANY)) tiles(drawing, view);
      else cells(drawing, view, gap);
      if (options.text) words(drawing, view);
    });
    names(drawing, view);
    mark();
  }

  function cells(drawing, view, gap) {
    const { css } = palette();
    for (let r = view.fromRow; r < view.toRow; r++) {
      for (let c = view.fromColumn; c < view.toColumn; c++) {
        if (options.paint) {
          options.paint(drawing, x(c), y(r), size.width - gap, size.height - gap, r, c);
          continue;
        }
        const colour = options.colour(r, c);
        if (!colour) continue;
        drawing.fillStyle = css[colour];
        drawing.fillRect(x(c), y(r), size.width - gap, size.height - gap);
      }
    }
  }

  // Those of a large map: a tile keeps its picture until that of its new colours is there.
  function tiles(drawing, view) {
    drawing.imageSmoothingEnabled = false;
    for (let r = view.fromRow - (view.fromRow % TILE); r < view.toRow; r += TILE) {
      for (let c = view.fromColumn - (view.fromColumn % TILE); c < view.toColumn; c += TILE) {
        const [high, wide] = [Math.min(TILE, grid.rows - r), Math.min(TILE, grid.columns - c)];
        const key = `${r}.${c}`;
        const known = drawn.get(key) ?? {};
        if (known.version !== version) {
          drawn.set(key, known);
          known.version = version;
          const asked = version;
          const numbers = Uint16Array.from({ length: high * wide }, (_, i) => options.colour(r + Math.floor(i / wide), c + (i % wide)) ?? 0);
          tile(numbers, wide, palette().pixels, (picture) => {
            if (asked !== version) return;
            known.picture = picture;
            state.page.later(`${readout.id}-all`, paint);
          });
        }
        if (known.picture) drawing.drawImage(known.picture, x(c), y(r), wide * size.width, high * size.height);
      }
    }
  }

  // A shadow where the map goes on beyond its frame.
  function edges() {
    edge.classList.toggle("more-before", box.scrollLeft > 1);
    edge.classList.toggle("more-after", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
    edge.classList.toggle("more-below", box.scrollTop + box.clientHeight < box.scrollHeight - 1);
  }

  function words(drawing, view) {
    const font = "12px " + getComputedStyle(document.documentElement).getPropertyValue("--mono");
    drawing.textBaseline = "middle";
    for (let r = view.fromRow; r < view.toRow; r++) {
      for (let c = view.fromColumn; c < view.toColumn; c++) {
        const { text, colour, strong } = options.text(r, c);
        drawing.font = strong ? `600 ${font}` : font;
        drawing.fillStyle = colour;
        const shown = clipped(drawing, text, size.width - (options.centred ? 0 : 12));
        const at = options.centred ? (size.width - drawing.measureText(shown).width) / 2 : 6;
        drawing.fillText(shown, x(c) + at, y(r) + size.height / 2);
      }
    }
  }

  function names(drawing, view) {
    drawing.font = "12px " + getComputedStyle(document.documentElement).getPropertyValue("--mono");
    drawing.fillStyle = palette().quiet;
    drawing.textBaseline = "middle";
    drawing.textAlign = "right";
    const every = Math.ceil(13 / size.height);
    for (let r = view.fromRow; size.left && r < view.toRow; r++) {
      if (r % every || y(r) < size.top - size.height / 2) continue;
      drawing.fillText(clipped(drawing, options.rowName(r), size.left - 10), size.left - 8, y(r) + size.height / 2);
    }
    drawing.textAlign = "left";
    drawing.textBaseline = "alphabetic";
    const step = Math.ceil((size.slant ? 17 : 22) / size.width);
    for (let c = view.fromColumn; size.top && c < view.toColumn; c++) {
      if (c % step || x(c) < size.left - (size.slant ? size.width / 2 : 6)) continue;
      if (!size.slant) {
        const text = clipped(drawing, options.columnName(c), Math.max(size.width - 8, 22));
        const middle = size.width < 60 ? (size.width - drawing.measureText(text).width) / 2 : 6;
        drawing.fillText(text, x(c) + middle, size.top - 7);
        continue;
      }
      drawing.save();
      drawing.translate(x(c) + size.width / 2 + 4, size.top - 6);
      drawing.rotate(-Math.PI / 3);
      drawing.fillText(clipped(drawing, options.columnName(c), size.top), 0, 0);
      drawing.restore();
    }
  }

  // The marks over the grid: what is chosen, where the cursor is, the token that is hovered anywhere.
  function mark() {
    if (!size || !box.clientWidth) return;
    const drawing = pen(over);
    const { accent, ink } = palette();
    inside(drawing, () => {
      drawing.fillStyle = accent;
      if (state.hovered !== null) lit(drawing, state.hovered);
      const chosen = options.chosen?.();
      if (chosen) outline(drawing, ...chosen, 2, ink);
      if (options.chosenRow) outline(drawing, options.chosenRow(), null, 2, ink);
      if (cursor) outline(drawing, ...cursor, 1.5, accent);
    });
  }

  function lit(drawing, t) {
    if (options.lit) options.lit(drawing, t, visible(), x, y, size);
    drawing.globalAlpha = 0.9;
    const { accent } = palette();
    for (let r = 0; options.rowToken && r < grid.rows; r++) if (options.rowToken(r) === t) outline(drawing, r, null, 1.5, accent);
    for (let c = 0; options.columnToken && c < grid.columns; c++) if (options.columnToken(c) === t) outline(drawing, null, c, 1.5, accent);
    drawing.globalAlpha = 1;
  }

  // Around a cell, a whole row (c is null) or a whole column.
  function outline(drawing, r, c, width, colour) {
    drawing.lineWidth = width;
    drawing.strokeStyle = colour;
    const [left, wide] = c === null ? [x(0), grid.columns * size.width] : [x(c) - 0.5, size.width];
    const [top, high] = r === null ? [y(0), grid.rows * size.height] : [y(r) - 0.5, size.height];
    drawing.strokeRect(left, top, wide, high);
  }

  function moveTo(r, c, scroll) {
    const changed = !cursor || cursor[0] !== r || cursor[1] !== c;
    cursor = [r, c];
    if (scroll) reveal(r, c);
    if (!changed) return;
    readout.textContent = options.say(r, c);
    const token = options.columnToken?.(c) ?? options.rowToken?.(r);
    if (token !== undefined && token !== null) state.page.hover(state, token);
    state.page.later(readout.id, mark);
  }

  function reveal(r, c) {
    const { width, height, left, top } = size;
    if (c * width < box.scrollLeft) box.scrollLeft = c * width;
    if (left + (c + 1) * width > box.scrollLeft + box.clientWidth) box.scrollLeft = left + (c + 1) * width - box.clientWidth;
    if (r * height < box.scrollTop) box.scrollTop = r * height;
    if (top + (r + 1) * height > box.scrollTop + box.clientHeight) box.scrollTop = top + (r + 1) * height - box.clientHeight;
  }

  function cellAt(event) {
    const bounds = box.getBoundingClientRect();
    const c = Math.floor((event.clientX - bounds.left + box.scrollLeft - size.left) / size.width);
    const r = Math.floor((event.clientY - bounds.top + box.scrollTop - size.top) / size.height);
    return r >= 0 && c >= 0 && r < grid.rows && c < grid.columns ? [r, c] : null;
  }

  function leave() {
    cursor = null;
    state.page.later(readout.id, mark);
  }

  box.addEventListener("scroll", () => state.page.later(`${readout.id}-all`, paint), { passive: true });
  readout.textContent = options.hint ?? "";

  // A chosen cell is brought into view when it changes; until then the reader may scroll away from it.
  let followed = null;
  function follow() {
    const chosen = options.chosen?.();
    const now = chosen && box.clientWidth ? `${chosen}` : followed;
    if (now === followed) return;
    followed = now;
    reveal(...chosen);
  }

  const update = () => {
    version++;
    layout();
    if (options.chosenRow) reveal(options.chosenRow(), 0);
    follow();
    paint();
    legend?.update();
    if (axes) axes.textContent = `↓ ${now(options.axes)[0]}   → ${now(options.axes)[1]}`;
  };
  new ResizeObserver(() => state.page.later(`${readout.id}-size`, update)).observe(whole);
  return { whole, update, hover: mark, readout, box };
}

const now = (value, ...given) => (typeof value === "function" ? value(...given) : value);

// A map's legend: its colours from end to end, with numbers. Colours go by the square root, and the numbers with them.
function ramp({ title, largest, signed = false, write, strength = () => 255, tag: kind = null }) {
  const canvas = make("canvas", { width: 180, height: 10, "aria-hidden": "true" });
  const numbers = make("span.ramp-numbers");
  const name = make("span");
  const update = () => {
    name.replaceChildren(title, ...(kind ? [tag(...now(kind))] : []));
    const most = now(largest);
    const pen = canvas.getContext("2d");
    for (let x = 0; x < 180; x++) {
      const part = signed ? (2 * x) / 179 - 1 : x / 179;
      const value = Math.sign(part) * part * part;
      pen.fillStyle = palette().css[signed ? twoSided(value, 1, strength()) : shade(value, strength())];
      pen.fillRect(x, 0, 1, 10);
    }
    const marks = signed ? [[0, -1], [0.5, 0], [1, 1]] : [[0, 0], [0.5, 0.25], [1, 1]];
    numbers.replaceChildren(...marks.map(([at, part]) => make("span", { css: { left: `${100 * at}%` } }, write(part * most))));
  };
  return { whole: make("div.ramp", name, canvas, numbers), update };
}

function clipped(drawing, text, width) {
  return cut(text, width, (one) => drawing.measureText(one).width);
}
