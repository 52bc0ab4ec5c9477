// What is selected, and what the pointer or the focus is on. A view says how it follows; each follows once a frame.

class State {
  views = [];
  hovered = null;

  constructor(explanation, index, page) {
    this.explanation = explanation;
    this.index = index;
    this.page = page;
    const [layer, head, source] = explanation.chosen;
    this.token = explanation.length - 1;
    Object.assign(this, { layer, head, source, pair: null });
  }

  // The facts of the layer's attention.
  get attention() {
    return this.explanation.attention[this.layer];
  }

  // Whether the page keeps the head's queries and keys.
  get detailed() {
    return this.explanation.isDetailed(this.layer, this.head);
  }

  // Selects; `linked`: in what is beside it too.
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
  waiting = new Map();

  constructor(data) {
    this.data = data;
    this.states = data.explanations.map((explanation, i) => new State(explanation, i, this));
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

  // Whose choice of a RoPE pair holds where none is chosen.
  leader(state) {
    return state;
  }

  follow() {}

  hover(state, t) {
    state.hover(t);
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
