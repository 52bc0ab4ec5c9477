"""Words counted: by hand-written scanners and by the reference alike, in any order, in shards, from anywhere
on; and what happens past the limit, at Ctrl-C and with damaged files.
"""

import json
import os
import random
import signal
import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway import native
from cutaway.errors import OperationalError, UserError
from cutaway.tokenizer import word_counts as counting
from cutaway.tokenizer.word_counter import NativeWordCounter, WordCounter, word_counter
from cutaway.tokenizer.word_counts import WordCounts
from cutaway.tokenizer.word_split import METASPACE, splitter

TEXT = (
    "The naïve café's 1,234 owners DON'T mind...\n\n  They'll say: «Привет, мир!» 你好世界 🦜🏳️‍🌈\r\n"
    "\tdef f(x):\n"
    "\n\n\n    return x**2  # \u2028 \u0301\u0301 ﬁn\x00\x01\n/path/to a.b;\n/c \u00a0\u3000end   \n"
    + "x" * 40
    + "\n"
)
NAMED = ("cl100k", "gpt2", "o200k", "llama3", "qwen2", "tekken", "deepseek-v3", "smollm", "gemma4")
CUSTOM = r"\w+|[^\w\s]+|\s+"


def by_reference(text: str, pattern: str, special: tuple[str, ...] = ()) -> dict[str, int]:
    return dict(Counter(splitter(pattern, special).words(text)))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BLOCK", 1 << 10)


def shuffled(seed: int, size: int = 400) -> str:
    generator = random.Random(seed)
    parts = TEXT.split(" ")
    return " ".join(generator.choice(parts) for _ in range(size))


@pytest.mark.parametrize("pattern", [*NAMED, CUSTOM, METASPACE])
def test_the_words_of_a_file_are_those_of_its_text(pattern: str, tmp_path: Path, small_blocks: None) -> None:
    """A file is read in blocks; nothing changes where they meet, nor with the number of threads."""
    text = shuffled(1, 2000)
    file = tmp_path / "text"
    file.write_text(text, encoding="utf-8", newline="")
    want = by_reference(text, pattern)
    for threads in (1, 3):
        counts = WordCounts.of(file, pattern, threads=threads)
        assert counts.words == want
        assert counts.bytes == len(text.encode())
        assert (counts.documents, counts.undercount, counts.total()) == (1, 0, sum(want.values()))


def test_the_blocks_are_many_and_small(tmp_path: Path, small_blocks: None) -> None:
    file = tmp_path / "text"
    file.write_text(shuffled(2, 3000), encoding="utf-8", newline="")
    blocks = list(counting._blocks(file, 0, word_counter(splitter("gpt2")), "refuse"))
    assert len(blocks) > 20
    assert b"".join(text for text, _ in blocks) == file.read_bytes()


@pytest.mark.skipif(native.unavailable_reason() is not None, reason="the reference alone is there")
@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.sampled_from(NAMED))
def test_native_counts_are_the_references(text: str, pattern: str) -> None:
    split = splitter(pattern)
    ours, reference = word_counter(split), WordCounter(split)
    assert isinstance(ours, NativeWordCounter)
    for _ in range(2):
        ours.add(text.encode(), 2)
        reference.add(text.encode())
    assert sorted(ours.words().items()) == sorted(reference.words().items())
    for limit in (20, 3):
        assert ours.prune(limit) == reference.prune(limit)
        assert sorted(ours.words().items()) == sorted(reference.words().items())


@pytest.mark.skipif(native.unavailable_reason() is not None, reason="the reference alone is there")
def test_long_texts_are_the_same_on_every_number_of_threads() -> None:
    text = shuffled(3, 80_000).encode()
    assert len(text) > 4 << 17
    found = []
    for threads in (1, 2, 5):
        table = word_counter(splitter("cl100k"))
        table.add(text, threads)
        found.append(sorted(table.words().items()))
    assert found[0] == found[1] == found[2]
    assert found[0] == sorted((word.encode(), n) for word, n in by_reference(text.decode(), "cl100k").items())


