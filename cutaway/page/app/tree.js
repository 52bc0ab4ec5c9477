// The answers to one question as a tree: what they share is written once, and each branch has its joint probability.

import { shared } from "./answer.js";
import { saveFile } from "../charts/picture.js";
import { palette } from "../colours.js";
import { bar, button, draw, drawn, make, percent, readable, remark, total } from "../elements.js";
import { tens } from "../charts/scales.js";
import { Place } from "./place.js";

const SHOWN = 220; // letters of a branch's text
const [WIDE, HIGH, GAP, WORDS] = [250, 58, 14, 32]; // of a branch in the drawing, and letters in a line of it

export class Tree extends Place {
  chosen = null; // the selected branch, as below
  folded = new Set(); // branches, by the ids up to their first token
  whole = make("div.tree-place");

  show() {
    const turn = this.turn ??= this.shell.places.chat.turns.at(-1);
    if (!turn) {
      this.whole.replaceChildren(make("div.empty",
        make("p.sentence", "Every other token an answer could have gone on with is a branch."),
        remark("Ask something in Chat, open a token of the answer, and continue from an alternative: the answers grow here as a tree.")));
      return;
    }
    const root = treeOf(turn.versions.map((one) => one.answer));
    const { length, mass } = explored(turn.versions.map((one) => one.answer));
    const list = make("ul.tree", { role: "tree", label: `Answers to ${turn.user}`, keydown: (event) => this.key(event) }, this.item(root, 1));
    const held = this.whole.contains(document.activeElement) ? document.activeElement.dataset.path : null;
    const save = (name, type, text) => button(`Save as ${name.toUpperCase()}`, () => saveFile(`answers.${name}`, type, text()));
    this.whole.replaceChildren(
      make("p.user", readable(turn.user)),
      remark(turn.versions.length > 1
        ? `${turn.versions.length} answers. An answer begins with one of their first ${length} tokens with a probability of ${small(mass)}: the explored mass.`
        : "One answer so far. Select a branch, then continue from another token in the inspector."),
      list,
      make("p.buttons", save("json", "application/json", () => JSON.stringify({ question: turn.user, ...asJson(root) }, null, 1)),
        save("svg", "image/svg+xml", () => new XMLSerializer().serializeToString(drawing(turn.user, root)))));
    const items = [...list.querySelectorAll("[role='treeitem']")];
    const now = items.find((one) => one.dataset.path === held);
    (now ?? items[0]).tabIndex = 0;
    now?.focus(); // a tree that grows keeps the reader's place
  }

  // A branch: opens its first token in the inspector; below it what goes on from it.
  item(node, level) {
    const text = textOf(node.tokens);
    const group = node.children.length ? make("ul", { role: "group" }, node.children.map((one) => this.item(one, level + 1))) : null;
    const path = `${node.answer.ids(node.from + 1)},`;
    const mass = total(node.children.map((one) => one.chance));
    const item = make("li", {
      role: "treeitem", "aria-level": level, tabindex: "-1", "aria-selected": path === this.chosen, "data-path": path,
      ...(group ? { "aria-expanded": !this.folded.has(path) } : {}),
      label: `${text.slice(0, SHOWN)}, probability ${percent(node.chance)} here, ${small(node.joint)} together`,
    }, make("div.branch", { click: () => this.select(item) },
      make("p.branch-text", level === 1 ? null : make("bdi.word.strong", drawn(node.tokens[0].text)),
        readable((level === 1 ? text : textOf(node.tokens.slice(1))).slice(0, SHOWN)), text.length > SHOWN ? "…" : ""),
      make("p.branch-facts.quiet",
        level === 1 ? null : make("span", bar(node.chance)), level === 1 ? null : make("span", `${percent(node.chance)} here`),
        make("span", `${small(node.joint)} together`),
        group ? make("span", `${node.children.length} branches, ${percent(Math.min(1, mass))} of what may follow`) : null)), group);
    item.node = node;
    return item;
  }

  select(item) {
    this.whole.querySelectorAll("[role='treeitem']").forEach((one) => {
      one.tabIndex = one === item ? 0 : -1;
      one.setAttribute("aria-selected", one === item);
    });
    item.focus();
    this.chosen = item.dataset.path;
    const { answer, from } = item.node;
    this.shell.places.chat.open(this.turn, answer, from);
  }

  key(event) {
    const items = [...this.whole.querySelectorAll("[role='treeitem']")].filter((one) => !one.parentElement.closest("[aria-expanded='false']"));
    const now = event.target.closest("[role='treeitem']");
    const at = items.indexOf(now);
    const open = now?.getAttribute("aria-expanded");
    const above = now?.parentElement.closest("[role='treeitem']");
    const fold = (to) => {
      now.setAttribute("aria-expanded", to);
      if (to) this.folded.delete(now.dataset.path);
      else this.folded.add(now.dataset.path);
    };
    const go = (to) => {
      if (!to) return;
      now.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    };
    const does = {
      ArrowDown: () => go(items[at + 1]), ArrowUp: () => go(items[at - 1]), Home: () => go(items[0]), End: () => go(items.at(-1)),
      ArrowRight: () => (open === "false" ? fold(true) : open && go(items[at + 1])),
      ArrowLeft: () => (open === "true" ? fold(false) : go(above)),
      Enter: () => this.select(now),
    }[event.key];
    if (!does || at < 0) return;
    event.preventDefault();
    does();
  }
}

