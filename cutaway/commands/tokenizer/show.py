"""`cutaway tokenizer show`: a text's tokens in colours, and how each came about."""

from typing import TYPE_CHECKING

from cutaway.commands import plots
from cutaway.commands.console import print_json, screen
from cutaway.commands.options import Force, Json, Svg
from cutaway.commands.tokenizer.encode import File, Name, Pattern
from cutaway.commands.tokenizer_source import opened, text_of
from cutaway.errors import escaped, plural
from cutaway.tokenizer import Tokenizer, bpe
from cutaway.tokenizer.pieces import Piece, pieces

if TYPE_CHECKING:
    from rich.text import Text

COLOURS = ("on dark_blue", "on dark_green", "on dark_red", "on purple4", "on dark_cyan")


def show(
    text: str | None = None,
    /,
    *,
    tokenizer: Name = "smollm2",
    file: File = None,
    pattern: Pattern = None,
    svg: Svg = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show the tokens of a text, with ids and bytes, and the merges that made them.

    A Unigram's tokens are the best path through all ways to cut the text: each with its score, a logarithm.

    **Examples:**

    cutaway tokenizer show "The capital of France"

    cutaway tokenizer show "naïve 🦜" --tokenizer tokenizer.json --json

    cutaway tokenizer show "unbelievable" --svg drawings

    :param text: The text; without one, and without --file, standard input is read.
    """
    from rich.text import Text

    plots.check(None, svg, force)
    tok = opened(tokenizer, pattern)
    found = pieces(tok, text_of(text, file))
    if svg is not None:
        plots.write_svg(svg, _drawn(tok, found))
        return
    if as_json:
        print_json([_document(tok, piece) for piece in found])
        return
    console = screen(soft_wrap=True)
    console.print(_coloured(tok, found))
    tokens = plural(sum(len(piece.ids) for piece in found), "token")
    console.print(f"{tokens} in {plural(len(found), 'word')}", style="dim")
    for piece in found:
        console.print()
        if any("\\x" in display(tok, tok.token_text(id)) for id in piece.ids):  # tokens that cut a character
            console.print(Text(f"          {display(tok, piece.text)}", style="dim"))
        for line in _lines(tok, piece):
            console.print(line)


def _drawn(tok: Tokenizer, found: list[Piece]) -> dict[str, str]:
    """The tokens with their ids, and the merges of each piece that has some, ten at most."""
    from cutaway.page.svg import diagrams

    ids = [id for piece in found for id in piece.ids]
    shown = [display(tok, tok.token_text(id)) for id in ids]
    drawings = {
        "tokens": diagrams.tokens(f"{len(ids)} tokens, with their ids", [("", shown, list(map(str, ids)))])
    }
    merged = dict.fromkeys(piece for piece in found if piece.merges)
    for n, piece in enumerate(list(merged)[:10], 1):
        states = [[display(tok, symbol) for symbol in state] for state in piece.states()]
        drawings[f"merges-{n}"] = diagrams.merges(f"How {display(tok, piece.text)} is merged", states)
    return drawings


def _document(tok: Tokenizer, piece: Piece) -> dict:
    tokens = [
        {"id": id, "token": tok.token_text(id), "bytes": tok.token_bytes(id).hex(" ")} for id in piece.ids
    ]
    path = [
        {"piece": piece.text[edge.start : edge.stop], "score": edge.score, "known": edge.known}
        for edge in piece.path
    ]
    return {
        "piece": piece.text,
        "tokens": tokens,
        "merges": [list(pair) for pair in piece.merges],
        "path": path,
    }


def _coloured(tok: Tokenizer, found: list[Piece]) -> "Text":
    """The tokens as text, no two neighbours of one colour."""
    from rich.text import Text

    out = Text()
    for number, id in enumerate(id for piece in found for id in piece.ids):
        out.append(display(tok, tok.token_text(id)), style=COLOURS[number % len(COLOURS)])
    return out


def _lines(tok: Tokenizer, piece: Piece) -> list["Text"]:
    from rich.text import Text

    lines = []
    for number, id in enumerate(piece.ids):
        line = Text(f"{id:>8}  ", style="dim")
        line.append(display(tok, tok.token_text(id)), style=COLOURS[number % len(COLOURS)])
        line.append(f"  {tok.token_bytes(id).hex(' ')}", style="dim")
        lines.append(line)
    for (left, right), state in zip(piece.merges, piece.states()[1:], strict=True):
        lines.append(Text(f"          {display(tok, left)} + {display(tok, right)}: ", style="dim"))
        lines[-1].append(" ".join(display(tok, symbol) for symbol in state), style="")
    for edge in piece.path:
        token = escaped(piece.text[edge.start : edge.stop])
        unknown = "" if edge.known else "  unknown"
        lines.append(Text(f"          {token}  {edge.score:.4f}{unknown}", style="dim"))
    return lines


def display(tok: Tokenizer, symbol: str) -> str:
    """A symbol of a byte-level vocabulary as the text it stands for, a space as U+2423."""
    data = bpe.unspell(symbol) if tok.spec.bytewise and symbol not in tok.added else None
    if data is None:
        return escaped(symbol)
    return escaped(data.decode("utf-8", "backslashreplace")).replace(" ", "\u2423")
