// A map of words: points on a canvas that is dragged and zoomed, the chosen word and its neighbours over them, and
// a list beside it.

import { count, drawn, make } from "../elements.js";
import { palette } from "../colours.js";
import { ticks } from "../charts/scales.js";
import { jsonInFile } from "../file.js";
import { themeButton } from "../theme.js";

const NAMED = 60; // the first words of the table carry their names
const CLOSEST = 1e4; // how far a map can be zoomed in
const STEP = 1.5; // a press of + or −
const ROOM = { left: 44, right: 8, top: 8, bottom: 26 };

const spelt = (word) => drawn(word).replace(/(?<=.)␣/g, " ");

class WordMap {
  constructor(facts, box, announce) {
    Object.assign(this, { facts, box, announce, chosen: null, size: [0, 0], asked: false });
    this.canvas = make("canvas", { "aria-hidden": "true" });
    box.append(this.canvas);
    this.whole = this.range([...facts.words.keys()], 0.04);
    this.view = this.whole;
    new ResizeObserver(() => this.resize()).observe(box);
  }

  // The part of the plane that holds these words, with room around them, in the proportions of the box.
  range(ids, room) {
    const ends = (list) => {
      const values = ids.map((i) => list[i]);
      const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
      const more = Math.max((high - low) * room, 1e-6);
      return [low - more, high + more];
    };
    return { x: ends(this.facts.x), y: ends(this.facts.y) };
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    this.size = [this.box.clientWidth, this.box.clientHeight];
    [this.canvas.width, this.canvas.height] = this.size.map((one) => Math.round(one * ratio));
    this.later();
  }

  later() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.paint();
    });
  }

  look(view) {
    this.view = view;
    this.later();
  }

  place(i) {
    return [this.across(this.facts.x[i]), this.down(this.facts.y[i])];
  }

  across(x) {
    const { left, right } = ROOM;
    const [from, to] = this.view.x;
    return left + ((x - from) / (to - from)) * (this.size[0] - left - right);
  }

  down(y) {
    const { top, bottom } = ROOM;
    const [from, to] = this.view.y;
    return this.size[1] - bottom - ((y - from) / (to - from)) * (this.size[1] - top - bottom);
  }

  paint() {
    const [width, height] = this.size;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    const pen = this.canvas.getContext("2d");
    const colours = palette();
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `12px ${getComputedStyle(document.documentElement).getPropertyValue("--sans")}`;
    this.axes(pen, colours);
    pen.save();
    pen.beginPath();
    pen.rect(ROOM.left, ROOM.top, width - ROOM.left - ROOM.right, height - ROOM.top - ROOM.bottom);
    pen.clip();
    this.points(pen, colours);
    pen.restore();
  }

  axes(pen, colours) {
    const [width, height] = this.size;
    pen.strokeStyle = colours.rule;
    pen.fillStyle = colours.quiet;
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "center";
    for (const [value, text] of ticks(...this.view.x, Math.floor(width / 110), false)) {
      const x = Math.round(this.across(value)) + 0.5;
      line(pen, x, ROOM.top, x, height - ROOM.bottom);
      pen.fillText(text, x, height - ROOM.bottom + 12);
    }
    pen.textAlign = "right";
    for (const [value, text] of ticks(...this.view.y, Math.floor(height / 80), false)) {
      const y = Math.round(this.down(value)) + 0.5;
      line(pen, ROOM.left, y, width - ROOM.right, y);
      pen.fillText(text, ROOM.left - 6, y);
    }
    pen.textAlign = "left";
  }

  points(pen, colours) {
    const { words } = this.facts;
    pen.fillStyle = colours.cool;
    pen.globalAlpha = 0.5;
    for (let i = 0; i < words.length; i++) {
      const [x, y] = this.place(i);
      pen.fillRect(x - 2, y - 2, 4, 4);
    }
    pen.globalAlpha = 1;
    const taken = [];
    const shown = this.chosen === null ? [] : [this.chosen, ...this.facts.near[this.chosen]];
    pen.fillStyle = colours.accent;
    for (const i of shown) disc(pen, this.place(i), i === this.chosen ? 6 : 4);
    for (const i of shown) this.name(pen, colours, i, taken, i === this.chosen ? "600 14px" : "13px");
    for (let i = 0; i < Math.min(NAMED, words.length); i++) if (!shown.includes(i)) this.name(pen, colours, i, taken, "11px");
  }

  // A word beside its point, unless it would cover another.
  name(pen, colours, i, taken, size) {
    const [x, y] = this.place(i);
    pen.font = `${size} ${getComputedStyle(document.documentElement).getPropertyValue("--sans")}`;
    const text = spelt(this.facts.words[i]);
    const box = [x + 7, y - 7, x + 9 + pen.measureText(text).width, y + 7];
    if (taken.some((one) => one[0] < box[2] && box[0] < one[2] && one[1] < box[3] && box[1] < one[3])) return;
    taken.push(box);
    pen.lineWidth = 3;
    pen.lineJoin = "round";
    pen.strokeStyle = colours.ground;
    pen.strokeText(text, x + 8, y);
    pen.fillStyle = colours.ink;
    pen.fillText(text, x + 8, y);
  }

  // The word nearest to a point of the screen, null where none is near.
  at(x, y) {
    let [best, found] = [14, null];
    for (let i = 0; i < this.facts.words.length; i++) {
      const [a, b] = this.place(i);
      const away = Math.hypot(a - x, b - y);
      if (away < best) [best, found] = [away, i];
    }
    return found;
  }

  zoom(by, x = this.size[0] / 2, y = this.size[1] / 2) {
    const widest = (this.whole.x[1] - this.whole.x[0]) * 2;
    const now = this.view.x[1] - this.view.x[0];
    const factor = Math.max(widest / 2 / CLOSEST, Math.min(widest, now / by)) / now;
    const part = [(x - ROOM.left) / (this.size[0] - ROOM.left - ROOM.right), 1 - (y - ROOM.top) / (this.size[1] - ROOM.top - ROOM.bottom)];
    const around = ([from, to], at) => {
      const middle = from + at * (to - from);
      return [middle + (from - middle) * factor, middle + (to - middle) * factor];
    };
    this.look({ x: around(this.view.x, part[0]), y: around(this.view.y, part[1]) });
  }

  move(dx, dy) {
    const shift = ([from, to], by) => [from + by * (to - from), to + by * (to - from)];
    this.look({ x: shift(this.view.x, -dx / this.size[0]), y: shift(this.view.y, dy / this.size[1]) });
  }
}

