"""`cutaway tokenizer compare`: vocabularies side by side, on text of many kinds and languages."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated

from cyclopts import Parameter

from cutaway.commands import plots
from cutaway.commands.console import note, print_json
from cutaway.commands.options import Force, Html, Json, Svg
from cutaway.commands.tokenizer.encode import File, Pattern
from cutaway.commands.tokenizer.measure import SAMPLES, Language, Measured, advice, declarations, measured
from cutaway.commands.tokenizer_source import opened, text_of
from cutaway.errors import UserError
from cutaway.page import report
from cutaway.page.charts import Axis, Bar, Bars, Chart, Plot, Series, Table
from cutaway.tokenizer import Tokenizer, baselines
from cutaway.tokenizer.spec import TokenizerSpec

WORST = 5
BASELINES: dict[str, Callable[[list[str]], TokenizerSpec]] = {  # by name, unless there is such a file
    "words": lambda texts: baselines.words(texts, 1 << 30),
    "characters": baselines.characters,
    "bytes": lambda texts: baselines.bytewise(),
}


def compare(
    *tokenizers: str,
    file: File = None,
    udhr: Annotated[Path | None, Parameter(help="A folder of the declarations, for parity.")] = None,
    html: Html = None,
    svg: Svg = None,
    force: Force = False,
    pattern: Pattern = None,
    as_json: Json = False,
) -> None:
    """Compare tokenizers on the text of --file (- is standard input), or without it on short samples.

    The table has tokens a word (words are what white space parts), bytes a token, and bytes a token for
    numbers, code and white space. With the Universal Declaration of Human Rights in 532 languages it has
    parity too: how many times as many tokens a language needs as English, for the same articles.

    Three names are baselines: `words`, `characters` and `bytes`. Their vocabularies are made from the very
    texts, so nothing is unknown, and their size is the price.

    **Examples:**

    cutaway tokenizer compare words characters bytes smollm2

    cutaway tokenizer compare smollm2 tokenizer.json

    cutaway tokenizer compare smollm2 cl100k.json --file README.md --html compare.html

    cutaway tokenizer compare smollm2 runs/book --udhr package/declaration --json

    :param tokenizers: The tokenizers: files, folders (of a model, or a training run), or models' names.
    """
    if not tokenizers:
        raise UserError("give the tokenizers: cutaway tokenizer compare smollm2 tokenizer.json")
    plots.check(html, svg, force)
    text = "\n".join(SAMPLES.values()) if file is None else text_of(None, file)
    if not text:
        raise UserError(f"{file} is empty: there is nothing to compare on")
    languages = declarations(udhr)
    texts = [text, *SAMPLES.values(), *(one for own in languages for one in own.articles.values())]
    made = {
        name: Tokenizer(BASELINES[name](texts))
        if name in BASELINES and not Path(name).exists()
        else opened(name, pattern)
        for name in tokenizers
    }
    if not languages and not as_json:
        note(f"Note: parity needs the declarations, which are not here: {advice()}.")
    rows = [measured(name, tok, text, languages) for name, tok in made.items()]
    plots.write_plots(_report(rows, languages, text), html, svg, force)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        print("\n".join(_table(rows, languages)))


def _table(rows: list[Measured], languages: list[Language]) -> list[str]:
    cells = [("", *(row.name for row in rows))]
    cells.append(("vocabulary", *(f"{row.vocabulary:,}" for row in rows)))
    cells.append(("tokens", *(f"{row.tokens:,}" for row in rows)))
    cells.append(("tokens a word", *(f"{row.tokens_per_word:.3f}" for row in rows)))
    cells.append(("bytes a token", *(f"{row.bytes_per_token:.3f}" for row in rows)))
    cells += [(f"  {kind}", *(f"{row.samples[kind]:.3f}" for row in rows)) for kind in rows[0].samples]
    if languages:
        cells.append(
            (f"parity, median of {len(languages)}", *(_ratio(median(row.parity.values())) for row in rows))
        )
        cells += [
            (f"  {language.name}", *(_ratio(row.parity[language.code]) for row in rows))
            for language in _worst(rows, languages)
        ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row, widths[1:], strict=True))])
        for name, *row in cells
    ]


def _ratio(parity: float) -> str:
    return f"{parity:.2f}"


def _worst(rows: list[Measured], languages: list[Language]) -> list[Language]:
    """The languages that need most tokens, by the best that any of the tokenizers does."""
    spoken = [language for language in languages if language.code in rows[0].parity]
    return sorted(spoken, key=lambda language: -min(row.parity[language.code] for row in rows))[:WORST]


def _report(rows: list[Measured], languages: list[Language], text: str) -> report.Report:
    """A report: bytes a token of each kind of text, and parity by language."""
    kinds = ["the text", *rows[0].samples]
    bars = [Bar(row.name, [row.bytes_per_token, *row.samples.values()]) for row in rows]
    charts: list[Chart] = [
        Bars("Bytes a token: more is shorter", Axis("bytes a token"), "text", kinds, bars),
        *([_parities(rows, languages)] if languages else []),
    ]
    columns = ["", *(row.name for row in rows)]
    sizes = [
        ("vocabulary", *(row.vocabulary for row in rows)),
        ("tokens", *(row.tokens for row in rows)),
        ("tokens a word", *(row.tokens_per_word for row in rows)),
        ("bytes a token", *(row.bytes_per_token for row in rows)),
    ]
    about = f"On {len(text.encode()):,} bytes of text."
    return report.Report(
        "Tokenizers side by side", [report.Text(about), Table("Sizes", columns, sizes), report.Grid(charts)]
    )


def _parities(rows: list[Measured], languages: list[Language]) -> Plot:
    """Each language as a point, ordered by the first tokenizer's parity."""
    spoken = [language for language in languages if language.code in rows[0].parity]
    spoken.sort(key=lambda language: rows[0].parity[language.code])
    names = [language.name for language in spoken]
    return Plot(
        "Tokens for the same text, as a multiple of English",
        Axis(f"languages, in the order of {rows[0].name}"),
        Axis("tokens", "times those of English", log=True),
        [
            Series(
                row.name,
                list(range(1, len(spoken) + 1)),
                [row.parity[language.code] for language in spoken],
                labels=names,
                line=False,
                points=True,
            )
            for row in rows
        ],
        marks=[("English", 1.0)],
    )
