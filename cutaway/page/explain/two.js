// Two explanations side by side: what is selected in one is selected in the other.

import { Page } from "./state.js";

export class TwoSides extends Page {
  constructor(data) {
    super(data);
    this.links = [new Map(data.links), new Map(data.links.map(([a, b]) => [b, a]))];
    if (data.same_model) this.together();
  }

  // The heads of one model correspond: both sides open at the first one's.
  together() {
    const [{ layer, head, source }, other] = this.states;
    Object.assign(other, { layer, head, source: this.links[0].get(source) ?? other.source });
  }

  other(state) {
    return this.states[1 - state.index];
  }

  leader(state) {
    return this.data.same_model ? this.states[0] : state;
  }

  // A linked token is selected in the other explanation too; so are a layer, a head and a pair, if the model is the
  // same: the heads of two models do not correspond.
  follow(state, change) {
    const same = {};
    if (this.data.same_model) {
      for (const name of ["layer", "head", "pair"]) if (name in change) same[name] = change[name];
    }
    for (const name of ["token", "source"]) {
      const there = name in change ? this.links[state.index].get(change[name]) : undefined;
      if (there !== undefined) same[name] = there;
    }
    if (Object.keys(same).length) this.other(state).set(same, false);
  }

  hover(state, t) {
    super.hover(state, t);
    this.other(state).hover(t === null ? null : (this.links[state.index].get(t) ?? null));
  }
}
