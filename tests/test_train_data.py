"""Text to rows: sources, cleaning, shards that are made once and vouched for, and an order that needs no
memory.
"""

import gzip
import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.data import filters, novels, packing, run_tokenizer, shards
from cutaway.data.sources import Source, documents
from cutaway.errors import OperationalError, UserError
from tests.training import Stream, folder_of_text


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_tokenizer.save(run_tokenizer.of_bytes(), tmp_path_factory.mktemp("words"))


# ---- sources -----------------------------------------------------------------------------------------------


def test_files_of_every_kind_are_the_same_documents(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    texts = ["one", "two\nlines", "drei é"]
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pyarrow.table({"body": texts, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert list(documents(Source(str(tmp_path / name), field="body"))) == texts


def test_a_dataset_saved_by_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "d"))
    assert list(documents(Source(str(tmp_path / "d")))) == ["a", "b"]


def test_a_folder_of_code(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.py").write_text("hidden")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "y.py").write_text("y = 1")
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "c.bin").write_bytes(b"\0\1")
    assert list(documents(Source(str(tmp_path)))) == ["x = 1", "y = 1", None]
    assert list(documents(Source(str(tmp_path), suffixes=(".py",)))) == ["x = 1", "y = 1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"text": "a"}\n{"text"', "line 2 is not JSON"), ('{"words": "a"}\n', "no text called 'text'")],
)
def test_a_broken_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        list(documents(Source(str(tmp_path / "a.jsonl"))))


def test_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(documents(Source(str(tmp_path / "none"))))


# ---- cleaning ----------------------------------------------------------------------------------------------


def test_what_is_dropped_is_counted_by_its_name() -> None:
    texts = ["good text here", "good text here", "", None, "x" * 50, "1 2 3 4", "a\na\na\na"]
    counts: Counter[str] = Counter()
    rules = filters.Filters(letters=0.6, word_length=20, repeated_lines=0.5)
    assert list(filters.kept(texts, rules, counts)) == ["good text here"]
    assert counts == Counter(
        read=7, kept=1, duplicate=1, empty=1, not_text=1, word_length=1, letters=1, repeated_lines=1
    )
    assert sum(counts.values()) - counts["read"] == counts["read"]  # nothing vanishes


def test_near_duplicates_are_found_and_different_texts_kept() -> None:
    pytest.importorskip("datasketch")
    text = " ".join(f"word{n}" for n in range(300))
    other = " ".join(f"term{n}" for n in range(300))
    counts: Counter[str] = Counter()
    kept = list(filters.kept([text, text + " end", other], filters.Filters(near=0.8), counts))
    assert kept == [text, other]
    assert counts["near_duplicate"] == 1


# ---- shards ------------------------------------------------------------------------------------------------


def test_shards_hold_every_document_between_its_borders(tmp_path: Path, vocabulary: Path) -> None:
    texts = list(documents(Source(str(folder_of_text(tmp_path / "t")))))
    source = Source(str(tmp_path / "t"))
    corpus = shards.prepare(source, vocabulary, tmp_path / "s", workers=1, shard_characters=1000)
    assert len(corpus.shards) == 3
    ids, begins = corpus.read(0, corpus.tokens)
    expected = [id for text in texts for id in (256, *str(text).encode())]
    assert ids.tolist() == expected
    assert (np.unique(begins) == np.flatnonzero(ids == 256)).all()
    middle, at = corpus.read(700, 1500)
    assert (middle == ids[700:1500]).all()
    assert (at == begins[700:1500]).all()


def test_a_killed_job_makes_again_only_what_is_missing(
    tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(str(folder_of_text(tmp_path / "t")))

    def prepare() -> shards.Corpus:
        return shards.prepare(source, vocabulary, tmp_path / "s", workers=1, shard_characters=1000)

    whole = prepare().read(0, 3000)[0]
    (tmp_path / "s" / shards.INDEX).unlink()
    (tmp_path / "s" / "00001.tokens").write_bytes(b"half")
    made: list[int] = []
    encode = shards.run_tokenizer.ends
    monkeypatch.setattr(shards.run_tokenizer, "ends", lambda words: made.append(1) or encode(words))
    assert (prepare().read(0, 3000)[0] == whole).all()
    assert len(made) == 1
    prepare()
    assert len(made) == 1  # the index vouches for all


def test_text_that_changed_is_tokenised_again(tmp_path: Path, vocabulary: Path) -> None:
    source = Source(str(folder_of_text(tmp_path / "t")))
    before = shards.prepare(source, vocabulary, tmp_path / "s", workers=1).tokens
    (tmp_path / "t" / "9.txt").write_text("more")
    assert shards.prepare(source, vocabulary, tmp_path / "s", workers=1).tokens == before + 5


def test_a_corrupt_shard_is_named(tmp_path: Path, vocabulary: Path) -> None:
    source = Source(str(folder_of_text(tmp_path / "t")))
    corpus = shards.prepare(source, vocabulary, tmp_path / "s", workers=1)
    file = tmp_path / "s" / "00000.tokens"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(OperationalError, match=r"00000\.tokens: is damaged"):
        corpus.read(0, 10)


def test_processes_make_the_same_shards(tmp_path: Path, vocabulary: Path) -> None:
    source = Source(str(folder_of_text(tmp_path / "t")))
    one = shards.prepare(source, vocabulary, tmp_path / "1", workers=1, shard_characters=2000)
    two = shards.prepare(source, vocabulary, tmp_path / "2", workers=2, shard_characters=2000)
    assert one.shards == two.shards


# ---- rows --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 700), seed=st.integers(0, 2**64 - 1))
def test_the_order_of_an_epoch_is_a_permutation(size: int, seed: int) -> None:
    assert sorted(packing.permuted(place, size, seed) for place in range(size)) == list(range(size))


def test_an_epoch_reads_every_row_once_and_the_next_cuts_elsewhere() -> None:
    stream = Stream()
    span = packing.Span(stream, 0, stream.tokens, 16, seed=3)
    epochs = [[span.read(n) for n in range(e * span.rows, (e + 1) * span.rows)] for e in (0, 1)]
    for epoch, rows in enumerate(epochs):
        read = np.sort(np.concatenate([row.ids[0] for row in rows]))
        shift = packing.number(3, "shift", epoch) % 16
        assert (read == np.sort(stream.ids[shift : shift + span.rows * 16])).all()
    assert any((a.ids != b.ids).any() for a, b in zip(*epochs, strict=True))


def test_rows_say_where_documents_begin() -> None:
    stream = Stream()
    row = packing.Span(stream, 0, stream.tokens, 40, seed=0).at(10)
    for n, place in enumerate(range(10, 50)):
        begin = max(10, stream.starts[np.searchsorted(stream.starts, place, side="right") - 1])
        assert row.pos[0, n] == place - begin
        assert row.targets[0, n] == stream.ids[place + 1]
    assert row.documents[0, 0] == 0
    assert (np.diff(row.documents[0]) == (row.pos[0, 1:] == 0)).all()


def test_a_mixture_has_its_shares_and_reads_each_source_in_its_order() -> None:
    streams = [Stream(seed=n) for n in range(3)]
    spans = [packing.Span(stream, 0, 4000, 16, seed=n) for n, stream in enumerate(streams)]
    mixture = packing.Mixture(spans, [5, 3, 2], seed=9)
    read = [mixture.read(n).ids.tobytes() for n in range(2 * packing.CYCLE)]
    quota = packing.apportioned([5, 3, 2], packing.CYCLE)
    for span, part in zip(spans, quota, strict=True):
        own = [span.read(n).ids.tobytes() for n in range(2 * part)]
        places = iter(read)
        assert all(any(row == place for place in places) for row in own)  # a subsequence, in order
    assert sum(quota) == packing.CYCLE
    assert quota == [512, 307, 205]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UserError, match="do not fill one row"):
        packing.Span(Stream(), 0, 20, 16, 0)


def test_a_package_longer_than_its_pin_is_not_read_to_its_end(tmp_path: Path, monkeypatch) -> None:
    class Endless(nullcontext):
        asked = 0

        def read(self, count: int) -> bytes:
            self.asked += count
            return bytes(count)

    answer = Endless()
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path))
    monkeypatch.setattr(novels.shutil, "which", lambda name: None)
    monkeypatch.setattr(novels.urllib.request, "urlopen", lambda *args, **options: answer)
    monkeypatch.setattr(Endless, "__enter__", lambda self: self)
    with pytest.raises(OperationalError, match="another checksum"):
        novels.folder()
    assert answer.asked == novels.BYTES + 1
