"""`cutaway tokenizer train` and `count-words`: a vocabulary from a corpus, or from counts that add up."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.options import Flag, Force, Json
from cutaway.commands.tokenizer.show import display
from cutaway.data import run_tokenizer
from cutaway.errors import UserError
from cutaway.store.files import check_file, write_file
from cutaway.tokenizer import Tokenizer, bpe, bpe_train, spec_files, training
from cutaway.tokenizer.word_counts import LIMIT, WordCounts

MERGES, REPLAYED = 12, 20_000  # merges that are shown; distinct words in which their pairs are counted
Kind = Literal["bpe", "unigram", "wordpiece"]
Files = Annotated[
    tuple[Path, ...],
    Parameter(
        help="Texts in UTF-8, or counts that `count-words` wrote; a folder: the texts in and below it."
    ),
]
Pattern = Annotated[
    str | None,
    Parameter(help="How text is cut into words: a name (cl100k, gpt2, qwen2, metaspace...) or a regex."),
]
Special = Annotated[list[str] | None, Parameter(help="A token that is no text to learn from.", negative=())]
Limit = Annotated[int, Parameter(help="The most distinct words kept while counting.")]
Invalid = Annotated[Literal["refuse", "replace"], Parameter(help="What to do with bytes that are not UTF-8.")]


def train(
    files: Files,
    /,
    *,
    output: Path = Path("tokenizer.json"),
    size: int = 32768,
    kind: Kind = "bpe",
    pattern: Pattern = None,
    special: Special = None,
    end_of_text: str | None = None,
    level: Literal["byte", "character"] = "byte",
    min_frequency: int | None = None,
    byte_fallback: bool = True,
    chat_template: Path | None = None,
    limit: Limit = LIMIT,
    invalid: Invalid = "refuse",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Learn a vocabulary from texts, or from the counts of their words, and write it as tokenizer.json.

    **Examples:**

    cutaway tokenizer train corpus.txt --size 32768 --special "<|end|>" --output tokenizer.json

    cutaway tokenizer train novels/ --size 8000 --kind unigram

    cutaway tokenizer train shard-*.counts --size 65536

    cutaway tokenizer train poem.txt --size 60 --kind unigram --no-byte-fallback

    :param output: The tokenizer.json to write.
    :param size: How many tokens, special ones included.
    :param end_of_text: The token that ends a text ("" for none): usually <|endoftext|>.
    :param level: What BPE starts from; rare characters become bytes.
    :param min_frequency: How often a pair or a piece must occur: 1, for unigram 2.
    :param byte_fallback: Of unigram: spell unknown characters in 256 byte tokens; else all are one token.
    :param chat_template: A Jinja template to keep beside it, by which a model with this tokenizer writes
        conversations; its control tokens are given with --special.
    """
    files = tuple(console.text_files(files))
    check_file(spec_files.target_of(output), force)
    template = None if chat_template is None else console.read_text(chat_template)
    if kind == "bpe" and level == "byte" and size <= len(bpe.BYTES):
        raise UserError(f"--size is {size}: the {len(bpe.BYTES)} bytes are tokens of their own: ask for more")
    if kind != "unigram" and not byte_fallback:
        raise UserError("--no-byte-fallback is of --kind unigram: leave one of them out")
    with console.watched() as bar:
        counted = _counted(files, kind, pattern, special, limit, invalid, bar)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rules: dict[str, Any] = {"level": level} if kind == "bpe" else {}
            rules |= {} if byte_fallback else {"byte_fallback": False}
            rules |= {} if min_frequency is None else {"min_frequency": min_frequency}
            end = training.usual_end(kind, counted.special) if end_of_text is None else end_of_text or None
            tok = Tokenizer.train(counted, size, kind=kind, end_of_text=end, progress=bar, **rules)
    for warning in caught:
        console.note(f"Note: {warning.message}.")
    path = tok.save(output, force=force)
    if template is not None:
        write_file(path.parent / run_tokenizer.TEMPLATE, template)
    _note_undercount(counted)
    if as_json:
        console.print_json({"path": str(path), "kind": kind, "tokens": len(tok)} | _summary(counted))
        return
    console.say(f"{path}: {len(tok):,} tokens from {counted.total():,} words, {len(counted):,} distinct")
    if kind == "bpe" and tok.spec.merges:
        _show_merges(tok, counted)


