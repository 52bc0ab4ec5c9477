"""`cutaway tokenizer ...`: text to ids and back, tokenizers looked into, compared, trained and converted.

Each verb is a function in a module of its own, imported when it is called.
"""

import cyclopts

VERBS = {
    "encode": ("encode:encode", "Text to ids."),
    "decode": ("encode:decode", "Ids to text."),
    "count": ("encode:count", "How many tokens a text or a file is."),
    "show": ("show:show", "How a text is cut, and its tokens merged."),
    "compare": ("compare:compare", "Vocabularies side by side, on text of many kinds."),
    "report": ("report:report", "Glitch candidates, and tokens that are parts of characters."),
    "convert": ("convert:convert", "Write a tokenizer in another format."),
    "train": ("train:train", "Make a vocabulary from text."),
    "count-words": ("train:count_words", "Count a corpus, in parts that add up."),
}
HELP = "Encode, decode, look into, compare, convert, and train tokenizers."
EXAMPLES = """**Examples:**

cutaway tokenizer encode "The capital of France is"

cutaway tokenizer show "unbelievable"

cutaway tokenizer train corpus.txt --size 8000 --output tokenizer.json
"""

tokenizer = cyclopts.App(name="tokenizer", help=f"{HELP}\n\n{EXAMPLES}")
for _name, (_place, _about) in VERBS.items():
    tokenizer.command(f"cutaway.commands.tokenizer.{_place}", name=_name, help=_about)
