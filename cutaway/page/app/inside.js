// Inside: a text, or a conversation up to a token, followed through the model: the views of the explain page, live.

import { decoded, form, labelled, make, status, submits } from "../elements.js";
import { VIEWS, strip, views } from "../explain/build.js";
import { read } from "../explain/explanation.js";
import { Page } from "../explain/state.js";
import { Place } from "./place.js";
import { instead } from "./server.js";

const LONGEST = 4000; // letters of a text in an address
const RECORDED = "The capital of France is"; // scripts/tables/recording.py

export class Inside extends Place {
  asked = null;
  running = null;
  text = make("textarea", { id: "text" }, RECORDED);
  note = status();
  strip = make("div", { id: "strip" });
  views = make("div", { id: "views" });
  whole = make("div.inside", form("form.composer", () => this.trace({ text: this.text.value }),
    labelled("Text", this.text), submits("Trace")), this.note, this.strip, this.views);

  // What the place shows when it is opened: the text of the address, the last trace, or one of the example.
  show(text) {
    if (text) this.text.value = decoded(text).slice(0, LONGEST);
    if (text || !this.asked) this.trace({ text: this.text.value });
    else this.page?.states.forEach((state) => state.set({}, false));
  }

  // at: what is selected in it, where not what its explanation chose.
  async trace(given, at = null) {
    const { signal } = this.running = instead(this.running);
    this.asked = given;
    const { edits } = this.shell.places.chat;
    const asked = { edits: edits.active, ...given };
    this.request = asked;
    if (given.text) history.replaceState(null, "", `#inside/${encodeURIComponent(given.text.slice(0, LONGEST))}`);
    this.note.textContent = given.text ? "Tracing …" : "Tracing the conversation up to the token …";
    this.strip.hidden = this.views.hidden = true;
    await this.tries(this.note, async () => {
      if (!this.page && given.text === RECORDED) await this.record();
      const data = read(await this.server.trace(asked, signal));
      this.draw(new Page({ ...data, views: Object.keys(VIEWS) }), at);
      if (given.text) this.note.textContent = asked.edits.length ? `With edits: ${edits.described}.` : "";
      else this.note.textContent = "The conversation up to the token, as the chat template writes it, by the ids that the model read.";
    });
  }

  // The first view waits for nothing: it is a recording until the model's own trace is there.
  async record() {
    const data = read(await this.server.recording());
    this.draw(new Page({ ...data, views: Object.keys(VIEWS) }));
    this.note.textContent = "A recording of SmolLM2-135M, while this model's own trace is computed …";
  }

  draw(page, at = null) {
    this.page = page;
    this.strip.hidden = this.views.hidden = false;
    this.strip.replaceChildren(...strip(page));
    this.views.replaceChildren(...views(page));
    this.listening = instead(this.listening);
    page.listen(this.listening.signal);
    page.states.forEach((state) => state.set({ ...page.data.start, ...at }, false));
    this.shell.announce("The trace is shown");
  }
}
