// What is selected, and what the pointer or the focus is on. A view says how it follows; each follows once a frame.

class State {
  constructor(story, index, page) {
    this.story = story;
    this.index = index;
    this.page = page;
    this.views = [];
    this.hovered = null;
    const [layer, head, source] = story.chosen;
    this.token = story.length - 1;
    Object.assign(this, { layer, head, source, pair: null });
  }

  // Selects; a layer and a head are selected in the other story too, where it has them, and so is a linked token.
  set(change, linked = true) {
    Object.assign(this, change);
    this.head = Math.min(this.head, this.story.heads[this.layer] - 1);
    this.source = Math.min(this.source, this.token);
    if (linked) this.page.follow(this, change);
    this.page.later(`update-${this.index}`, () => this.views.forEach((view) => view.update()));
  }

  hover(t) {
    if (this.hovered === t) return;
    this.hovered = t;
    this.page.later(`hover-${this.index}`, () => {
      const root = document.querySelectorAll(`[data-story="${this.index}"]`);
      root.forEach((part) => part.querySelectorAll(".lit").forEach((one) => one.classList.remove("lit")));
      if (this.hovered !== null) {
        root.forEach((part) => part.querySelectorAll(`[data-t="${this.hovered}"]`)
          .forEach((one) => one.classList.add("lit")));
      }
      this.views.forEach((view) => view.hover?.(this.hovered));
    });
  }
}

class Page {
  constructor(told) {
    this.told = told;
    this.states = told.stories.map((story, i) => new State(story, i, this));
    this.waiting = new Map();
    this.links = [new Map(told.links), new Map(told.links.map(([a, b]) => [b, a]))];
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

  follow(state, change) {
    const other = this.other(state);
    if (!other) return;
    const same = {};
    if ("layer" in change && change.layer < other.story.layers) same.layer = change.layer;
    if ("head" in change && change.head < other.story.heads[same.layer ?? other.layer]) same.head = change.head;
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

  // Hovering and focusing are heard once, for every token on the page.
  listen() {
    const heard = (event) => {
      const at = event.target.closest?.("[data-t]");
      const story = at?.closest("[data-story]");
      if (story) this.hover(this.states[story.dataset.story], Number(at.dataset.t));
      else if (!event.target.closest?.(".heat")) this.states.forEach((state) => state.hover(null));
    };
    document.addEventListener("pointerover", heard);
    document.addEventListener("focusin", heard);
  }
}