def test_words_of_every_length_are_kept_apart() -> None:
    words = ["a" * length + end for length in range(40) for end in ("", "b", "\0", "\0\0") if length or end]
    counts = WordCounts("o200k")
    for word in words:
        counts.add(word)
    for word in words:
        counts.add(word)
    assert sum(counts.words.values()) == 2 * sum(len(splitter("o200k").words(word)) for word in words)
    assert counts.words == {
        word: 2 * n for word, n in Counter(w for text in words for w in splitter("o200k").words(text)).items()
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet="ab <|end|>\n", max_size=40), max_size=6), st.randoms())
def test_shards_add_up_in_any_order(texts: list[str], generator: random.Random) -> None:
    special = ("<|end|>",)
    whole = WordCounts.of(texts, "cl100k", special)
    shards = [WordCounts.of([text], "cl100k", special) for text in texts] or [WordCounts("cl100k", special)]
    generator.shuffle(shards)
    merged = shards[0].merge(*shards[1:])
    assert merged.words == whole.words
    assert (merged.documents, merged.bytes) == (whole.documents, whole.bytes)
    assert not any("<|end|>" in word for word in whole.words)


def test_special_tokens_are_no_text_to_learn_from() -> None:
    counts = WordCounts.of("one<|end|>two<|end|> three", special=["<|end|>"])
    assert counts.words == {"one": 1, "two": 1, " three": 1}


def test_no_block_ends_in_a_special_token(tmp_path: Path, small_blocks: None) -> None:
    """Between a letter and a space a text can be split, but not where a special token is."""
    file = tmp_path / "text"
    file.write_text("one two, six three\n" * 2000)
    special = ("e two",)
    assert WordCounts.of(file, "cl100k", special).words == by_reference(file.read_text(), "cl100k", special)


def test_metaspace_counts_lines() -> None:
    assert WordCounts.of(" a  b\nc\n", METASPACE).words == {"▁a": 1, "▁b": 1, "▁c": 1}


def test_counts_round_trip_and_equal_counts_are_equal_files(tmp_path: Path) -> None:
    texts = [shuffled(seed, 50) for seed in range(4)]
    one = WordCounts.of(texts, "gpt2", ["<s>"]).save(tmp_path / "one")
    two = WordCounts.of(texts[::-1], "gpt2", ["<s>"], threads=3).save(tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    back = WordCounts.load(one)
    assert back.words == WordCounts.of(texts, "gpt2", ["<s>"]).words
    assert (back.pattern, back.special, back.documents) == ("gpt2", ("<s>",), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_past_the_limit_no_count_is_further_off_than_it_says() -> None:
    generator = random.Random(5)
    words = [f" w{int(generator.paretovariate(0.6)) % 5000}x" for _ in range(20_000)]
    texts = ["".join(words[i : i + 100]) for i in range(0, len(words), 100)]
    pattern = r" w\d+x"
    exact, bounded = WordCounts.of(texts, pattern), WordCounts.of(texts, pattern, limit=300)
    assert exact.undercount == 0 and len(exact) > 600
    assert len(bounded) <= 300 and bounded.undercount > 0
    for word, count in exact.words.items():
        assert count - bounded.undercount <= bounded.words.get(word, 0) <= count
    halves = WordCounts.of(texts[:100], pattern, limit=300).merge(
        WordCounts.of(texts[100:], pattern, limit=300)
    )
    for word, count in exact.words.items():
        assert count - halves.undercount <= halves.words.get(word, 0) <= count


class Stop(Exception):
    pass


def test_counting_goes_on_where_it_stopped(tmp_path: Path, small_blocks: None) -> None:
    files = [tmp_path / f"{i}.txt" for i in range(3)]
    for i, file in enumerate(files):
        file.write_text(shuffled(i, 700), encoding="utf-8", newline="")
    whole = WordCounts.of(files, "gpt2")
    stops = random.Random(7)

    def stopping(doing: str, done: int, total: int | None) -> None:
        if stops.random() < 0.3:
            raise Stop

    kept, tries = tmp_path / "kept", 0
    while True:
        try:
            again = WordCounts.of(files, "gpt2", resume=kept, progress=stopping)
            break
        except Stop:
            tries += 1
    assert tries > 3
    assert again.words == whole.words == WordCounts.load(kept).words
    assert (again.bytes, again.documents) == (whole.bytes, whole.documents)
    assert WordCounts.of(files, "gpt2", resume=kept).words == whole.words  # nothing is counted twice
    with pytest.raises(UserError, match="another pattern"):
        WordCounts.of(files, "cl100k", resume=kept)
    files[0].write_text("other", encoding="utf-8")
    with pytest.raises(UserError, match="has changed"):
        WordCounts.of(files, "gpt2", resume=kept)


def test_ctrl_c_waits_for_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = WordCounts(CUSTOM)
    add = WordCounter.add

    def interrupted(self: WordCounter, text: bytes, threads: int | None = None) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        add(self, text, threads)

    monkeypatch.setattr(WordCounter, "add", interrupted)
    # Tests that run in the background are started with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            counts.add("a b")
    finally:
        signal.signal(signal.SIGINT, before)
    assert counts.words == {"a": 1, " ": 1, "b": 1}
    assert counts.documents == 1


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "bad"
    file.write_bytes(b"abc \xff def \xe4\xb8")
    with pytest.raises(UserError, match=r"not UTF-8 at byte 4 \(0xFF\)"):
        WordCounts.of(file)
    want = by_reference("abc \ufffd def \ufffd", "cl100k")
    assert WordCounts.of(file, invalid="replace").words == want
    with pytest.raises(UserError, match="surrogate"):
        WordCounts.of("a\ud800")


@pytest.mark.skipif(native.unavailable_reason() is not None, reason="the reference alone is there")
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24), st.text(max_size=9))
def test_native_finds_the_first_bad_byte(data: bytes, text: str) -> None:
    for sample in (data, text.encode() + data, (text.encode() + b"\xed\xa0\x80")):
        try:
            sample.decode()
            want = len(sample)
        except UnicodeDecodeError as problem:
            want = problem.start
        assert counting.native_count.utf8_until(sample) == want


