"""The examples of a fine-tuning run: read, tokenised, counted, kept in its folder. Imports no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cutaway.bounds import Bounded, Decay, Natural
from cutaway.data import layouts
from cutaway.data.conversations import Example, Item, Kind, Labelled, Pair, Reader, changed
from cutaway.data.example_packing import Packed, mismatched, size
from cutaway.data.packing import number, permuted
from cutaway.data.rows import files, rows
from cutaway.errors import UserError, plural
from cutaway.store.files import atomic_file
from cutaway.store.reading import arrays, parsed
from cutaway.train.folder import EXAMPLES, REPORT
from cutaway.train.objectives.common.objective import Objective
from cutaway.weights.checkpoint import Checkpoint

COUNTS = ("left_out_too_long", "cut", "without_trained_tokens", "without_end_token", "begin_token_twice")
COUNTS += (
    "duplicates",
    "shared_with_check",
    "same_answers",
    "liked",
    "texts_in_pieces",
    "plain_texts",
    "conversations",
)
ROUNDED = 64  # a row's length is a multiple of it
TEXT_CONTEXT = 512  # of rows that hold nothing but pieces of texts
Note = Callable[[str], None]


@dataclass(frozen=True)
class Examples(Bounded):
    """What is trained on. ``path``: a .jsonl, .json, .csv, .parquet or text file, or a folder of them.

    A row of training has ``context`` tokens; 0: as many as the longest example, at most the base's. An
    example that is longer is left out, or with ``too_long`` "cut" loses its end; a plain text is trained in
    pieces. ``validation_fraction`` of the examples, drawn by the run's seed, is not trained on. ``check`` is
    a file of examples for evaluation: what it shares with the training data is counted.
    """

    path: str
    context: Natural = 0
    validation_fraction: Decay = 0.05
    too_long: Literal["leave_out", "cut"] = "leave_out"
    check: str | None = None


@dataclass(frozen=True)
class DataReport:
    """What the examples are, before the first step. Counts are of examples unless they say tokens.

    An example is a pair where the objective reads pairs, and a labelled answer where it reads those.
    """

    rows: Kind
    context: int
    examples: int
    tokens: int
    trained_tokens: int
    left_out_too_long: int
    cut: int
    without_trained_tokens: int
    without_end_token: int
    begin_token_twice: int
    duplicates: int
    shared_with_check: int
    same_answers: int
    liked: int
    texts_in_pieces: int
    plain_texts: int
    conversations: int
    unread_columns: tuple[str, ...]
    unread_files: tuple[str, ...]

    def warnings(self) -> Iterator[str]:
        """What a user should look at."""
        if self.left_out_too_long:
            yield (f"{_are(self.left_out_too_long)} longer than data.context ({self.context:,}) and left out")
        if self.cut:
            yield f"{_are(self.cut)} longer than data.context and cut, so that the end is not learned"
        if self.texts_in_pieces:
            texts = plural(self.texts_in_pieces, "text is", "texts are")
            yield f"{texts} longer than data.context and trained in pieces"
        if self.plain_texts:
            yield (
                f"{_are(self.plain_texts)} a prompt and an answer as plain texts, which are joined "
                "as they are, without the model's chat template: for a conversation call the columns prompt "
                "and response (of pairs question, chosen and rejected)"
            )
        if self.without_trained_tokens:
            yield f"{_are(self.without_trained_tokens)} left out, with nothing to train on"
        if self.without_end_token:
            train = plural(self.without_end_token, "example trains", "examples train")
            yield f"{train} no end token after the last answer, so the model may not learn to stop"
        if self.begin_token_twice:
            begin = plural(self.begin_token_twice, "example begins", "examples begin")
            yield f"{begin} with two begin tokens"
        if self.duplicates:
            yield f"{_are(self.duplicates)} the same as an earlier one"
        if self.shared_with_check:
            yield f"{_are(self.shared_with_check)} in the evaluation's file too"
        if self.same_answers:
            pairs = plural(self.same_answers, "pair is", "pairs are")
            yield f"{pairs} left out, whose answers are the same"
        if self.rows == "labelled" and self.liked in (0, self.examples):
            yield "all answers have the same label, so there is nothing to compare"
        if self.unread_columns:
            yield f"columns that are not read: {', '.join(self.unread_columns)}"
        if self.unread_files:
            yield f"files that are not for training and not read: {', '.join(self.unread_files)}"


def _are(count: int) -> str:
    return plural(count, "example is", "examples are")


class Prepared(NamedTuple):
    """Every example as ids, and what was found."""

    items: list[Item]
    report: DataReport


class _Read(NamedTuple):
    """An example before it is known how long a row is."""

    item: Item
    key: bytes
    is_text: bool  # all of it is trained, so that pieces of it are as good


def prepare(data: Examples, objective: Objective, checkpoint: Checkpoint, note: Note) -> Prepared:
    """Every example as ids, and what was found. Raises UserError if none can be trained on."""
    read, kind, most = reader(checkpoint), objective.rows, checkpoint.config.context
    counts: Counter[str] = Counter()
    unread: set[str] = set()
    checked = _digests(read, kind, data.check) if data.check else set()
    found: list[_Read] = []
    for where, row in rows(data.path):
        plain, used = layouts.standard(kind, row, where)
        unread |= row.keys() - used
        counts["plain_texts"] += checkpoint.chat_template is not None and _is_plain(plain)
        counts["conversations"] += "text" not in plain and not _is_plain(plain)
        for item in read.items(kind, plain, where):
            key = _digest(item)  # before the item is cut
            if objective.reads_end:
                item = changed(item, _reading_its_end)
            found.append(_Read(item, key, "text" in plain))
            if len(found) % 1000 == 0:
                note(f"{len(found):,} examples tokenised")
    if not found:
        raise UserError(f"{data.path}: holds no example")
    context = data.context or _context(found, most)
    kept = _kept(found, context, data.too_long, read, checked, counts)
    if not kept:
        raise UserError(
            f"{data.path}: no example can be trained on: {counts['left_out_too_long']:,} longer than "
            f"data.context ({context:,}), {counts['without_trained_tokens']:,} with nothing that the "
            f"assistant wrote, {plural(counts['same_answers'], 'pair')} of the same answer"
        )
    documents = [example for item in kept for example in item.documents]
    others = files(data.path)[1]
    report = DataReport(
        rows=kind,
        context=context,
        examples=len(kept),
        tokens=sum(len(example.ids) for example in documents),
        trained_tokens=sum(int(example.trained.sum()) for example in documents),
        **{name: counts[name] for name in COUNTS},
        unread_columns=tuple(sorted(map(str, unread))),
        unread_files=tuple(str(file.relative_to(data.path)) for file in others),
    )
    return Prepared(kept, report)


def _kept(
    found: Sequence[_Read],
    context: int,
    too_long: str,
    read: Reader,
    checked: set[bytes],
    counts: Counter[str],
) -> list[Item]:
    """The examples that fit a row and have something to train on; what is left out is counted."""
    seen: set[bytes] = set()
    kept: list[Item] = []
    for item, key, is_text in found:
        pieces = [item]
        if size(item) > context:
            if is_text and isinstance(item, Example):
                counts["texts_in_pieces"] += 1
                pieces = _pieces(item, context)
            elif too_long == "leave_out":
                counts["left_out_too_long"] += 1
                continue
            else:
                counts["cut"] += 1
                limit = context // len(item.documents) + 1
                pieces = [changed(item, lambda example, limit=limit: example.cut(limit))]
        if not all(example.trained[1:].any() for piece in pieces for example in piece.documents):
            counts["without_trained_tokens"] += 1
            continue
        if isinstance(item, Pair) and np.array_equal(item.chosen.ids, item.rejected.ids):
            counts["same_answers"] += 1
            continue
        for name, is_so in _problems(pieces[0], pieces[-1], read).items():
            counts[name] += is_so
        counts["duplicates"] += key in seen
        counts["shared_with_check"] += key in checked
        counts["liked"] += isinstance(item, Labelled) and item.label
        seen.add(key)
        kept += pieces
    return kept


def _context(found: Sequence[_Read], most: int) -> int:
    """A row's length: the longest example's, rounded up; texts are cut to pieces and ask for less."""
    own = [size(each.item) for each in found if not each.is_text]
    longest = max(own) if own else min(TEXT_CONTEXT, max(size(each.item) for each in found))
    return min(most, longest + -longest % ROUNDED)


def _pieces(example: Example, context: int) -> list[Example]:
    """A text in pieces of a row's length; the last id of each begins the next, so that none is a target
    twice.
    """
    starts = range(0, len(example.ids) - 1, context)
    stops = [start + context + 1 for start in starts]
    return [
        Example(example.ids[start:stop], example.trained[start:stop])
        for start, stop in zip(starts, stops, strict=True)
    ]


def _is_plain(row: dict[str, Any]) -> bool:
    """Whether a row is a prompt and an answer as texts."""
    answer = row.get("completion", row.get("chosen"))
    return isinstance(row.get("prompt"), str) and isinstance(answer, str)


def _problems(first: Item, last: Item, read: Reader) -> dict[str, bool]:
    """Which faults of tokens an item has, whose first and last pieces these are."""
    ends = [int(example.ids[np.flatnonzero(example.trained)[-1]]) for example in last.documents]
    begins = [example.ids[:2].tolist() for example in first.documents]
    return {
        "without_end_token": not read.ends.issuperset(ends),
        "begin_token_twice": [read.tokenizer.bos] * 2 in begins,
    }


def _reading_its_end(example: Example) -> Example:
    """The example up to its end token, which is read too: behind it is a token that is no target."""
    ended = example.to_end
    return Example(np.append(ended.ids, ended.ids[-1]), np.append(ended.trained, False))


def reader(checkpoint: Checkpoint) -> Reader:
    """Rows of data as this model reads them."""
    ends = checkpoint.defaults.get("eos_ids", ())
    return Reader(checkpoint.tokenizer, checkpoint.chat_template, ends if isinstance(ends, tuple) else ())


def _digest(item: Item) -> bytes:
    return b"/".join(example.ids.tobytes() for example in item.documents)


def _digests(read: Reader, kind: Kind, path: str) -> set[bytes]:
    return {_digest(item) for where, row in rows(path) for item in read.items(kind, row, where)}


# ---- rows of training --------------------------------------------------------------------------------------


def parted(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """What is trained on, and what is held out for validation."""
    order = [permuted(n, len(items), number(seed, "held out")) for n in range(len(items))]
    held = int(len(items) * fraction)
    return [items[n] for n in order[held:]], [items[n] for n in order[:held]]


def packed(items: Sequence[Item], context: int, seed: int) -> Packed:
    """Rows of these items; labelled answers get their mismatched ones."""
    labelled = [item for item in items if isinstance(item, Labelled)]
    return Packed.of(mismatched(labelled, context) if labelled else items, context, seed)


# ---- kept in a run's folder --------------------------------------------------------------------------------


def store(folder: Path, prepared: Prepared, source: dict[str, Any]) -> None:
    """Ids, mask and ends of all documents in one file, and each item's label or margin; what they are of."""
    items, report = prepared
    documents = [example for item in items for example in item.documents]
    numbers = [
        item.label if isinstance(item, Labelled) else item.margin if isinstance(item, Pair) else 0
        for item in items
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / EXAMPLES) as out:
        np.savez(
            out,
            ids=np.concatenate([example.ids for example in documents]),
            trained=np.concatenate([example.trained for example in documents]),
            ends=np.cumsum([len(example.ids) for example in documents]),
            numbers=np.array(numbers, np.float32),
        )
    with atomic_file(folder / REPORT) as out:
        out.write(json.dumps(asdict(report) | {"source": source}, indent=1).encode())


