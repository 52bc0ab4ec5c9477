// How it works, on the loaded model: the sentence is part of the address, so that a link shows the same chapter.

import { decoded, form, labelled, make, submits } from "../elements.js";
import { read } from "../explain/explanation.js";
import { Page } from "../explain/state.js";
import { How } from "../how/how.js";
import { Place } from "./place.js";
import { instead } from "./server.js";

const LONGEST = 2000; // letters of a text in an address
const FIRST = "The capital of France is";

export class HowItWorks extends Place {
  page = null;
  text = make("textarea", { id: "sentence" }, FIRST);
  how = new How({
    source: { live: true, ask: (chapter, body, signal) => this.server.about(`v1/how/${chapter}`, { model: this.server.model.id, ...body }, signal) },
    text: () => this.text.value, page: () => this.traced(),
    address: (chapter) => this.address(chapter), announce: (text) => this.shell.announce(text), failed: (error) => this.shell.failed(error),
  });
  whole = make("div.inside", form("form.composer", () => { location.hash = this.address(this.how.at ?? ""); },
    labelled("Sentence", this.text), submits("Use it")), this.how.whole);

  address(chapter) {
    return `#how/${chapter}/${encodeURIComponent(this.text.value.slice(0, LONGEST))}`;
  }

  // rest: of the address, the chapter and the sentence.
  show(rest) {
    const [, chapter, text] = rest.match(/^([^/]*)(?:\/(.*))?$/s);
    const sentence = (decoded(text ?? "") || this.text.value).slice(0, LONGEST);
    if (sentence !== this.shown || this.model !== this.server.model) {
      this.how.clear();
      this.tracing = null;
      this.page = null;
    }
    [this.shown, this.model] = [sentence, this.server.model];
    this.text.value = sentence;
    this.how.show(chapter);
  }

  // The trace of the sentence, once for all chapters.
  traced() {
    this.tracing ??= this.trace();
    return this.tracing;
  }

  async trace() {
    try {
      const page = new Page({ ...read(await this.server.trace({ text: this.shown })), views: [] });
      this.listening = instead(this.listening);
      page.listen(this.listening.signal);
      this.page = page;
      return page;
    } catch (error) {
      this.tracing = null;
      throw error;
    }
  }
}