def test_empty_files_and_texts(tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.touch()
    counts = WordCounts.of([file, "", "\0"])
    assert counts.words == {"\0": 1}
    assert counts.documents == 2 + len(list(tmp_path.iterdir())) - 1


def test_mistakes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(UserError, match="pathlib"):
        WordCounts.of(["a.txt"])
    with pytest.raises(UserError, match="no pattern named"):
        WordCounts.of("x", "cl1000k")
    with pytest.raises(UserError, match="cannot be used"):
        WordCounts.of("x", "(((")
    with pytest.raises(UserError, match="texts"):
        WordCounts.of(iter([3]))  # type: ignore[list-item]
    with pytest.raises(UserError, match="do not add"):
        WordCounts("gpt2").merge(WordCounts("cl100k"))
    with pytest.raises(UserError, match="distinct words"):
        WordCounts(limit=0)
    with pytest.raises(UserError, match="twice"):
        WordCounts(special=("a", "a"))
    with pytest.raises(OperationalError, match="cannot be read"):
        WordCounts.of(tmp_path / "missing")


def test_damaged_counts_are_refused(tmp_path: Path) -> None:
    good = WordCounts.of([shuffled(1, 30)], "gpt2").save(tmp_path / "good").read_bytes()
    bad = tmp_path / "bad"
    generator = random.Random(11)
    for _ in range(300):
        data = bytearray(good)
        if generator.random() < 0.3:
            data = data[: generator.randrange(len(data))]
        for _ in range(generator.randrange(1, 4)):
            if data:
                data[generator.randrange(len(data))] = generator.randrange(256)
        bad.write_bytes(bytes(data))
        try:
            WordCounts.load(bad)  # a changed count is a count
        except UserError:
            continue
    for header in ({"version": 2}, [], {"words": -1}):
        encoded = json.dumps(header).encode()
        bad.write_bytes(counting.MAGIC + struct.pack("<Q", len(encoded)) + encoded)
        with pytest.raises(UserError):
            WordCounts.load(bad)
