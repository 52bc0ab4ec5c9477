// Share: a link, the view as one file, and the requests that gave its numbers, for a shell and for Python.

import { saveFile } from "../charts/picture.js";
import { button, make, remark } from "../elements.js";
import { copying } from "../charts/figure.js";
import { Place } from "./place.js";

const SHOWN = 24; // requests that are listed

export class Share extends Place {
  list = make("div.share-list");
  whole = make("details.share", { toggle: () => this.whole.open && this.draw(), keydown: (event) => {
    if (event.key !== "Escape" || !this.whole.open) return;
    event.stopPropagation();
    this.whole.open = false;
    this.whole.firstChild.focus();
  } }, make("summary.small", "Share"), this.list);

  draw() {
    const { server } = this;
    const asked = [...server.asked.values()].reverse().slice(0, SHOWN);
    this.list.replaceChildren(
      make("p.buttons", copying("Copy link", () => new URL(this.shell.link(), location.href.replace(/#.*$/s, "")).href),
        button("Save view as HTML", () => this.file()),
        this.shell.place === "inside" && this.shell.places.inside.page ? button("Save as interactive HTML", (event) => this.interactive(event.target)) : null),
      remark("A link holds the view, and no key. Charts have their own SVG, PNG and CSV."),
      make("h3", "The requests of this view"),
      asked.length ? make("ul", asked.map(([path, body]) => make("li", make("code", body === undefined ? `GET /${path}` : `POST /${path}`),
        make("span.buttons", copying("curl", () => server.curl(path, body)), copying("Python", () => server.pythonRequest(path, body)))))) : remark("None so far."));
  }

  // What is shown, as a file that runs nothing: styles are written into it, maps are pictures.
  async file() {
    const place = document.getElementById("place");
    const copy = place.cloneNode(true);
    const [from, to] = [place, copy].map((root) => [...root.querySelectorAll("canvas")]);
    from.forEach((canvas, i) => {
      const image = make("img", { alt: "", width: Math.round(canvas.clientWidth) });
      if (canvas.width && canvas.height) image.src = canvas.toDataURL();
      image.className = "picture";
      to[i].replaceWith(image);
    });
    copy.querySelectorAll("button, input, select, textarea, form").forEach((one) => (one.matches("form, .t, .s, .chip") ? null : one.replaceWith(kept(one))));
    copy.querySelectorAll("details").forEach((one) => { one.open = true; });
    const head = document.implementation.createHTMLDocument(`Cutaway: ${location.hash.slice(1) || "chat"}`);
    head.documentElement.lang = "en";
    const theme = document.documentElement.dataset.theme;
    if (theme) head.documentElement.dataset.theme = theme;
    const [charset, policy, width] = [{ charset: "utf-8" }, { "http-equiv": "Content-Security-Policy", content: "default-src 'none'; style-src 'unsafe-inline'; img-src data:" },
      { name: "viewport", content: "width=device-width, initial-scale=1" }].map((one) => make("meta", one));
    const style = `${(await this.styles()).join("\n")}\nbody { display: block; height: auto; } #place { overflow: visible; } .layer .picture { position: absolute; top: 0; left: 0; } .ramp .picture { width: 180px; height: 10px; }`;
    head.head.prepend(charset, policy, width);
    head.body.append(copy, make("footer.training", remark(`Saved from Cutaway: ${this.server.model.id}. A recording; nothing here runs.`)));
    const text = new XMLSerializer().serializeToString(head.documentElement);
    saveFile("view.html", "text/html", `<!doctype html>\n${text.replace("</head>", () => `<style>${style}</style></head>`)}`);
  }

  styles() {
    const sheets = [...document.querySelectorAll("link[rel='stylesheet']")].map((one) => one.getAttribute("href"));
    return Promise.all(sheets.map(async (href) => (await this.server.ask(href)).text()));
  }

  // Inside as the file that `cutaway explain --html` writes: its trace is asked for once more, and put into the page's own document.
  async interactive(target) {
    target.disabled = true;
    const place = this.list.appendChild(make("div"));
    await this.tries(place, async () => {
      const { request } = this.shell.places.inside;
      const [page, data] = await Promise.all([this.server.ask("page/explain.html"), this.server.ask("v1/trace", { model: this.server.model.id, ...request, format: "page" })]);
      const reader = new FileReader();
      reader.readAsDataURL(await data.blob());
      await new Promise((done) => { reader.onloadend = done; });
      const [, base64] = reader.result.split(",");
      saveFile("inside.html", "text/html", (await page.text()).replace(/(<script[^>]*id="data">)(?=<)/, (tag) => tag + base64));
    });
    target.disabled = false;
  }
}

// A control as the text that it shows: a file has nothing to press.
function kept(one) {
  if (one.tagName === "SELECT") return make("span", one.selectedOptions[0]?.textContent ?? "");
  if (one.tagName === "BUTTON") return make("span", { class: one.closest(".tools, .buttons, .under-answer") ? "unseen" : "" }, ...one.childNodes);
  return make("span", one.type === "checkbox" || one.type === "range" || one.type === "file" ? "" : one.value);
}
