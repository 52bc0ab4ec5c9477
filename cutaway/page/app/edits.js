// The edits of the model that are active: chips with a switch, a strength and undo. Nothing that changes it is out of sight.

import { button, form, labelled, make, picker } from "../elements.js";

const PARTS = [["head", "head"], ["attention", "attention of a layer"], ["mlp", "MLP of a layer"], ["layer", "whole layer"],
  ["neuron", "neuron"], ["direction", "or add a direction between two texts"]];
const NUMBERED = ["head", "neuron"]; // parts that have a number inside of their layer

// An edit here: {part, layer, unit, strength, on, direction, about}. Strength 1 leaves a part or a feature as it is, 0 switches it
// off; a direction is added strength times.
export function nameOf({ part, layer, unit, about }) {
  if (about) return about;
  if (part === "head") return `head ${layer}.${unit}`;
  if (part === "neuron") return `neuron ${layer}.${unit}`;
  if (part === "layer") return `layer ${layer}`;
  return `${part === "mlp" ? "MLP" : "attention"} ${layer}`;
}

// The edit as the API takes it.
export function asAsked({ part, layer, unit, strength, direction }) {
  if (part === "layer") return { kind: "ablate", layer, part, strength: 1 - strength };
  if (part === "neuron") return { kind: "scale", name: `blocks.${layer}.mlp.hidden`, units: [unit], strength };
  if (part === "direction") return { kind: "add", ...direction, strength };
  if (part === "feature") return { kind: "project", ...direction, strength: 1 - strength };
  return { kind: "scale", layer, part, ...(part === "head" ? { head: unit } : {}), strength };
}

export class Edits {
  list = [];
  before = []; // lists that undo goes back to
  chips = make("ul.chips-edits", { label: "Active edits" });
  back = button("Undo", () => this.undo());
  bar = make("div.tray", { role: "group", label: "Edits of the model" },
    make("span.tray-title", "Edits"), this.chips, this.back);
  form = this.adding();

  // changed(): other edits are active. direction(layer, towards, away) -> a vector, asked from the server.
  constructor({ changed, direction, failed }) {
    this.changed = changed;
    this.direction = direction;
    this.failed = failed;
    this.draw();
  }

  // What the next request sends.
  get active() {
    return this.list.filter((one) => one.on).map(asAsked);
  }

  // In words: what an answer beside another is called.
  get described() {
    return this.list.filter((one) => one.on).map((one) => (one.part === "direction" ? `${nameOf(one)} added ${one.strength} times`
      : one.strength === 0 ? `${nameOf(one)} off` : `${nameOf(one)} × ${one.strength}`)).join(", ");
  }

  set(list) {
    this.before.push(this.list);
    this.list = list;
    this.draw();
    this.changed();
  }

  add(...edits) {
    const names = edits.map(nameOf);
    const rest = this.list.filter((one) => !names.includes(nameOf(one)));
    this.set([...rest, ...edits.map((edit) => ({ strength: 0, on: true, ...edit }))]);
  }

  change(i, change) {
    this.set(this.list.map((one, at) => (at === i ? { ...one, ...change } : one)));
  }

  undo() {
    if (!this.before.length) return;
    this.list = this.before.pop();
    this.draw();
    this.changed();
  }

  draw() {
    this.bar.hidden = !this.list.length && !this.before.length;
    this.back.disabled = !this.before.length;
    const held = document.activeElement?.dataset?.chip;
    this.chips.replaceChildren(...this.list.map((one, i) => this.chip(one, i)));
    if (held) this.chips.querySelector(`[data-chip="${held}"]`)?.focus();
  }

  chip(edit, i) {
    const name = nameOf(edit);
    const strength = make("input", {
      type: "number", class: "strength", step: "0.25", min: edit.part === "direction" ? "-8" : "0", max: "8", value: edit.strength,
      label: `Strength of ${name}`, "data-chip": `strength-${name}`,
      change: () => Number.isFinite(strength.valueAsNumber) && this.change(i, { strength: strength.valueAsNumber }),
    });
    return make("li", { class: edit.on ? "edit-chip" : "edit-chip out" },
      make("label", make("input", { type: "checkbox", checked: edit.on, "data-chip": `on-${name}`,
        change: (event) => this.change(i, { on: event.target.checked }) }), name),
      make("span", { "aria-hidden": "true" }, "×"), strength,
      button("✕", () => this.set(this.list.filter((_, at) => at !== i)), { class: "chip-close", label: `Remove ${name}` }));
  }

  adding() {
    const part = picker("edit-part", PARTS, "head", () => update());
    const numeric = (id) => make("input", { id, type: "number", min: "0", value: "0", class: "strength" });
    const layer = numeric("edit-layer");
    const unit = numeric("edit-unit");
    const text = (id) => make("input", { id, size: "18" });
    const [towards, away] = [text("edit-towards"), text("edit-away")];
    const numbered = make("span.field", labelled("number", unit));
    const texts = make("span.field", labelled("towards", towards), labelled("away from", away));
    const update = () => {
      numbered.hidden = !NUMBERED.includes(part.value);
      texts.hidden = part.value !== "direction";
    };
    const submit = async () => {
      const edit = { part: part.value, layer: layer.valueAsNumber || 0, unit: unit.valueAsNumber || 0 };
      if (edit.part !== "direction") return this.add(edit);
      try {
        const vector = await this.direction(edit.layer, towards.value, away.value);
        const about = `“${towards.value}” minus “${away.value}” after layer ${edit.layer}`;
        return this.add({ part: "direction", direction: { layer: edit.layer, vector }, strength: 1, about });
      } catch (error) {
        return this.failed(error);
      }
    };
    update();
    return form("form.field", submit, labelled("switch off", part), labelled("layer", layer), numbered, texts, make("button.small", "Add"));
  }
}
