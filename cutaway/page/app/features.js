// A token's strongest features by each dictionary of the server, and the card of one: its texts, its effect, its edits.

import { bar, button, drawn, fixed, labelled, make, number, percent, picker, quoted, readable, remark, table } from "../elements.js";

const STRONGEST = 5; // features of each dictionary
const PLACES = [["", "where it was chosen"], ["itself", "the token itself"]];

export async function features(box, { answer, index, ids, asked, edit }, { server, signal, kept, again }) {
  const { id, token } = answer.tokens[index];
  const body = { ...asked, top: STRONGEST, ...(kept.place ? { prompt_token_ids: [...ids, id] } : {}) };
  const { dictionaries } = await server.about("v1/features", body, signal);
  if (!dictionaries.length) {
    box.replaceChildren(...commands(asked.model));
    return null;
  }
  const open = async (feature) => {
    kept.feature = feature;
    await again("#card");
  };
  const place = picker("place-of", PLACES, kept.place ?? "", (value) => {
    kept.place = value;
    again("#place-of");
  });
  const card = kept.feature && dictionaries[kept.feature.dictionary] ? await cardOf(kept.feature, dictionaries, { server, signal, edit, asked }) : "";
  box.replaceChildren(
    make("p.select", labelled("Features at", place)), card,
    ...(dictionaries.some((one) => one.features.length) ? [listed(dictionaries, open)] : [remark("No feature is active at ", quoted(token), ".")]),
    dictionaries.some((one) => one.sink) ? remark("An attention sink, which dictionaries are not trained on.") : "");
  return ["v1/features", body];
}

const shown = (text) => readable(text).replaceAll("\n", "↵");
const nameOf = (feature, { label }) => (label ? readable(label) : `feature ${feature}`);

function listed(dictionaries, open) {
  const rows = [...dictionaries].sort((a, b) => a.layer - b.layer).flatMap(({ dictionary, layer, reads, features: own }) => own.map((one, i) => [
    i ? "" : layer < 0 ? reads[0] : layer,
    button(make("bdi", nameOf(one.feature, one)), () => open({ ...one, dictionary }), { class: "link" }),
    fixed(one.activation, 2), bar(one.activation / own[0].activation), one.density === null ? "" : percent(one.density)]));
  const dense = rows.some((row) => row[4]);
  return table("The token’s strongest features, by layer", [["layer"], "feature", ["activation"], "", [dense ? "fires on" : ""]], rows);
}

async function cardOf({ dictionary, feature, activation }, dictionaries, { server, signal, edit, asked }) {
  const found = await server.about("v1/features/card", { model: asked.model, dictionary, feature }, signal);
  const { layer, kind, writes } = dictionaries[dictionary];
  const { direction, texts, raises, lowers, density, largest } = found;
  const unit = largest || activation; // strength 1 of an added feature
  const about = `feature ${feature} of layer ${layer}`;
  const changes = direction ? make("p.buttons",
    button("Switch off", () => edit({ part: "feature", about, direction })),
    button("Add", () => edit({ part: "direction", about, direction: { ...direction, vector: direction.vector.map((one) => one * unit) }, strength: 1 })))
    : remark(`It writes ${writes.length} activations, so that it is no single edit.`);
  const sides = raises?.map((one, i) => [quoted(one.text), number(one.logit), quoted(lowers[i].text), number(lowers[i].logit)]);
  return make("div.card", { role: "group", "aria-labelledby": "card" },
    make("h3", { id: "card", tabindex: "-1" }, make("bdi", nameOf(feature, found))),
    remark(`Feature ${feature} of the ${kind.replace("_", "-")} that writes ${writes.join(", ")}.`, density === null ? ""
      : ` It fires on ${percent(density)} of tokens, at most ${number(largest)}.`),
    changes,
    texts.length ? make("ul.attended", texts.map((one) => make("li", make("bdi",
      one.tokens.map((text, i) => (i === one.at ? make("mark", { title: number(one.activation) }, shown(text)) : shown(text)))))))
      : remark("No texts are kept: ", make("code", "cutaway sae texts FOLDER DATA"), " keeps some."),
    sides ? table("Its direct effect on logits", ["raises", ["by", "estimate", "of the direct effect alone"], "lowers", ["by"]], sides) : "");
}

function commands(model) {
  return [
    remark("This model is served without features. These commands make them and show them here; the texts are your own."),
    make("pre.attended", [
      "cutaway activations texts.txt --names blocks.15.mlp_norm --names blocks.15.mlp.down --output acts",
      "cutaway sae acts --kind transcoder --output transcoders",
      "cutaway sae texts transcoders acts",
      `cutaway serve ${drawn(model)} --features transcoders`].join("\n"))];
}
