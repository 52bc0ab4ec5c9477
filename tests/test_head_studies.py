"""Heads by their weights and by their attention over texts, and patchscopes: each as its definition says."""

from pathlib import Path

import numpy as np
import pytest

import cutaway
from cutaway.errors import UserError
from cutaway.inspect.attention_statistics import STATISTICS, attention_statistics
from cutaway.inspect.head_matrices import copying_scores, factors, spectrum
from cutaway.inspect.patchscope import patchscope
from cutaway.inspect.subject import Subject
from tests.small import WIDTH, Bytes, decoder, model_file

TEXTS = [list(b"abcabcab"), list(b"xyzw"), list(b"hello hello")]


def test_a_heads_matrices_are_its_weights() -> None:
    model = decoder()
    subject = Subject.of(model, Bytes())
    weights = {name: w.detach().numpy().astype(np.float64) for name, w in model.named_parameters()}
    norm = weights["blocks.1.attention_norm.weight"]
    q, k, v = (weights[f"blocks.1.attention.{name}.weight"] * norm for name in ("query", "key", "value"))
    ov = weights["blocks.1.attention.out.weight"][:, 24:] @ v[8:]
    qk = q[24:].T @ k[8:]
    for of, want in (("ov", ov), ("qk", qk)):
        a, b = factors(subject, 1, 3, of)
        assert a @ b == pytest.approx(want, abs=1e-9)
        assert spectrum(subject, 1, of)[3] == pytest.approx(
            np.linalg.svd(want, compute_uv=False)[:8], abs=1e-6
        )
    table = weights["embedding.weight"]
    whole = (table * weights["norm.weight"]) @ ov @ table.T  # [v v]
    values = np.linalg.eigvals(whole)
    score = values.real.sum() / np.abs(values).sum()
    assert copying_scores(subject, [1])[0, 3] == pytest.approx(score, abs=1e-6)
    for place, why in (((3, 0), "no layer 3"), ((0, 9), "no head 9")):
        with pytest.raises(UserError, match=why):
            factors(subject, *place)


def test_a_head_that_copies_has_a_score_of_1() -> None:
    model = decoder("gpt2")
    attention = model.blocks[0].attention
    attention.value.weight.data.copy_(np_eye(0.5))
    attention.out.weight.data.copy_(np_eye(2.0))
    model.blocks[0].attention_norm.weight.data.fill_(1.0)
    model.norm.weight.data.fill_(1.0)
    found = copying_scores(Subject.of(model, Bytes()), [0])
    assert found.values == pytest.approx(np.ones((1, 4)), abs=1e-6)
    attention.out.weight.data.mul_(-1)
    assert copying_scores(Subject.of(model, Bytes()), [0]).values == pytest.approx(-np.ones((1, 4)), abs=1e-6)


def np_eye(by: float):
    import torch

    return torch.eye(WIDTH) * by


def test_attention_statistics_are_their_definitions() -> None:
    subject = Subject.of(decoder(), Bytes())
    found = attention_statistics(subject, TEXTS)
    assert found.axes["statistic"] == STATISTICS and found.values.shape == (6, 3, 4)
    want: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for ids in TEXTS:
        (seen,) = subject.values([ids], ["blocks.1.attention.pattern"])
        p, own = seen["blocks.1.attention.pattern"][2].astype(float), {name: [] for name in STATISTICS}
        for t in range(1, len(ids)):
            own["sink"].append(p[t, 0])
            own["previous"].append(p[t, t - 1])
            own["itself"].append(p[t, t])
            own["entropy"].append(-sum(x * np.log2(x) for x in p[t, : t + 1] if x > 0))
            own["distance"].append(sum(p[t, s] * (t - s) for s in range(t + 1)))
            after = [s for s in range(1, t + 1) if ids[s - 1] == ids[t]]
            if after:
                own["induction"].append(sum(p[t, s] for s in after))
        for name, values in own.items():
            want[name] += [float(np.mean(values))] if values else []
    for n, name in enumerate(STATISTICS):
        assert found[n, 1, 2] == pytest.approx(np.mean(want[name]), abs=1e-6), name
    assert len(want["induction"]) == 2, "one text has no token twice"
    assert np.isnan(found.margin[3, 1, 2]) and found.margin[0, 1, 2] > 0, "two texts have no interval"
    with pytest.raises(UserError, match="3 tokens or more"):
        attention_statistics(subject, [[65, 66]])


def test_a_patchscope_goes_on_from_the_moved_activation(tmp_path: Path) -> None:
    lm = cutaway.load(model_file(tmp_path / "m.gguf"))
    ids, prompt = lm.ids("other words"), "a ? b"
    found = patchscope(lm, ids, 0, 2, prompt=prompt, into_layer=1, max_tokens=3)
    at = lm.ids(prompt).index(lm.ids("?")[0])
    row = lm.activations([ids], ["blocks.0.out"])["blocks.0.out"][2]

    from cutaway.inspect.edits import Add, Scale

    where = {"name": "blocks.1.out", "positions": [at]}
    edit = [Scale(**where, strength=0.0), Add(**where, vector=row.astype(float).tolist())]
    want = lm.generate(prompt, max_tokens=3, temperature=0, edit=edit)
    assert found.ids == want.ids
    assert found.ids != lm.generate(prompt, max_tokens=3, temperature=0).ids
    for options, why in (
        ({"layer": 9}, "no layer 9"),
        ({"layer": 0, "position": 99}, "the text has 9 tokens"),
        ({"layer": 0, "prompt": "no place"}, "no token with"),
    ):
        with pytest.raises(UserError, match=why):
            patchscope(lm, ids, **options)
