"""Files of word vectors, neighbours, analogies, evaluation and projection, beside gensim and scipy."""

from pathlib import Path

import numpy as np
import pytest

from cutaway.embedding import evaluate, neighbours, projection
from cutaway.embedding.subwords import subwords
from cutaway.embedding.vectors import Vectors, Watched
from cutaway.errors import UserError
from cutaway.weights import vectors as files
from tests import inputs

gensim = pytest.importorskip("gensim.models")
# gensim leaves the file open that it reads without a header
leaves_open = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
WORDS = ["king", "queen", "größe", "日本", "a,b", "river"]


def some(words: list[str] = WORDS, dim: int = 7) -> Vectors:
    return Vectors(words, np.random.default_rng(0).standard_normal((len(words), dim)).astype(np.float32))


@pytest.mark.parametrize("name", ["a.vec", "a.bin", "a.txt", "a.safetensors"])
def test_what_is_written_comes_back(name: str, tmp_path: Path):
    files.write_vectors(tmp_path / name, some())
    back = files.read_vectors(tmp_path / name)
    assert list(back.words) == WORDS and np.array_equal(back.table, some().table)


@pytest.mark.parametrize("dim", [1, 300])
@pytest.mark.parametrize("name", ["a.vec", "a.bin", "a.txt"])
def test_any_width_is_recognized(name: str, dim: int, tmp_path: Path):
    files.write_vectors(tmp_path / name, some(dim=dim))
    assert np.array_equal(files.read_vectors(tmp_path / name).table, some(dim=dim).table)


@pytest.mark.parametrize("binary", [False, True])
def test_gensim_reads_ours_and_we_read_gensims(binary: bool, tmp_path: Path):
    ours, theirs = tmp_path / ("a.bin" if binary else "a.vec"), tmp_path / "theirs"
    files.write_vectors(ours, some())
    read = gensim.KeyedVectors.load_word2vec_format(str(ours), binary=binary)
    assert read.index_to_key == WORDS and np.array_equal(read.vectors, some().table)
    read.save_word2vec_format(str(theirs), binary=binary)
    back = files.read_vectors(theirs)
    assert list(back.words) == WORDS and np.array_equal(back.table, some().table)


@leaves_open
def test_gloves_text_is_gensims(tmp_path: Path):
    files.write_vectors(tmp_path / "a.txt", some())
    read = gensim.KeyedVectors.load_word2vec_format(str(tmp_path / "a.txt"), binary=False, no_header=True)
    assert read.index_to_key == WORDS and np.array_equal(read.vectors, some().table)


