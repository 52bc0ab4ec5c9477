"""`cutaway embed`: words and tokens as vectors. Each of its verbs is a file, imported when it is called."""

from cyclopts import App

embed = App(
    name="embed",
    help="""Train word vectors, and walk around in them or in a model's own embedding table.

    Where a verb asks for vectors it takes a file (word2vec text or binary, GloVe, safetensors) or a model:
    the rows of its table are its tokens.

    Examples:

    cutaway embed train corpus.txt --output words.safetensors

    cutaway embed neighbors words.safetensors river

    cutaway embed analogy smollm2 " man" " king" " woman"
    """,
    version_flags=(),
)
VERBS = {
    "train": "embed_train:train",
    "neighbors": "embed_ask:neighbors",
    "analogy": "embed_ask:analogy",
    "evaluate": "embed_evaluate:evaluate",
    "project": "embed_project:project",
    "text": "embed_text:text",
    "search": "embed_search:search",
}
for name, home in VERBS.items():
    embed.command(f"cutaway.commands.{home}", name=name)
