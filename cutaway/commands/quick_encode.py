"""`cutaway tokenizer encode TEXT` and `count TEXT` in their plainest form, without the argument parser.

The parser costs several times what the work does, and these are called from scripts, a line at a time.
Whatever is not exactly this form is left to the parser, which says what is wrong with it.
"""

from collections.abc import Sequence

NAME = ("-t", "--tokenizer")


def quick(arguments: Sequence[str]) -> bool:
    """Answer `encode TEXT [-t NAME]` or `count TEXT [-t NAME]`; False for any other arguments."""
    match arguments:
        case [("encode" | "count") as verb, text]:
            name = "smollm2"
        case [("encode" | "count") as verb, text, option, name] if option in NAME:
            pass
        case [("encode" | "count") as verb, option, name, text] if option in NAME:
            pass
        case _:
            return False
    if text.startswith("-") or name.startswith("-"):
        return False
    from cutaway.commands.tokenizer_source import opened

    tok = opened(name)
    print(*(tok.encode(text) if verb == "encode" else [tok.count(text)]))
    return True