def test_fasttexts_grams_give_vectors_to_new_words(tmp_path: Path):
    words = ["where", "here", "there"]
    parts, _, _ = subwords(words, 3, 5, 1000)
    grams = np.random.default_rng(1).standard_normal((len(parts.used), 7)).astype(np.float32)
    files.write_vectors(tmp_path / "a.safetensors", Vectors(words, some(words).table, parts, grams))
    back = files.read_vectors(tmp_path / "a.safetensors")
    expected = grams[[row - 3 for row in parts.rows("heres")]].mean(axis=0)
    np.testing.assert_array_equal(back.vector("heres"), expected)
    assert [near.word for near in back.nearest("heres", 3)] and back.nearest("here", 2)[0].word != "here"
    with pytest.raises(UserError, match="no vector"):
        back.vector("zzz")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.vec", b"9999999 300\nking 1 2\n", "more than it holds"),
        ("a.vec", b"2 2\nking 1 2\n", "promises 2 words, and 1 follow"),
        ("a.vec", b"0 0\n", "there is nothing"),
        ("a.txt", b"king 1 2\nqueen 1\n", "a.txt:2: expected a word and 2 numbers"),
        ("a.txt", b"king 1 2\nqueen 1 x\n", "a.txt:2"),
        ("a.txt", b"king 1 nan\n", "not finite"),
        ("a.txt", b"king 1e999 1\n", "not finite"),
        ("a.txt", b"\xff 1 2\n", "not UTF-8"),
        ("a.txt", b"\n", "not word vectors"),
        ("a.txt", b"", "not word vectors"),
        ("a.txt", b"king 1 2\n" + b"x" * 100_000, "longer than a word"),
        ("a.bin", b"2 2\nking " + b"\0" * 8 + b"queen \0\0", "more than it holds|ends after 1"),
        ("a.bin", b"1 2\n" + b"k" * 5000 + b" " + b"\0" * 8, "more than 4096 bytes"),
        ("a.bin", b"1 2\nking " + b"\0" * 8 + b"\nmore", "goes on after"),
        ("a.bin", b"1 1\nking \xff\xff\xff\xff", "not finite"),
        ("a.safetensors", b"\0" * 7, "a.safetensors"),
    ],
)
def test_damaged_files_are_refused(name: str, data: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        files.read_vectors(tmp_path / name)


def test_every_cut_of_a_file_is_refused_or_shorter(tmp_path: Path):
    for name in ("a.vec", "a.bin", "a.safetensors"):
        files.write_vectors(tmp_path / name, some())
        whole = (tmp_path / name).read_bytes()
        for size in range(0, len(whole) - 8, 7):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(UserError):
                files.read_vectors(tmp_path / name)


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="a text file cannot hold"):
        files.write_vectors(tmp_path / "a.vec", some([" king", "b"]))
    files.write_vectors(tmp_path / "a.safetensors", some([" king", "b"]))
    assert list(files.read_vectors(tmp_path / "a.safetensors").words) == [" king", "b"]
    with pytest.raises(UserError, match="not finite"):
        files.write_vectors(tmp_path / "a.vec", Vectors(["a"], np.array([[np.inf]], np.float32)))
    assert not (tmp_path / "a.vec").exists()


# ---- the GloVe of Wikipedia and Gigaword -------------------------------------------------------------------


