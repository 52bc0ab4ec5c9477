// "How it works" as a file: the chapters on a recording.

import { make, remark } from "../elements.js";
import { unpack } from "../explain/explanation.js";
import { strip } from "../explain/build.js";
import { Page } from "../explain/state.js";
import { themeButton } from "../theme.js";
import { How } from "./how.js";
import { Recorded } from "./source.js";

async function start() {
  const page = new Page(await unpack(document.querySelector("#data").textContent));
  const [{ explanation }] = page.states;
  const how = new How({
    source: new Recorded(explanation.how), text: () => explanation.text, page: async () => page, address: (chapter) => `#${chapter}`,
  });
  const theme = themeButton(() => page.states.forEach((state) => state.set({}, false)));
  document.querySelector("#head").append(make("div.top", make("h1.mark", "Cutaway: how it works"), theme),
    make("p.sentence", make("bdi", explanation.text)), remark(`${explanation.model}, a recording`));
  document.querySelector("#strip").append(...strip(page));
  document.querySelector("#views").replaceChildren(how.whole);
  page.listen();
  page.states.forEach((state) => state.set({}, false));
  const go = () => how.show(location.hash.slice(1));
  addEventListener("hashchange", go);
  go();
}

start();
