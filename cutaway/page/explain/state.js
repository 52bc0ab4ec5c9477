// What is selected, and what the pointer or the focus is on. A view says how it follows; each follows once a frame.

class State {
  constructor(explanation, index, page) {
    this.explanation = explanation;
    this.index = index;
    this.page = page;
    this.views = [];
    this.hovered = null;
    const [layer, head, source] = explanation.chosen;
    this.token = explanation.length - 1;
    Object.assign(this, { layer, head, source, pair: null });
  }

  // Selects. A linked token is selected in the other explanation too; so are a layer, a head and a pair, if the
  // model is the same: the heads of two models do not correspond.
  set(change, linked = true) {
    Object.assign(this, change);
    this.head = Math.min(this.head, this.explanation.heads[this.layer] - 1);
    this.source = Math.min(this.source, this.token);
    if (linked) this.page.follow(this, change);
    this.page.later(`update-${this.index}`, () => this.views.forEach((view) => view.update()));
  }

  hover(t) {
    if (this.hovered === t) return;
    this.hovered = t;
    this.page.later(`hover-${this.index}`, () => {
      const root = document.querySelectorAll(`[data-explanation="${this.index}"]`);
      root.forEach((part) => part.querySelectorAll(".lit").forEach((one) => one.classList.remove("lit")));
      if (this.hovered !== null) {
        root.forEach((part) => part.querySelectorAll(`[data-t="${this.hovered}"]`)
          .forEach((one) => one.classList.add("lit")));
      }
      this.views.forEach((view) => view.hover?.(this.hovered));
    });
  }
}

export class Page {
  constructor(data) {
    this.data = data;
    this.states = data.explanations.map((explanation, i) => new State(explanation, i, this));
    if (data.same_model && this.states.length > 1) this.together();
    this.waiting = new Map();
    this.links = [new Map(data.links), new Map(data.links.map(([a, b]) => [b, a]))];
  }

  // The heads of one model correspond: both sides open at the first one's.
  together() {
    const [{ layer, head, source }, other] = this.states;
    const there = new Map(this.data.links).get(source);
    Object.assign(other, { layer, head, source: there ?? other.source });
  }

  // Runs a task in the next frame, once, however often it was asked for.
  later(name, task) {
    if (!this.waiting.size) requestAnimationFrame(() => this.flush());
    this.waiting.set(name, task);
  }

  flush() {
    const tasks = [...this.waiting.values()];
    this.waiting.clear();
    tasks.forEach((task) => task());
  }

  other(state) {
    return this.states[1 - state.index];
  }

  // Whose choice of a RoPE pair holds where none is chosen: the first explanation's, of two of one model.
  leader(state) {
    return this.data.same_model ? this.states[0] : state;
  }

  follow(state, change) {
    const other = this.other(state);
    if (!other) return;
    const same = {};
    if (this.data.same_model) {
      for (const name of ["layer", "head", "pair"]) if (name in change) same[name] = change[name];
    }
    for (const name of ["token", "source"]) {
      const there = name in change ? this.links[state.index].get(change[name]) : undefined;
      if (there !== undefined) same[name] = there;
    }
    if (Object.keys(same).length) other.set(same, false);
  }

  hover(state, t) {
    state.hover(t);
    this.other(state)?.hover(t === null ? null : (this.links[state.index].get(t) ?? null));
  }

  // One listener for hovering and focusing serves every token on the page, until the signal.
  listen(signal) {
    const heard = (event) => {
      const at = event.target.closest?.("[data-t]");
      const explanation = at?.closest("[data-explanation]");
      if (explanation) this.hover(this.states[explanation.dataset.explanation], Number(at.dataset.t));
      else if (!event.target.closest?.(".heat")) this.states.forEach((state) => state.hover(null));
    };
    document.addEventListener("pointerover", heard, { signal });
    document.addEventListener("focusin", heard, { signal });
  }
}