@leaves_open
def test_king_minus_man_plus_woman(tmp_path: Path):
    """Through the text format and back, and gensim's answer to the same."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = inputs.path("glove")
    columns = parquet.read_table(folder / "glove_6B_index.parquet").to_pydict()
    words = next(values for values in columns.values() if isinstance(values[0], str))
    rows = next((values for values in columns.values() if isinstance(values[0], int)), range(len(words)))
    table = np.load(folder / "glove_6B_50d_emb.npy")[np.asarray(rows)][:50_000].astype(np.float32)
    files.write_vectors(tmp_path / "glove.txt", Vectors(words[:50_000], table))
    read = files.read_vectors(tmp_path / "glove.txt")
    assert np.array_equal(read.table, table)
    ours = read.analogy("man", "king", "woman")
    assert ours[0].word == "queen"
    theirs = gensim.KeyedVectors.load_word2vec_format(str(tmp_path / "glove.txt"), no_header=True)
    answer = theirs.most_similar(positive=["king", "woman"], negative=["man"], topn=5)
    assert [near.word for near in ours] == [word for word, _ in answer]
    assert {near.word for near in read.nearest("frog", 10)} >= {"toad"}


# ---- neighbours --------------------------------------------------------------------------------------------


def test_exact_search_in_blocks_is_the_whole_tables(monkeypatch: pytest.MonkeyPatch):
    table = np.random.default_rng(2).standard_normal((1000, 12)).astype(np.float32)
    table[7] = 0
    table[500] = table[3]
    whole = neighbours.unit(table) @ neighbours.unit(table).T
    np.fill_diagonal(whole, -np.inf)
    for rows in (1, 7, 64, 5000):
        monkeypatch.setattr(neighbours, "ROWS", rows)
        ids, cosines = neighbours.nearest(table, np.array([3, 7, 999]), 9)
        expected = np.sort(whole[[3, 7, 999]], axis=1)[:, ::-1][:, :9]
        np.testing.assert_allclose(cosines, expected, atol=1e-6)
        assert ids[0, 0] == 500 and 7 not in ids[1]
    assert neighbours.nearest(table[:3], np.array([0]), 9)[0].shape == (1, 2)


def test_the_index_finds_nearly_all():
    pytest.importorskip("usearch.index")
    table = np.random.default_rng(3).standard_normal((3000, 16)).astype(np.float32)
    exact, _ = neighbours.search(table, table[:100], 10)
    found, cosines = neighbours.Index(table).search(table[:100], 10)
    again, _ = neighbours.Index(table).search(table[:100], 10)
    assert (found == again).all(), "the same table, the same index"
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    assert recall > 0.9 and (found[:, 0] == np.arange(100)).all()
    np.testing.assert_allclose(cosines[:, 0], 1, atol=1e-3)


# ---- evaluation --------------------------------------------------------------------------------------------


def evaluated() -> Vectors:
    words: dict[str, None] = {}
    for name in ("wordsim", "simlex", "analogy"):
        for line in evaluate.find(name).read_text(encoding="utf-8").splitlines():
            if not line.startswith(("#", ":")):
                words |= dict.fromkeys(word.lower() for word in line.split()[:4] if word[0].isalpha())
    return some(list(words)[::2], 8)


def test_scores_are_gensims(tmp_path: Path):
    vectors = evaluated()
    theirs = gensim.KeyedVectors(8)
    theirs.add_vectors(list(vectors.words), vectors.table)
    for name in ("wordsim", "simlex"):
        ours = evaluate.similarity(vectors, evaluate.find(name))
        (_, spearman, missing) = theirs.evaluate_word_pairs(str(evaluate.find(name)))
        assert ours.correlation == pytest.approx(spearman[0], abs=1e-6)
        assert 100 * (1 - ours.used / ours.pairs) == pytest.approx(missing, abs=1e-6)
    ours = evaluate.analogies(vectors, evaluate.find("analogy"))
    accuracy, sections = theirs.evaluate_word_analogies(str(evaluate.find("analogy")))
    assert ours.accuracy == pytest.approx(accuracy)
    for section in sections[:-1]:
        right, used = ours.sections.get(section["section"], (0, 0))
        assert (right, used - right) == (len(section["correct"]), len(section["incorrect"]))


def test_ranks_are_scipys():
    scipy = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(4)
    one, other = draw.integers(0, 9, 60).astype(float), draw.standard_normal(60)
    assert evaluate.spearman(one, other) == pytest.approx(scipy.spearmanr(one, other)[0])
    assert np.isnan(evaluate.spearman(np.ones(3), np.arange(3.0)))


def test_damaged_sets_are_refused(tmp_path: Path):
    path = tmp_path / "set"
    for data, message in ((b"a b\n", "set:1: expected"), (b"\xff\xfe", "not UTF-8")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            evaluate.similarity(some(), path)
        with pytest.raises(UserError):
            evaluate.analogies(some(), path)


# ---- projection and watching -------------------------------------------------------------------------------


def test_the_plane_is_that_of_the_singular_vectors():
    table = np.random.default_rng(5).standard_normal((400, 9)) * np.arange(1, 10)
    plane = projection.project(table.astype(np.float32))
    _, sizes, axes = np.linalg.svd(table - table.mean(0), full_matrices=False)
    expected = (table - table.mean(0)) @ axes[:2].T
    np.testing.assert_allclose(np.abs(plane.points), np.abs(expected), atol=1e-2)
    assert plane.kept == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum(), abs=1e-6)
    with pytest.raises(UserError, match="has no map"):
        projection.project(table[:2])


def test_a_row_is_watched_while_torch_trains_it():
    import torch

    table = torch.nn.Embedding(5, 3)
    goal = torch.tensor([0.0, 0.0, 1.0])
    seen = Watched({"a": 0}, list("abcde"), count=2)
    optimiser = torch.optim.SGD(table.parameters(), lr=0.5)
    for step in range(20):
        seen.record(step, table.weight)
        optimiser.zero_grad()
        ((table.weight[:2] - goal) ** 2).sum().backward()
        optimiser.step()
    moments = seen.moments["a"]
    assert moments[0].cosine == pytest.approx(1) and moments[-1].near[0].word == "b"
    assert moments[-1].near[0].cosine > 0.999 and moments[-1].norm == pytest.approx(1, abs=1e-2)
    assert "b 1.00" in str(seen)
