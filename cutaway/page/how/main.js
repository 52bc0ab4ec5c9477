// "How it works" as a file: the chapters on a recording.

import { make, remark } from "../elements.js";
import { read } from "../explain/explanation.js";
import { strip } from "../explain/build.js";
import { Page } from "../explain/state.js";
import { bytesInFile } from "../file.js";
import { themeButton } from "../theme.js";
import { How } from "./how.js";

// A recording: by chapter what the server would answer; of quantized a list, one a type.
class Recorded {
  constructor(answers) {
    this.answers = answers;
    this.live = false;
  }

  async ask(chapter, { type }) {
    const found = type ? this.answers[chapter]?.find((one) => one.type === type) : this.answers[chapter];
    if (!found) throw new Error("This file is a recording without this: open the page with cutaway open.");
    return found;
  }
}

async function start() {
  const page = new Page(read(await bytesInFile()));
  const [{ explanation }] = page.states;
  const how = new How({
    source: new Recorded(explanation.how), text: () => explanation.text, page: async () => page, address: (chapter) => `#${chapter}`,
  });
  const theme = themeButton(() => page.states.forEach((state) => state.set({}, false)));
  document.querySelector("#head").append(make("div.top", make("h1.mark", "Cutaway: how it works"), theme),
    make("div.titles", make("div.title", make("p.sentence", make("bdi", explanation.text)), remark(`${explanation.model}, a recording`))));
  document.querySelector("#strip").append(...strip(page));
  document.querySelector("#views").replaceChildren(how.whole);
  page.listen();
  page.states.forEach((state) => state.set({}, false));
  const go = () => how.show(location.hash.slice(1));
  addEventListener("hashchange", go);
  go();
}

start();
