"""Training word vectors: the native core against the equations, those against autograd, the parts."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway import native
from cutaway.embedding import corpus, glove, huffman, sampling, subwords, word2vec
from cutaway.embedding.corpus import Vocabulary
from cutaway.embedding.sampling import Random
from cutaway.errors import OperationalError, UserError
from cutaway.native.embedding import Counter, Dictionary, Draws, Learner, table

built = pytest.mark.skipif(native.unavailable_reason() is not None, reason="the native core is not built")


def text(words: int, seed: int = 0, vocabulary: int = 300) -> str:
    """Words by Zipf's law in lines of up to forty, and a few beyond ASCII."""
    draw = np.random.default_rng(seed)
    ids = np.minimum(draw.zipf(1.3, words), vocabulary)
    spelt = [f"w{id}" if id % 7 else f"wört{id}" for id in ids.tolist()]
    ends = draw.random(words) < 1 / 20
    return "".join(word + ("\n" if end else " ") for word, end in zip(spelt, ends, strict=True))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(text(1500), encoding="utf-8")
    return path


def reference(path: Path, known: Vocabulary, settings: word2vec.Word2VecSettings) -> word2vec.Model:
    model = word2vec.begin(known, settings)
    done = 0
    with corpus.opened(path) as file:
        for epoch in range(settings.epochs):
            for piece in range(corpus.pieces(file)):
                done = word2vec.learn(model, file, epoch, piece, done)
    assert done == model.total()
    return model


@built
@pytest.mark.parametrize("negative", [5, 0])
@pytest.mark.parametrize("kind", ["skipgram", "cbow", "fasttext"])
def test_an_epoch_on_one_thread_is_the_references(kind: word2vec.Kind, negative: int, file: Path):
    known = corpus.vocabulary(file, 2)
    settings = word2vec.Word2VecSettings(
        kind=kind, dim=21, negative=negative, epochs=1, sample=1e-2, learning_rate=0.1
    )
    ours, theirs = word2vec.train(file, known, settings, threads=1), reference(file, known, settings)
    assert np.abs(theirs.output).max() > 0.05
    np.testing.assert_allclose(
        ours.input, theirs.input, atol=2e-5
    )  # one rounding apart, and grown over 1,500 words
    np.testing.assert_allclose(
        ours.output, theirs.output, atol=2e-5
    )  # one rounding apart, and grown over 1,500 words


@built
@pytest.mark.parametrize(("window", "negative", "dim"), [(1, 1, 1), (2, 13, 16), (9, 7, 33), (20, 2, 100)])
def test_other_shapes_are_the_references_too(window: int, negative: int, dim: int, file: Path):
    known = corpus.vocabulary(file, 3)
    settings = word2vec.Word2VecSettings(dim=dim, window=window, negative=negative, epochs=1, sample=0)
    ours, theirs = word2vec.train(file, known, settings, threads=1), reference(file, known, settings)
    np.testing.assert_allclose(ours.input, theirs.input, atol=1e-4)


@built
def test_one_thread_gives_the_same_twice_and_a_seed_another(file: Path):
    known = corpus.vocabulary(file, 2)
    first, second, third = (
        word2vec.train(file, known, word2vec.Word2VecSettings(epochs=1, seed=seed), threads=1).input
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second) and not np.array_equal(first, third)