def _show_merges(tok: Tokenizer, counted: WordCounts) -> None:
    """Print the first merges in their order, of a small corpus each with how often its pair occurred."""
    merges = tok.spec.merges or ()
    pairs = list(merges[:MERGES])
    counts = (
        bpe_train.pair_counts(counted.words, pairs, tok.spec.bytewise)
        if len(counted) <= REPLAYED
        else [None] * len(pairs)
    )
    shown = [
        f"{display(tok, left)}+{display(tok, right)}" + ("" if count is None else f" {count:,}×")
        for (left, right), count in zip(pairs, counts, strict=True)
    ]
    more = len(merges) - len(shown)
    rest = f", and {more:,} more" if more else ""
    console.say(f"merges, in order: {', '.join(shown)}{rest}", indent=2)


def count_words(
    files: Files,
    /,
    *,
    output: Annotated[Path, Parameter(help="The counts to write; if there, counting goes on from them.")],
    pattern: Pattern = None,
    special: Special = None,
    limit: Limit = LIMIT,
    invalid: Invalid = "refuse",
    ray: Flag = False,
    as_json: Json = False,
) -> None:
    """Count the distinct words of texts, which is all that training needs; counts add up.

    The counts of shards, counted anywhere, are given to `cutaway tokenizer train` together. Stopped, also by
    Ctrl-C, the same command goes on where it was.

    **Examples:**

    cutaway tokenizer count-words shard-1.txt --output shard-1.counts

    cutaway tokenizer count-words s3-mount/*.txt --output corpus.counts --ray

    :param ray: Count on a Ray cluster, or on a local Ray where there is none.
    """
    files = tuple(console.text_files(files))
    check_file(output, force=True)  # what is there is gone on from
    if ray:
        from cutaway.tokenizer import ray_counts

        counted = ray_counts.of(files, pattern or "cl100k", special or (), limit=limit, invalid=invalid)
        counted.save(output)
    else:
        with console.watched() as bar:
            counted = WordCounts.of(
                files,
                pattern or "cl100k",
                special or (),
                limit=limit,
                invalid=invalid,
                resume=output,
                progress=bar,
            )
    _note_undercount(counted)
    if as_json:
        console.print_json({"path": str(output)} | _summary(counted))
        return
    console.say(
        f"{output}: {counted.total():,} words, {len(counted):,} distinct, in {console.size(counted.bytes)}"
    )


def _counted(
    files: tuple[Path, ...],
    kind: Kind,
    pattern: str | None,
    special: Iterable[str] | None,
    limit: int,
    invalid: str,
    progress: Callable[[str, int, int | None], None],
) -> WordCounts:
    """The words of files, or the sum of the counts in them."""
    if not files:
        raise UserError("there is nothing to train on: give files")
    are_counts = [WordCounts.is_file(file) for file in files]
    if not any(are_counts):
        return WordCounts.of(
            files,
            pattern or training.kind(kind)[1],
            special or (),
            limit=limit,
            invalid=invalid,
            progress=progress,
        )
    if not all(are_counts):
        raise UserError(f"{files[are_counts.index(False)]} is text among counts: count it first")
    if pattern is not None or special is not None:
        raise UserError("counts bring their own pattern and special tokens: drop --pattern and --special")
    first, *others = (WordCounts.load(file) for file in files)
    return first.merge(*others)


def _note_undercount(counted: WordCounts) -> None:
    if counted.undercount:
        console.note(
            f"Note: there were more distinct words than {counted.limit:,}: rare ones were dropped, and a "
            f"count can be {counted.undercount:,} too low."
        )


def _summary(counted: WordCounts) -> dict[str, int | str]:
    return {
        "pattern": counted.pattern,
        "words": counted.total(),
        "distinct": len(counted),
        "documents": counted.documents,
        "bytes": counted.bytes,
        "undercount": counted.undercount,
    }
