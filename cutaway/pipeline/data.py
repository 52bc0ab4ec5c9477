"""The first stage: text, conversations that programs wrote, pairs, held-out questions, and their data sheet.

text/           documents to pretrain on
tokenizer.txt   text and conversations, to train a vocabulary on
mix.jsonl       text in pieces and conversations, for mid-training
sft.jsonl       conversations;  pairs.jsonl: a right and a wrong answer to each question
held-out/       documents and questions that are in none of the above
sheet.json      what went in, its licence, what was left out, and the overlap with every evaluation
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

from cutaway.bounds import Bound, Bounded, Fraction, Natural
from cutaway.data import novels, sources
from cutaway.data.programs import registry
from cutaway.data.programs.item import Item
from cutaway.errors import OperationalError, UserError, quoted
from cutaway.evaluate.tasks.programs import SEED
from cutaway.model.config_dict import from_dict
from cutaway.pipeline import overlap
from cutaway.store.files import atomic_folder
from cutaway.store.yaml_files import parsed

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
NOVELS = "novels"
LICENCES = {NOVELS: "public domain (six novels of Jane Austen, Debian's r-cran-janeaustenr 1.0.0)"}
OWN = "written by cutaway/data/programs (Apache-2.0)"
HALF = re.compile("[\ud800-\udfff]")  # half a character, which UTF-8 has not and JSON may have
PIECE = 600  # characters of text that are an example of mid-training
TOOLS_ELSEWHERE = 0.15  # of the questions without a tool: it is declared, and must not be called
REPEATS = 50  # of one question, so that kinds with few questions keep their part
MOST = 10_000_000  # items of a program
HELD_OUT_DOCUMENT = 40  # one document of so many is held out


@dataclass(frozen=True)
class DataRecipe(Bounded):
    """``texts``: "novels", or files and folders; ``programs``: how many conversations of each.

    ``pairs`` and ``held_out`` are counts for each program, ``pieces`` of text in the mixture; ``sft`` is the
    part of the conversations that sft.jsonl has, all of which the mixture has. ``evaluations``
    are tasks of `cutaway eval` whose items must not be in what is trained on. ``overlap`` is the share of an
    item's sequences of 8 words above which a document that has them is left out.
    """

    programs: dict
    texts: tuple[str, ...] = ()
    pairs: Natural = 0
    held_out: Annotated[int, Bound(0, MOST)] = 200
    pieces: Natural = 0
    sft: Fraction = 1.0
    evaluations: tuple[str, ...] = ()
    overlap: Fraction = 0.5
    seed: Natural = 0
    licences: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, count in self.programs.items():
            if type(count) is not int or not 1 <= count <= MOST:
                raise UserError(
                    f"config.programs.{name}: is {quoted(count)}; it must be a number from 1 to {MOST:,}"
                )
        for text, licence in self.licences.items():
            if not isinstance(licence, str):
                raise UserError(f"config.licences.{text}: is {quoted(licence)}; it must be a text")


def main(arguments: Sequence[str]) -> int:
    """Make the folder OUTPUT by the recipe of a YAML file; 2 for a user's mistake, 1 for a failure."""
    recipe, output = map(Path, arguments)
    try:
        make(from_dict(parsed(recipe), DataRecipe, "config"), output)
    except (UserError, OperationalError) as problem:
        print(f"cutaway: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, UserError) else 1
    return 0


def make(recipe: DataRecipe, output: Path) -> dict[str, Any]:
    """Write the folder at once, and return its sheet."""
    asked = {name: registry.items(name, recipe.held_out, SEED, held_out=True) for name in recipe.programs}
    kept, held, documents = _documents(recipe)
    index = overlap.Index()
    for name, items in asked.items():
        index.add(f"held-out {name}", [item.question for item in items])
    for task in recipe.evaluations:
        index.add(task, overlap.prompts(task))
    texts, dropped = [], []
    for name, text in kept:
        (dropped if index.of(text, recipe.overlap) else texts).append((name, text))
    conversations = {name: _items(name, count, recipe.seed, index) for name, count in recipe.programs.items()}
    sheet: dict[str, Any] = {
        "recipe": asdict(recipe),
        "texts": documents,
        "documents": {"trained": len(texts), "held_out": len(held), "left_out": len(dropped)},
        "characters": sum(len(text) for _, text in texts),
        "programs": {name: len(items) for name, items in conversations.items()},
        "overlap": index.report(),
    }
    with atomic_folder(output) as folder:
        _write(folder, recipe, texts, held, conversations, asked)
        (folder / "sheet.json").write_text(json.dumps(sheet, indent=1), "utf-8")
    print(json.dumps(sheet, indent=1))
    return sheet


def _documents(
    recipe: DataRecipe,
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[dict[str, Any]]]:
    """Documents to train on and held-out ones, each once, and their sources with licences."""
    kept: list[tuple[str, str]] = []
    held: list[tuple[str, str]] = []
    listed, seen = [], set[str]()
    for n, place in enumerate(recipe.texts):
        source = sources.Source(str(novels.folder()) if place == NOVELS else place)
        count = characters = repeated = other = 0
        for text in sources.documents(source):
            if text is None or HALF.search(text):
                other += 1
                continue
            if not text.strip():
                continue
            if text in seen:
                repeated += 1
                continue
            seen.add(text)
            side = held if count % HELD_OUT_DOCUMENT == HELD_OUT_DOCUMENT - 1 else kept
            side.append((f"{n}-{count:05}.txt", text))
            count, characters = count + 1, characters + len(text)
        licence = recipe.licences.get(place) or LICENCES.get(place) or "not stated"
        listed.append({"source": place, "licence": licence, "documents": count, "characters": characters,
                       "repeated": repeated, "not_text": other})  # fmt: skip
    if len(kept) > 1 and not held:  # too few for one of 40: the last
        held.append(kept.pop())
    if recipe.texts and not held:
        raise UserError(
            f"config.texts: {', '.join(recipe.texts)}: {'one document' if kept else 'no text'}: give two or "
            "more documents, of which one is held out"
        )
    return kept, held, [*listed, {"source": "programs", "licence": OWN}]


def _items(name: str, count: int, seed: int, index: overlap.Index) -> list[Item]:
    """A program's items to train on, none of which is an item of an evaluation."""
    drawn = registry.items(name, count, seed, held_out=False, repeats=REPEATS)
    return [item for item in drawn if not index.is_item(item.question)]


def _write(
    folder: Path,
    recipe: DataRecipe,
    texts: list[tuple[str, str]],
    held: list[tuple[str, str]],
    conversations: dict[str, list[Item]],
    asked: dict[str, list[Item]],
) -> None:
    random = Random(recipe.seed)
    (folder / "text").mkdir()
    (folder / "held-out" / "text").mkdir(parents=True)
    for name, text in texts:
        (folder / "text" / name).write_text(text, "utf-8")
    for name, text in held:
        (folder / "held-out" / "text" / name).write_text(text, "utf-8")
    rows = [_row(item, random) for items in conversations.values() for item in items]
    random.shuffle(rows)
    pieces = [{"text": piece} for piece in _pieces(texts, recipe.pieces, random)]
    mixed = [*rows, *pieces]
    random.shuffle(mixed)
    pairs = [
        _pair(item)
        for items in conversations.values()
        for item in items[: recipe.pairs]
        if not item.expression
    ]
    random.shuffle(pairs)
    spelled = "\n".join(" ".join(str(part) for part in _spoken(row)) for row in rows)
    (folder / "tokenizer.txt").write_text("\n".join([*(text for _, text in texts), spelled]) + "\n", "utf-8")
    (folder / TEMPLATE.name).write_bytes(TEMPLATE.read_bytes())
    kept = rows[: max(1, round(len(rows) * recipe.sft))]
    for name, lines in {"sft": kept, "mix": mixed, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(map(_line, lines)), "utf-8")
    for name, items in asked.items():
        lines = [{"prompt": item.question, "answer": item.answer} for item in items]
        (folder / "held-out" / f"{name}.jsonl").write_text("".join(map(_line, lines)), "utf-8")


def _row(item: Item, random: Random) -> dict[str, Any]:
    """A conversation; now and then with a tool that its answer does not take."""
    declared = item.expression is not None or random.random() < TOOLS_ELSEWHERE
    return {"messages": item.conversation()} | ({"tools": [calculator()]} if declared else {})


def calculator() -> dict[str, Any]:
    """The calculator as a conversation declares it."""
    from cutaway.agent.built_in_tools import built_in

    return built_in("calculator", Path(), lambda: None).declaration


def _pair(item: Item) -> dict[str, Any]:
    question = [{"role": "user", "content": item.question}]
    answers = {"chosen": item.answer, "rejected": item.wrong}
    return {"prompt": question} | {
        side: [{"role": "assistant", "content": text}] for side, text in answers.items()
    }


def _pieces(texts: list[tuple[str, str]], count: int, random: Random) -> Iterator[str]:
    """So many pieces of the documents, each whole sentences of some 600 characters."""
    found = []
    for _, text in texts:
        piece = ""
        for sentence in text.replace("\n", " ").split(". "):
            piece += f"{sentence}. "
            if len(piece) >= PIECE:
                found.append(piece.strip()[: 2 * PIECE])
                piece = ""
    random.shuffle(found)
    return iter(found[:count])


def _spoken(row: dict[str, Any]) -> Iterator[str]:
    """What a conversation's messages hold, calls as they are written."""
    for message in row["messages"]:
        if message["content"]:
            yield message["content"]
        for call in message.get("tool_calls", ()):
            function = call["function"]
            yield f'{{"name": "{function["name"]}", "arguments": {json.dumps(function["arguments"])}}}'


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