// A probability, as a power of ten where a percentage would be 0.
function small(part) {
  if (part >= 0.001 || part === 0) return percent(part);
  const [digits, power] = part.toExponential(1).split("e");
  return `${digits} × ${tens(power)}`;
}

const textOf = (tokens) => tokens.map((one) => one.text).join("");
const logprobOf = (tokens) => total(tokens.map((one) => one.logprob));

// {tokens, answer, from, chance: of its first token there, joint: of all tokens up to its end, children}
export function treeOf(answers, from = 0, before = 0) {
  const [answer] = answers;
  let to = from + 1;
  const same = () => answers.every((one) => to < one.tokens.length && one.tokens[to].id === answer.tokens[to]?.id);
  while (same()) to += 1;
  const tokens = answer.tokens.slice(from, to);
  const logprob = before + logprobOf(tokens);
  const next = new Map();
  for (const one of answers.filter((each) => each.tokens.length > to)) {
    const { id } = one.tokens[to];
    next.set(id, [...(next.get(id) ?? []), one]);
  }
  const children = [...next.values()].map((some) => treeOf(some, to, logprob)).sort((a, b) => b.chance - a.chance);
  return { tokens, answer, from, chance: Math.exp(tokens[0]?.logprob ?? 0), joint: Math.exp(logprob), logprob, children };
}

// The probability that an answer begins as one of these, up to the first token after the deepest fork.
export function explored(answers) {
  const forks = answers.flatMap((one, i) => answers.slice(0, i).map((other) => shared(one, other)));
  const length = Math.max(0, ...forks) + 1;
  const starts = new Map(answers.map((one) => [one.ids(length).join(), one.tokens.slice(0, length)]));
  const mass = total([...starts.values()].map((tokens) => Math.exp(logprobOf(tokens))));
  return { length, mass };
}

function asJson({ tokens, chance, joint, logprob, children }) {
  return {
    text: textOf(tokens), token_ids: tokens.map((one) => one.id), logprobs: tokens.map((one) => one.logprob),
    probability_here: chance, joint_probability: joint, joint_logprob: logprob, children: children.map(asJson),
  };
}

// The tree as a drawing of its own: branches from left to right, the line as thick as the first token's probability.
function drawing(question, root) {
  const { ink, quiet, rule, ground, accent } = palette();
  const boxes = [];
  const lines = [];
  let rows = 0;
  const place = (node, level) => {
    const inside = node.children.map((one) => place(one, level + 1));
    const y = inside.length ? (inside[0] + inside.at(-1)) / 2 : rows++ * (HIGH + GAP);
    const x = level * (WIDE + 40);
    inside.forEach((to, i) => lines.push(draw("path", {
      d: `M${x + WIDE} ${y + HIGH / 2} C${x + WIDE + 20} ${y + HIGH / 2} ${x + WIDE + 20} ${to + HIGH / 2} ${x + WIDE + 40} ${to + HIGH / 2}`,
      fill: "none", stroke: accent, "stroke-width": 1 + 7 * node.children[i].chance,
    })));
    const text = textOf(node.tokens).replace(/\s+/g, " ").trim();
    const cut = text.length > WORDS ? text.lastIndexOf(" ", WORDS) + 1 || WORDS : text.length;
    const shown = [text.slice(0, cut), text.slice(cut, cut + WORDS - 1) + (text.length > cut + WORDS - 1 ? "…" : "")];
    boxes.push(draw("g", draw("rect", { x, y, width: WIDE, height: HIGH, rx: 5, fill: ground, stroke: rule }),
      ...shown.map((line, i) => draw("text", { x: x + 10, y: y + 18 + 15 * i, fill: ink, "font-size": 12 }, line)),
      draw("text", { x: x + 10, y: y + 50, fill: quiet, "font-size": 11 }, `${percent(node.chance)} here, ${small(node.joint)} together`)));
    return y;
  };
  place(root, 0);
  const depth = (node) => 1 + Math.max(0, ...node.children.map(depth));
  const [width, height] = [depth(root) * (WIDE + 40), rows * (HIGH + GAP) + 24];
  return draw("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `-10 -34 ${width} ${height + 20}`, width, height: height + 20, "font-family": "system-ui, sans-serif" },
    draw("rect", { x: -10, y: -34, width, height: height + 20, fill: ground }),
    draw("text", { x: 0, y: -14, fill: ink, "font-size": 14, "font-weight": 600 }, question.slice(0, 120)), ...lines, ...boxes);
}