@built
def test_padding_stays_zero(file: Path):
    model = word2vec.train(
        file, corpus.vocabulary(file, 2), word2vec.Word2VecSettings(dim=5, epochs=1), threads=2
    )
    for rows in (model.input, model.output):
        whole = np.lib.stride_tricks.as_strided(rows, (len(rows), rows.strides[0] // 4), (rows.strides[0], 4))
        assert whole.shape[1] == 16 and whole[:, :5].any() and not whole[:, 5:].any()


def logistic(X: torch.Tensor, Y: torch.Tensor, t: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    right = torch.where(t == 1, 1.0, -1.0) * (X @ Y.T)
    return -(weight * torch.nn.functional.logsigmoid(right)).sum()


@pytest.mark.parametrize("m", [1, 6])
def test_a_step_is_minus_the_rate_times_autograds_gradient(m: int):
    draw = np.random.default_rng(0)
    X, Y = (draw.standard_normal((rows, 7)) for rows in (m, 5))
    t, weight = np.array([1, 0, 1, 0, 0.0]), np.array([1, 1, 1, 0, 1.0])
    x, y = (torch.tensor(one, requires_grad=True) for one in (X, Y))
    value = logistic(x, y, torch.tensor(t), torch.tensor(weight))
    value.backward()
    assert word2vec.loss(X, Y, t, weight) == pytest.approx(value.item())
    dX, dY = word2vec.change(X, Y, t, weight, 0.5)
    assert x.grad is not None and y.grad is not None
    np.testing.assert_allclose(dX, -0.5 * x.grad.numpy(), atol=1e-6)
    np.testing.assert_allclose(dY, -0.5 * y.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("negative", [4, 0])
@pytest.mark.parametrize("kind", ["skipgram", "cbow", "fasttext"])
def test_a_windows_gradient_is_autograds_on_the_whole_objective(kind: word2vec.Kind, negative: int):
    """From the tables to the loss: the mean of CBOW, the sum of subwords, twice the same word, the tree."""
    known = Vocabulary(("aa", "ab", "abc", "bcd", "cd", "dddd"), np.array([9, 8, 7, 5, 5, 3]))
    rate = 1e-3
    model = word2vec.begin(
        known, word2vec.Word2VecSettings(kind=kind, dim=6, negative=negative, learning_rate=rate)
    )
    draw = np.random.default_rng(1)
    model.input[:] = draw.standard_normal(model.input.shape)
    model.output[:] = draw.standard_normal(model.output.shape)
    word, around = 2, [0, 1, 1, 5]
    before = model.input.copy(), model.output.copy()
    ins, outs = (torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in before)
    random = Random(5)
    sets = len(around) if kind == "fasttext" else 1
    drawn = [
        [sampling.draw(random, model.draws.chance, model.draws.other) for _ in range(negative)]
        for _ in range(sets)
    ]
    value = torch.zeros((), dtype=torch.float64)
    ends, rows = [0, *model.draws.piece_ends.tolist()], model.draws.piece_rows
    if kind == "skipgram":
        inputs, targets = [ins[around]], [word]
    elif kind == "cbow":
        inputs, targets = [ins[around].mean(0, keepdim=True)], [word]
    else:
        inputs = [ins[rows[ends[word] : ends[word + 1]]].sum(0, keepdim=True)] * len(around)
        targets = around
    for X, target, negatives in zip(inputs, targets, drawn, strict=True):
        at, t, weight = word2vec._outputs(model, target, negatives)
        value = value + logistic(X, outs[at], torch.tensor(t), torch.tensor(weight, dtype=torch.float64))
    value.backward()
    word2vec.STEPS[kind](model, word, around, Random(5), rate)
    fraction = 1 / (ends[word + 1] - ends[word]) if kind == "fasttext" else 1.0
    assert ins.grad is not None and outs.grad is not None
    # fastText's words of the window are steps one after another: the second sees the first, a rate away.
    loose = 2e-2 if kind == "fasttext" else 1e-3
    np.testing.assert_allclose((model.input - before[0]) / -rate, fraction * ins.grad.numpy(), atol=loose)
    np.testing.assert_allclose((model.output - before[1]) / -rate, outs.grad.numpy(), atol=loose)


def test_gloves_step_is_adagrads_with_autograds_gradient():
    known = Vocabulary(("a", "b", "c"), np.array([3, 2, 1]))
    model = glove.begin(known, glove.GloveSettings(dim=4, learning_rate=0.1, most=10))
    before = [one.copy() for one in (*model.tables, *model.biases)]
    W, C, B, D = (torch.tensor(before[i], dtype=torch.float64, requires_grad=True) for i in (0, 1, 4, 5))
    x = 3.0
    (min(1, (x / 10) ** 0.75) * (W[0] @ C[2] + B[0] + D[2] - np.log(x)) ** 2 / 2).backward()
    assert glove.loss(before[0][0], before[1][2], before[4][0], before[5][2], x, 10) > 0
    glove._fit_one(model, 0, 2, np.float32(x))
    after = [*model.tables, *model.biases]
    for value, square, leaf in ((0, 2, W), (1, 3, C), (4, 6, B), (5, 7, D)):
        assert leaf.grad is not None
        grad = leaf.grad.numpy()
        np.testing.assert_allclose(after[value], before[value] - 0.1 * grad, atol=1e-6)  # squares began at 1
        np.testing.assert_allclose(after[square], before[square] + grad**2, atol=1e-6)


@built
def test_glove_counts_and_fits_as_its_reference(file: Path, monkeypatch: pytest.MonkeyPatch):
    known = corpus.vocabulary(file, 3)
    settings = glove.GloveSettings(dim=19, window=4, epochs=2, most=5)
    models, sums = [], []
    for pure in (False, True):
        if pure:
            monkeypatch.setattr(native, "available", lambda: False)
        with glove.count(file, known, settings, 1) as counts:
            sums.append(counts.part(0))
            models.append(glove.train(known, counts, settings, threads=1, watch=lambda *_: None))
    assert np.array_equal(sums[0][0], sums[1][0])
    np.testing.assert_allclose(sums[0][1], sums[1][1], rtol=1e-6)
    np.testing.assert_allclose(models[0].vectors(), models[1].vectors(), atol=2e-5)
    assert np.abs(models[0].vectors()).max() > 0.1


def original_cooccurrences(lines: str, window: int) -> dict[tuple[str, str], float]:
    """What the original program's cooccur.c counts with a symmetric window: each meeting enters X twice, once
    with the words in either role, and so twice into the same cell where a word meets itself.
    """
    found: dict[tuple[str, str], float] = {}
    for line in lines.splitlines():
        words = line.split()
        for j, target in enumerate(words):
            for k in range(j - 1, max(j - 1 - window, -1), -1):
                for cell in ((words[k], target), (target, words[k])):
                    found[cell] = found.get(cell, 0.0) + 1.0 / (j - k)
    return found


@pytest.mark.parametrize("pure", [pytest.param(False, marks=built), True])
def test_glove_counts_what_the_original_program_counts(
    pure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "a a b\nb a a a\nc c c c b a\n"
    (tmp_path / "corpus").write_text(lines)
    known = corpus.vocabulary(tmp_path / "corpus", 1)
    if pure:
        monkeypatch.setattr(native, "available", lambda: False)
    for window in (1, 2, 10):
        with glove.count(tmp_path / "corpus", known, glove.GloveSettings(window=window), 1) as counts:
            pairs, weights = counts.part(0)
        ours = {(known.words[i], known.words[j]): x for (i, j), x in zip(pairs, weights, strict=True)}
        ours |= {(j, i): x for (i, j), x in ours.items()}
        theirs = original_cooccurrences(lines, window)
        assert ours.keys() == theirs.keys()
        assert all(abs(ours[cell] - theirs[cell]) < 1e-6 for cell in theirs), window


@built
@pytest.mark.parametrize("threads", [1, 2])
def test_gloves_counts_do_not_depend_on_memory(file: Path, threads: int, monkeypatch: pytest.MonkeyPatch):
    file.write_text(text(40_000, vocabulary=3000), encoding="utf-8")
    known = corpus.vocabulary(file, 1)
    monkeypatch.setattr(glove, "BATCH", 1)
    found = []
    for memory in (1 << 30, 1 << 20):
        with glove.count(file, known, glove.GloveSettings(memory=memory), threads) as counts:
            parts = [counts.part(number) for number in range(len(counts.parts))]
        pairs, sums = (np.concatenate(one) for one in zip(*parts, strict=True))
        found.append(dict(zip(map(tuple, pairs.tolist()), sums.tolist(), strict=True)))
        assert len(counts) == len(found[-1])
    assert len(counts.parts) > 3
    assert found[0].keys() == found[1].keys()
    assert max(abs(found[0][pair] - found[1][pair]) for pair in found[0]) < 1e-3


# ---- reading -----------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("seed", range(6))
def test_counting_and_pieces_are_the_references(seed: int, tmp_path: Path):
    """Several pieces, words across their borders, every white space, no last newline."""
    draw = np.random.default_rng(seed)
    spaces = [b" ", b"\n", b"\t", b"\r\n", b"  ", b"\x0b", b"\x0c"]
    words = [bytes(draw.integers(33, 255, draw.integers(1, 40)).astype(np.uint8)) for _ in range(400)]
    picked = draw.integers(len(words), size=12_000)
    data = b"".join(words[i] + spaces[draw.integers(len(spaces))] for i in picked) + words[0] * (seed % 2)
    path = tmp_path / "corpus"
    path.write_bytes(data)
    expected = {word: data.split().count(word) for word in set(data.split())}
    with corpus.opened(path) as file:
        assert corpus.pieces(file) > 2
        for count in (corpus._count, corpus._count_reference):
            for threads in (1, 3):
                assert dict(zip(*count(file, threads, lambda done: None), strict=True)) == expected
        lines = [line for piece in range(corpus.pieces(file)) for line in corpus.lines(file, piece)]
    assert [word for line in lines for word in line] == data.split()


@pytest.mark.parametrize("offset", range(-3, 3))
def test_a_word_at_a_pieces_border(offset: int, tmp_path: Path):
    path = tmp_path / "corpus"
    path.write_bytes(b"a " * ((corpus.PIECE + offset) // 2) + b"borderline " * 3 + b"b")
    with corpus.opened(path) as file:
        found = [
            word
            for piece in range(corpus.pieces(file))
            for line in corpus.lines(file, piece)
            for word in line
        ]
        counted = dict(zip(*corpus._count_reference(file, 1, lambda done: None), strict=True))
    assert found == path.read_bytes().split() and counted[b"borderline"] == 3


def test_what_is_no_corpus_is_refused(tmp_path: Path):
    path = tmp_path / "corpus"
    with pytest.raises(UserError, match="is not a file"):
        corpus.vocabulary(path)
    path.write_bytes(b"a b c")
    with pytest.raises(UserError, match="comes 5 times or more"):
        corpus.vocabulary(path)
    path.write_bytes(b"\xff\xfe " * 9)
    with pytest.raises(UserError, match="not UTF-8"):
        corpus.vocabulary(path)


@pytest.mark.parametrize("pure", [False, True])
def test_a_word_without_end_is_refused(pure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if pure:
        monkeypatch.setattr(native, "available", lambda: False)
    path = tmp_path / "corpus"
    path.write_bytes(b"word " * 9 + b"x" * 300_000)
    with pytest.raises(UserError, match="begins at byte 45 has more than 4096 bytes"):
        corpus.vocabulary(path)
    path.write_bytes(b"word " * 9 + b"x" * 4096)
    assert corpus.vocabulary(path).words == ("word",)


@built
def test_a_corpus_that_vanishes_while_it_is_read(tmp_path: Path):
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with Counter(1) as counter, pytest.raises(OperationalError, match="could not be read"):
            counter.add(folder, 0, 1)
    finally:
        os.close(folder)


@built
def test_memory_follows_the_vocabulary_and_not_the_corpus(tmp_path: Path):
    """200 MB of text in a process whose memory may not grow by half of that."""
    import subprocess
    import sys

    path = tmp_path / "corpus"
    block = (text(20_000) + "\n").encode()
    with path.open("wb") as out:
        for _ in range(-(-200_000_000 // len(block))):
            out.write(block)
    code = f"""
import resource
from pathlib import Path
from cutaway.embedding import corpus
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
known = corpus.vocabulary(Path({str(path)!r}), 5, 2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, int(known.counts.sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, words = map(int, done.stdout.split())
    assert words > 20_000_000 and grown < 16_000  # kilobytes


# ---- the parts ---------------------------------------------------------------------------------------------


def test_splitmix_is_the_published_one():
    """The first outputs for seed 1234567, of the generator's reference program."""
    random = Random(1234567)
    assert [random.next() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_the_noise_is_the_counts_to_three_quarters():
    counts = np.array([1000, 300, 20, 7, 1, 1])
    chance, other = sampling.noise(counts)
    fraction = np.zeros(len(counts))
    for cell in range(len(counts)):
        fraction[cell] += chance[cell]
        fraction[other[cell]] += 1 - chance[cell]
    np.testing.assert_allclose(fraction / len(counts), counts**0.75 / (counts**0.75).sum(), rtol=1e-6)
    random = Random(3)
    drawn = np.bincount([sampling.draw(random, chance, other) for _ in range(20_000)], minlength=6) / 20_000
    np.testing.assert_allclose(drawn, counts**0.75 / (counts**0.75).sum(), atol=0.01)


def test_frequent_words_are_kept_less():
    counts = np.array([90_000, 9_000, 900, 100])
    kept = sampling.kept(counts, 1e-3)
    f = 0.9
    assert kept[0] == pytest.approx(np.sqrt(1e-3 / f) + 1e-3 / f)
    assert (np.diff(kept) >= 0).all() and kept[-1] == 1
    assert (sampling.kept(counts, 0) == 1).all()


def test_the_tree_is_huffmans():
    counts = np.array([40, 30, 12, 9, 5, 3, 1])
    ways = huffman.paths(counts)
    lengths = np.diff(ways.ends, prepend=0)
    assert sum(2.0**-n for n in lengths) == 1  # a whole tree
    # The least that any prefix code needs, by merging the two smallest again and again.
    heap, cost = sorted(counts.tolist()), 0
    while len(heap) > 1:
        cost += heap[0] + heap[1]
        heap = sorted([*heap[2:], heap[0] + heap[1]])
    assert int((counts * lengths).sum()) == cost
    starts = [0, *ways.ends[:-1].tolist()]
    codes = {tuple(ways.labels[a:b].tolist()) for a, b in zip(starts, ways.ends.tolist(), strict=True)}
    assert len(codes) == len(counts)
    assert all(ways.nodes[a] == len(counts) - 2 for a in starts)  # all begin at the root


def test_a_vocabulary_of_one_word_has_no_tree():
    assert huffman.paths(np.array([5])).ends.tolist() == [0]


def test_subwords_are_the_papers():
    assert subwords.grams("where", 3, 3) == ["<wh", "whe", "her", "ere", "re>"]
    assert subwords.grams("a", 3, 6) == [] and subwords.grams("ab", 3, 6) == ["<ab", "ab>"]
    parts, ends, rows = subwords.subwords(["where", "here"], 3, 4, 1000)
    assert rows[0] == 0 and rows[ends[0]] == 1
    assert rows.max() == 2 + len(parts.used) - 1
    assert rows[1 : ends[0]].tolist() == parts.rows("where")
    assert parts.rows("qqqqq") == [] or len(parts.used) > 900


def test_subword_hashes_are_gensims():
    hashes = pytest.importorskip("gensim.models.fasttext_inner").compute_ngrams_bytes
    from gensim.models.fasttext_inner import ft_hash_bytes

    for word in ("where", "größe", "日本語のことば", "a"):
        whole = f"<{word}>".encode()
        marked = [gram for gram in hashes(word, 3, 6) if gram != whole]
        expected = sorted(ft_hash_bytes(gram) % 2_000_000 for gram in marked)
        assert sorted(subwords.hashes(word, 3, 6, 2_000_000)) == expected


# ---- checked arguments -------------------------------------------------------------------------------------


@built
def test_arguments_are_checked_before_the_core():
    none, index, flat = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
    fine = {
        "keep": np.ones(3, np.float32), "chance": np.ones(3, np.float32), "other": np.zeros(3, np.int32),
        "path_ends": none, "path_nodes": index, "path_labels": flat, "piece_ends": none, "piece_rows": index,
    }  # fmt: skip
    rest = {
        "kind": "skipgram",
        "window": 2,
        "negative": 1,
        "total": 1,
        "rate": 0.1,
        "least_rate": 0.1,
        "seed": 1,
    }
    with Dictionary([b"a", b"b", b"c"]) as words:
        Learner(words, table(3, 4), table(3, 4), Draws(**fine), **rest)
        wrong = [
            ({"other": np.full(3, 3, np.int32)}, {}, "past the 3"),
            ({"keep": np.ones(2, np.float32)}, {}, "do not fit"),
            ({"keep": np.ones(3)}, {}, "float32 is needed"),
            ({"chance": np.ones(2, np.float32)}, {}, "differ in length"),
            ({}, {"negative": 0}, "do not fit"),
            ({}, {"kind": "fasttext"}, "do not fit"),
            ({}, {"window": 0}, "cannot be learned"),
        ]
        for draws, other, message in wrong:
            with pytest.raises(UserError, match=message):
                Learner(words, table(3, 4), table(3, 4), Draws(**(fine | draws)), **(rest | other))
        with pytest.raises(UserError, match="not padded"):
            Learner(words, np.zeros((3, 4), np.float32), table(3, 4), Draws(**fine), **rest)
        with pytest.raises(UserError, match="do not fit"):
            Learner(words, table(2, 4), table(3, 4), Draws(**fine), **rest)
    with pytest.raises(UserError, match="must differ"):
        Dictionary([b"a", b"a"])
