"""`cutaway embed evaluate`: word vectors against WordSim-353, SimLex-999 and the analogies."""

from __future__ import annotations

from pathlib import Path

from cutaway.commands import console
from cutaway.commands.embed.sources import opened
from cutaway.commands.options import Json
from cutaway.embedding import evaluate as sets


def evaluate(
    source: str,
    /,
    *,
    wordsim: Path | None = None,
    simlex: Path | None = None,
    analogy: Path | None = None,
    as_json: Json = False,
) -> None:
    """Measure Spearman's correlation with people's scores on WordSim-353 and SimLex-999, and right analogies.

    Without paths the sets are those that an installed gensim brings. Words without a vector are left out, and
    the number of questions is printed.

    **Examples:**

    cutaway embed evaluate words.safetensors

    cutaway embed evaluate words.txt --wordsim wordsim353.tsv --json

    :param source: A file of word vectors, or a model, whose own table is asked.
    :param wordsim: WordSim-353, or another file of `word<TAB>word<TAB>score`.
    :param simlex: SimLex-999, likewise.
    :param analogy: questions-words.txt, or another file of four words a line.
    """
    given = {"wordsim": wordsim, "simlex": simlex, "analogy": analogy}
    asked = {name: path for name, path in given.items() if path is not None} or {
        name: sets.find(name) for name in given
    }
    vectors = opened(source)
    pairs = {name: sets.similarity(vectors, path) for name, path in asked.items() if name != "analogy"}
    answered = sets.analogies(vectors, asked["analogy"]) if "analogy" in asked else None
    if as_json:
        document: dict[str, object] = {
            name: {"correlation": _number(one.correlation), "used": one.used, "pairs": one.pairs}
            for name, one in pairs.items()
        }
        if answered is not None:
            document["analogy"] = {
                "accuracy": _number(answered.accuracy),
                "right": answered.right,
                "used": answered.used,
                "questions": answered.questions,
                "sections": {name: {"right": r, "used": u} for name, (r, u) in answered.sections.items()},
            }
        console.print_json(document)
        return
    for name, one in pairs.items():
        print(f"{name:8}  {one.correlation:.3f}  Spearman's correlation over {one.used} of {one.pairs} pairs")
    if answered is not None:
        used = f"{answered.used} of {answered.questions} questions"
        print(f"analogy   {answered.accuracy:.3f}  right, over {used}")


def _number(value: float) -> float | None:
    """NaN is not JSON."""
    return None if value != value else value
