"""`cutaway embed ...`: words, tokens and sentences as vectors. Each verb is imported when it is called."""

from cyclopts import App

VERBS = {
    "train": ("train:train", "Learn word vectors from a text."),
    "neighbors": ("neighbors:neighbors", "The words nearest to one."),
    "analogy": ("neighbors:analogy", "What is to C as B is to A."),
    "evaluate": ("evaluate:evaluate", "Vectors against people's judgements and analogies."),
    "project": ("project:project", "A map of the vectors, as a page."),
    "text": ("text:text", "Texts as vectors."),
    "search": ("search:search", "Find passages in a folder of your own."),
}
HELP = """Train word vectors, and walk around in them or in a model's own embedding table.

Where a verb asks for vectors it takes a file (word2vec text or binary, GloVe, safetensors) or a model: the
rows of its table are its tokens.
"""
EXAMPLES = """**Examples:**

cutaway embed train corpus.txt --output words.safetensors

cutaway embed neighbors words.safetensors river

cutaway embed analogy smollm2 " man" " king" " woman"
"""

embed = App(name="embed", help=f"{HELP}\n\n{EXAMPLES}", version_flags=())
for _name, (_place, _about) in VERBS.items():
    embed.command(f"cutaway.commands.embed.{_place}", name=_name, help=_about)
