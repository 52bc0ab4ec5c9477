// The lens: the model's guess after every block, at every position.

const FAINT = 120; // of 255: words stand on these colours

const lens = {
  title: "The lens",
  said: () => "What the model would say if it stopped after each block: every column is a position, read it downwards.",
  build(state) {
    const { story } = state;
    const stages = story.layers + 1;
    const chance = (r, t) => story.row("lens.probabilities", r)[t];
    const id = (r, t) => story.row("lens.ids", r)[t];
    const name = (r) => (r === 0 ? "embed" : `block ${r - 1}`);
    const map = heat(state, {
      name: "The guess after every block: a row a block, a column a position",
      hint: "The colour is how sure it is; bold is the guess that stays to the end.",
      rows: () => stages,
      columns: () => story.length,
      size: (width) => ({
        left: 76, top: 28, height: 22, width: clamp(Math.floor((width - 76) / story.length), 76, 160), tall: 760,
      }),
      colour: (r, c) => palette().upCss[Math.round(FAINT * Math.sqrt(chance(r, c)))],
      text: (r, c) => ({
        text: drawn(story.spelt[id(r, c)]),
        colour: palette().ink,
        strong: id(r, c) === id(stages - 1, c),
      }),
      rowName: name,
      columnName: (c) => drawn(story.tokenText(c)),
      columnToken: (c) => c,
      say: (r, c) => `After ${drawn(story.tokenText(c))}, ${name(r)}: ${drawn(story.spelt[id(r, c)])}, ${percent(chance(r, c))}`,
      pick: (r, c) => state.set(r ? { token: c, layer: r - 1 } : { token: c }),
      chosen: () => [state.layer + 1, state.token],
    });
    const said = make("p", {});
    const rows = make("div", {});
    const update = () => {
      map.update();
      said.replaceChildren(...settled(state, id, stages));
      rows.replaceChildren(table("The guesses at the selected token", [["after", "right"], ["guess", "left"], ["chance", "right"], ["of the last guess", "right"]],
        Array.from({ length: stages }, (_, r) => [name(r), word(story, id(r, state.token)), percent(chance(r, state.token)),
          percent(story.row("lens.final", r)[state.token])])));
    };
    const more = make("details", {}, make("summary", {}, "The selected column as a table"), rows);
    return { whole: make("div", { class: "stack" }, said, map.whole, more), update, hover: map.hover };
  },
};

function settled(state, id, stages) {
  const { story, token } = state;
  const answer = id(stages - 1, token);
  let since = stages - 1;
  while (since > 0 && id(since - 1, token) === answer) since--;
  const from = since === 0 ? "from the embedding on" : `from block ${since - 1} on`;
  return ["After ", tokenOf(story, token), " the guess is ", word(story, answer), ` ${from}.`];
}
