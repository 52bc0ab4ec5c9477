"""`cutaway tokenizer ...`: text to ids and back, tokenizers looked into, compared, trained and converted.

Each verb is a function in a module of its own, imported when it is called.
"""

import cyclopts

HERE = "cutaway.commands"
VERBS = {
    "encode": "tokenizer_text:encode",
    "decode": "tokenizer_text:decode",
    "count": "tokenizer_text:count",
    "show": "tokenizer_show:show",
    "compare": "tokenizer_compare:compare",
    "report": "tokenizer_report:report",
    "convert": "tokenizer_convert:convert",
    "train": "tokenizer_train:train",
    "count-words": "tokenizer_train:count_words",
}

tokenizer = cyclopts.App(
    name="tokenizer",
    help_format="markdown",
    help="Encode, decode, look into, compare, convert, and train tokenizers.",
)
for _name, _place in VERBS.items():
    tokenizer.command(f"{HERE}.{_place}", name=_name)
