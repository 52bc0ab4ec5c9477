"""Watermarks against their equations, one token at a time, and detection against its null."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from cutaway import cli
from cutaway.errors import UserError
from cutaway.generate import watermark
from cutaway.generate.sample import History, Sampler, log_softmax
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.watermark import gumbel, kgw, synthid
from cutaway.lm import LanguageModel
from cutaway.security.finding import Budget
from cutaway.security.probes import watermark as probe
from tests.small import model_file

V = 40
LOGITS = (np.random.default_rng(0).standard_normal(V) * 1.5).astype(np.float32)
P = np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum()
SCHEMES = [kgw.Config, gumbel.Config, synthid.Config]


def reference_hash(key: str, context: list[int], id: int) -> int:
    """BLAKE2b of the context under the key, and splitmix64 of that and the id, in whole numbers of Python."""
    secret = hashlib.blake2b(key.encode(), digest_size=32).digest()
    text = b"".join(one.to_bytes(8, "little") for one in context)
    mask = (1 << 64) - 1
    seed = int.from_bytes(hashlib.blake2b(text, key=secret, digest_size=8).digest(), "little")
    x = (seed + id * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def written(scheme: Any, count: int, seed: int = 0, logits: np.ndarray = LOGITS) -> list[int]:
    """A text of independent tokens drawn from fixed logits, marked if there is a scheme."""
    sampler = Sampler(SamplingParams(temperature=1, seed=seed, watermark=scheme))
    history = History([1, 2, 3, 4])
    for _ in range(count):
        history.append(sampler(logits, history))
    return history.generated.tolist()


def test_each_scheme_is_its_equation() -> None:
    context, history = [7, 3, 9, 1], History([5, 7, 3, 9, 1])
    hashes = [reference_hash("tea", context, id) for id in range(V)]
    u = [((x >> 11) + 0.5) / 2**53 for x in hashes]
    green = [x < 0.25 for x in u]
    ours = kgw.Config("tea")(LOGITS, history)
    assert np.allclose(ours, [logit + 2 * is_green for logit, is_green in zip(LOGITS, green, strict=True)])
    ours = gumbel.Config("tea")(LOGITS, history)
    best = max(range(V), key=lambda id: u[id] ** (1 / P[id]))
    assert np.flatnonzero(np.isfinite(ours)).tolist() == [best]
    p = P.tolist()
    for layer in range(30):
        g = [x >> layer & 1 for x in hashes]
        expected = sum(a * b for a, b in zip(p, g, strict=True))
        p = [a * (1 + b - expected) for a, b in zip(p, g, strict=True)]
    ours = synthid.Config("tea")(LOGITS, history)
    assert np.allclose(np.exp(ours), p, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("scheme", [gumbel.Config, synthid.Config])
def test_over_keys_the_distribution_is_the_models(scheme: Any) -> None:
    history, keys, counts = History([1, 2, 3, 4]), 2000, np.zeros(V)
    for n in range(keys):
        weights = np.exp(scheme(str(n))(LOGITS, history).astype(np.float64))
        counts += weights / weights.sum()
    chi2 = float(((counts - keys * P) ** 2 / (keys * P)).sum())
    assert chi2 < V + 4 * math.sqrt(2 * V), chi2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_key_finds_its_text_and_no_other_key_does(scheme: Any) -> None:
    ids = written(scheme("tea"), 150)
    own, other = (watermark.detect(scheme(key), ids, keys=99) for key in ("tea", "coffee"))
    assert own.p < 1e-4 and own.p_keys == 0.01 and own.z > 4
    assert other.p > 0.005 and other.p_keys > 0.01


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_null_is_uniform(scheme: Any) -> None:
    """Of an unmarked text, p is at most 0.2 for a fifth of the keys; the tail agrees with the keys."""
    ids = written(None, 60)
    found = [watermark.detect(scheme(str(n)), ids, keys=19, seed=n) for n in range(60)]
    for values in ([one.p for one in found], [one.p_keys for one in found], [one.p_passage for one in found]):
        below = np.mean(np.array(values) <= 0.2)
        assert 0.05 <= below <= 0.38, below


def test_a_tail_is_the_sum_of_its_distribution() -> None:
    assert kgw.Config("x", gamma=0.5).tail(9, 10) == pytest.approx(11 / 1024)
    assert gumbel.Config("x").tail(2.0, 1) == pytest.approx(math.exp(-2))
    assert gumbel.Config("x").tail(3.0, 2) == pytest.approx(4 * math.exp(-3))
    flat = synthid.Config("x", layers=1)
    assert flat.null == (0.5, 0.25) and flat.tail(10, 10) == pytest.approx(7.8e-4, rel=0.01)


def test_a_passage_is_found_among_unmarked_text() -> None:
    plain, marked = [written(None, 2500, seed) for seed in (1, 2)], kgw.Config("tea", delta=3)
    found = watermark.detect(marked, plain[0] + written(marked, 64) + plain[1], keys=99)
    assert found.p_passage == 0.01 < found.p_keys
    start, stop = found.passage
    assert 2460 <= start <= 2540 and 2520 <= stop <= 2600


def test_a_context_is_marked_and_counted_once() -> None:
    sure = np.full(V, -30, np.float32)
    sure[[4, 5]] = 0  # two tokens: contexts of two ids repeat at once
    scheme = replace(gumbel.Config("tea"), context=2)
    ids = written(scheme, 200, logits=sure)
    assert len({tuple(ids[n : n + 8]) for n in range(190)}) > 50, "the text runs in circles"
    assert watermark.detect(scheme, ids, keys=9).tokens <= 4


def test_what_cannot_be_marked_is_refused() -> None:
    for scheme in (gumbel.Config("x"), synthid.Config("x")):
        with pytest.raises(UserError, match="give a temperature above 0"):
            SamplingParams(watermark=scheme)
    assert SamplingParams(watermark=kgw.Config("x")).temperature == 0
    for spelt, sentence in (("kgv:x", "no watermark 'kgv'"), ("kgw", "needs a secret key")):
        with pytest.raises(UserError, match=sentence):
            watermark.parse(spelt)
    with pytest.raises(UserError, match="needs 5 or more"):
        watermark.detect(kgw.Config("x"), [1, 2, 3, 4])


def test_what_generate_marks_detect_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(model_file(tmp_path / "small.gguf"))
    given = ["--model", file, "--watermark", "synthid:tea", "--json"]
    sampling = ["--temperature", "1", "--max-tokens", "120", "--ignore-eos", "--seed", "3"]
    assert cli.main(["generate", "the king", *given, *sampling]) == 0
    made = json.loads(capsys.readouterr().out)
    assert len(made["ids"]) == 120
    own = watermark.detect(synthid.Config("tea"), made["ids"], keys=99)
    assert own.p < 1e-4
    (tmp_path / "text.txt").write_text("the king " * 4)
    assert cli.main(["detect", "--file", str(tmp_path / "text.txt"), "--keys", "99", *given]) == 0
    assert json.loads(capsys.readouterr().out)["p_keys"] > 0.01


class Words:
    """A language model of independent words: fixed logits, whatever comes before."""

    vocabulary: ClassVar[list[str]] = [a + b + c for a in "bdfglmnrst" for b in "aeoy" for c in "bdfglmnrst"]
    logits: ClassVar = (np.random.default_rng(5).standard_normal(400) * 1.5).astype(np.float32)

    @property
    def tokenizer(self) -> Any:
        return self

    def encode(self, text: str) -> list[int]:
        known = {word: id for id, word in enumerate(self.vocabulary)}
        return [known.get(word, zlib.crc32(word.encode()) % 400) for word in text.split()]

    def generate_batch(
        self, prompts: list[str], *, watermark: Any, seed: int, max_tokens: int, **others: Any
    ) -> Any:
        made: list[Any] = []
        for n, prompt in enumerate(prompts):
            drawn = SamplingParams(temperature=1.0, seed=1000 * seed + n, watermark=watermark)
            sampler, history = Sampler(drawn), History(self.encode(f"{prompt} " * 4))
            for _ in range(max_tokens):
                history.append(sampler(self.logits, history))
            ids = history.generated
            text = " ".join(self.vocabulary[id] for id in ids)
            made.append(SimpleNamespace(text=text, logprobs=log_softmax(self.logits)[ids]))
        return made


@dataclass(frozen=True)
class Misjudged(kgw.Config):
    """A detector that takes a quarter of green tokens for a tenth."""

    def tail(self, total: float, tokens: int) -> float:
        return replace(kgw.Config(self.key), gamma=0.1).tail(total, tokens)


def test_the_probe_tells_a_fragile_mark_and_a_wrong_null_from_a_robust_one(monkeypatch) -> None:
    builds = {
        "robust": lambda key: kgw.Config(key, context=1, delta=6),
        "fragile": lambda key: kgw.Config(key, context=30, delta=6),
        "misjudged": Misjudged,
    }
    monkeypatch.setattr(probe, "SCHEMES", builds)
    monkeypatch.setattr(probe, "LENGTHS", (20, 120))
    lm: Any = Words()
    found = probe.run(lm, seed=1, budget=Budget(trials=60), progress=lambda done, total: None)
    verdicts = {finding.title: finding.verdict for finding in found}
    own, edited = "{} tells its own text", "{}: 10% of words replaced"
    assert verdicts[own.format("robust")] == verdicts[own.format("fragile")] == "sound"
    assert verdicts[own.format("misjudged")] == "vulnerable"
    assert verdicts[edited.format("robust")] == "sound"
    assert verdicts[edited.format("fragile")] == "vulnerable"
    arms = {
        arm.name: arm.value.value for arm in next(f for f in found if f.title == "robust: homoglyphs").arms
    }
    assert arms["not detected after it"] == 1 and arms["not detected after it, letters folded back"] == 0
    price = next(f for f in found if f.title == own.format("robust")).arms[-1]
    assert price.name == "log-probability, marked less plain" and price.value.value < 0
    first = next(f for f in found if f.title == own.format("robust")).arms[0]
    assert first.name == "detected at 120 tokens"


def test_the_null_has_many_keys_and_an_attack_is_judged_beside_what_was_missed_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named: set[str] = set()
    lengths: list[int] = []

    def detect(scheme: Any, ids: list[int], keys: int = 0) -> Any:
        lengths.append(len(ids))
        named.add(scheme.key)
        return SimpleNamespace(p=0.5, p_passage=0.001)

    monkeypatch.setattr(probe.watermark, "detect", detect)
    lm: Any = Words()
    own = ["baba"] * 4
    marked = kgw.Config("k", context=3)
    probe._power(lm, "kgw", marked, own, own, ([0.0] * 4, [0.0] * 4), 0)
    assert len(named) == probe.NULL_KEYS + 1
    assert probe._passages(lm, marked, own) == [False] * 4
    lengths.clear()
    probe._p(lm, marked, "a " * 50, 8)
    assert lengths == [8 + 3]
    draw = np.random.default_rng(0)
    found = probe._attacks(lm, "kgw", marked, own, own, draw, 0)
    assert not [one for one in found if one.verdict == "vulnerable"]  # nothing was detected before either
    texts: list[str] = []
    monkeypatch.setattr(
        probe, "_passages", lambda lm, marked, some: texts.extend(some) or [False] * len(some)
    )
    probe._attacks(lm, "kgw", marked, ["own"] * 6, [f"other{n}" for n in range(6)], draw, 0)
    assert all(text.count("own") == 1 for text in texts)


def test_a_mark_that_is_found_in_unmarked_texts_too_is_not_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fifth key is found in each of them."""
    lm = LanguageModel.__new__(LanguageModel)
    own, plain, logs = ["own"] * 40, ["plain"] * 40, ([0.0, 1.0], [0.0, 1.0])
    for every, verdict in ((5, "vulnerable"), (1000, "sound")):

        def p(lm: Any, marked: Any, text: str, most: int | None = None, every: int = every) -> float:
            return 0.0 if text == "own" or int(marked.key.split()[-1]) % every == 1 else 0.5

        monkeypatch.setattr(probe, "_p", p)
        monkeypatch.setattr(probe, "NULL_KEYS", 25 if every == 5 else 1)
        assert probe._power(lm, "gumbel", gumbel.Config("x"), own, plain, logs, 0).verdict == verdict