function line(pen, ...ends) {
  pen.beginPath();
  pen.moveTo(ends[0], ends[1]);
  pen.lineTo(ends[2], ends[3]);
  pen.stroke();
}

function disc(pen, [x, y], radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

// Dragging moves, the wheel and two fingers zoom, a click chooses; arrow keys move, + and − zoom.
function hands(map, choose) {
  const { box } = map;
  const fingers = new Map();
  let moved = 0;
  const inside = (event) => {
    const bounds = box.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  };
  const apart = () => {
    const [[a, b], [c, d]] = [...fingers.values()];
    return [Math.hypot(a - c, b - d), (a + c) / 2, (b + d) / 2];
  };
  box.addEventListener("pointerdown", (event) => {
    box.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, inside(event));
    moved = 0;
  });
  box.addEventListener("pointermove", (event) => {
    const now = inside(event);
    const before = fingers.get(event.pointerId);
    if (!before) {
      const found = map.at(...now);
      map.announce(found === null ? "" : spelt(map.facts.words[found]));
      return;
    }
    if (fingers.size === 2) {
      const [was] = apart();
      fingers.set(event.pointerId, now);
      const [is, x, y] = apart();
      map.zoom(is / was, x, y);
    } else {
      fingers.set(event.pointerId, now);
      map.move(now[0] - before[0], now[1] - before[1]);
    }
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
  });
  const up = (event) => {
    fingers.delete(event.pointerId);
    if (event.type === "pointerup" && moved < 5) {
      const found = map.at(...inside(event));
      if (found !== null) choose(found, false);
    }
  };
  box.addEventListener("pointerup", up);
  box.addEventListener("pointercancel", up);
  box.addEventListener("wheel", (event) => {
    event.preventDefault();
    map.zoom(Math.exp(-event.deltaY / 400), ...inside(event));
  }, { passive: false });
  box.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    const zoom = { "+": STEP, "=": STEP, "-": 1 / STEP }[event.key];
    if (by) map.move(...by);
    else if (zoom) map.zoom(zoom);
    else if (event.key === "0") map.look(map.whole);
    else return;
    event.preventDefault();
  });
}

async function start() {
  const facts = await jsonInFile();
  const byId = (id) => document.getElementById(id);
  const index = new Map(facts.words.map((word, i) => [word, i]).reverse());
  const map = new WordMap(facts, byId("map"), (text) => { byId("hovered").textContent = text; });
  const choose = (id, zoom) => {
    map.chosen = id;
    byId("chosen").textContent = spelt(facts.words[id]);
    byId("near").replaceChildren(...facts.near[id].map((other, i) => make("li",
      make("button", { type: "button", class: "link", click: () => choose(other, true) }, spelt(facts.words[other])),
      make("span.quiet", facts.cosines[id][i].toFixed(3)))));
    byId("message").textContent = "";
    map.look(zoom ? map.range([id, ...facts.near[id]], 0.25) : map.view);
  };
  hands(map, choose);
  searching(facts, index, byId, choose);
  byId("whole").addEventListener("click", () => map.look(map.whole));
  byId("closer").addEventListener("click", () => map.zoom(STEP));
  byId("farther").addEventListener("click", () => map.zoom(1 / STEP));
  byId("theme").append(themeButton(() => map.later()));
  const kept = facts.kept === null ? "" : `, which keep ${Math.round(facts.kept * 100)}% of the variance`;
  const how = facts.method === "pca" ? `two principal components${kept}` : "UMAP";
  byId("about").textContent = `${count(facts.words.length)} of ${count(facts.all)} words by ${how}.`;
  document.body.dataset.ready = "yes";
}

function searching(facts, index, byId, choose) {
  const find = (typed) => {
    const lower = typed.toLowerCase();
    return [typed, ` ${typed}`, lower, ` ${lower}`].map((word) => index.get(word)).find((id) => id !== undefined);
  };
  byId("word").addEventListener("input", () => {
    const typed = byId("word").value.toLowerCase();
    const found = typed ? facts.words.filter((word) => word.trim().toLowerCase().startsWith(typed)).slice(0, 12) : [];
    byId("words").replaceChildren(...found.map((word) => make("option", { value: word })));
  });
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const id = find(byId("word").value);
    if (id === undefined) byId("message").textContent = `“${byId("word").value}” is not on this map.`;
    else choose(id, true);
  });
}

start();