def source(data: Examples, objective: Objective, base: str) -> dict[str, Any]:
    """What decides the examples of a run: its entries, and sizes and times of its files."""
    made = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files(data.path)[0]]
    wanted = asdict(data) | {"rows": objective.rows, "reads_end": objective.reads_end, "base": base}
    return json.loads(json.dumps(wanted | {"files": made}))


def kept_source(folder: Path) -> dict[str, Any] | None:
    """What the examples of a folder are of; None where it holds none."""
    whole = (folder / EXAMPLES).is_file() and (folder / REPORT).is_file()
    return report(folder).get("source") if whole else None


def report(folder: Path) -> dict[str, Any]:
    """What `store` wrote of the examples."""
    return parsed(folder / REPORT)


def stored(folder: Path, kind: Kind) -> list[Item]:
    """The items that `store` wrote."""
    path = folder / EXAMPLES
    found = arrays(path, {"ids": "iu", "trained": "b", "ends": "iu", "numbers": "f"})
    ends, numbers = found["ends"], found["numbers"].tolist()
    counts = len(found["ids"]), len(found["trained"]), int(ends[-1]) if len(ends) else -1
    each = 2 if kind == "pairs" else 1
    if len(set(counts)) > 1 or (np.diff(ends, prepend=0) < 0).any() or len(ends) != each * len(numbers):
        raise UserError(f"{path}: its ids, mask and ends do not fit together: delete it")
    parts = zip(np.split(found["ids"], ends[:-1]), np.split(found["trained"], ends[:-1]), strict=True)
    documents = [Example(ids, trained) for ids, trained in parts]
    if kind == "pairs":
        return [Pair(*pair) for pair in zip(documents[::2], documents[1::2], numbers, strict=True)]
    if kind == "labelled":
        return [Labelled(answer, bool(label)) for answer, label in zip(documents, numbers, strict=True)]
    return [*documents]
