"""`cutaway explain --against`: what training changed, against loops written out with numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.cli import main
from cutaway.errors import UserError
from cutaway.inspect import explanation
from cutaway.inspect.against import against, check, left_svd, low_rank_svd
from cutaway.inspect.trace import Trace
from cutaway.weights import adapters, load
from tests.small import SHAPES, Bytes, decoder, model_file
from tests.test_page import unpacked

TEXT = "the same the same"


def traces(shape: str = "llama", moved: float = 0.05) -> tuple[Trace, Trace]:
    """A model and one whose weights are moved, on the same text."""
    base, tuned = decoder(shape), decoder(shape)
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(torch.randn_like(weight) * moved)
    one, other = (
        Trace.of(model, Bytes(), Bytes().encode(TEXT), explanation.names(model.config))
        for model in (base, tuned)
    )
    return one, other


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_divergences_by_layer_are_those_of_a_loop(shape: str) -> None:
    one, other = traces(shape)
    found = against(one, other)
    assert found.stages == ("embed", *(f"blocks.{i}.out" for i in range(one.layers)))
    for n, name in enumerate(found.stages):
        for t in range(len(one.ids)):
            p, q = (
                softmax(trace.instrumented.unembed(trace[name][t : t + 1])[0].astype(np.float64))
                for trace in (one, other)
            )
            expected = sum(p[v] * np.log(p[v] / q[v]) for v in range(len(p)))
            assert found.kl[t][n] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    before, after = (softmax(trace.logits[-1]) for trace in (one, other))
    for each in found.next:
        expected = float(before[each.id]), float(after[each.id])
        assert (each.before, each.after) == pytest.approx(expected, rel=1e-5)
    same = against(one, one)
    assert max(map(max, same.kl)) == 0 and not same.written and same.heads[0].change == 0


def test_heads_that_moved() -> None:
    """Each head's z through its own columns of W_o, one token at a time; only layer 1's head 2 is changed."""
    one, _ = traces()
    tuned = decoder()
    with torch.no_grad():
        attention: Any = tuned.blocks[1].attention
        attention.out.weight[:, 16:24] *= 1.5  # what head 2's values are multiplied by
    other = Trace.of(tuned, Bytes(), one.ids, explanation.names(tuned.config))
    found = against(one, other)
    assert (found.heads[0].layer, found.heads[0].head) == (1, 2) or found.heads[0].layer == 2
    moved = {(each.layer, each.head): each for each in found.heads}
    assert moved[1, 2].change == pytest.approx(0.5, rel=1e-5)
    assert moved[1, 0].change == moved[0, 3].change == 0
    weight = one.instrumented.weight("blocks.1.attention.out.weight").astype(np.float64)
    z = one["blocks.1.attention.z"].astype(np.float64)
    squared = sum(np.square(weight[:, 8 * 2 : 8 * 3] @ z[2, t]).sum() for t in range(1, len(one.ids)))
    assert moved[1, 2].norm == pytest.approx(squared**0.5, rel=1e-5)
    assert found.mlps[-1].layer == 0 and found.mlps[-1].change == 0 and found.mlps[0].change > 0
    shown, _ = (Trace.of(tuned, Bytes(), one.ids[:1], explanation.names(tuned.config)) for _ in range(2))
    assert all(each.norm > 0 for each in against(shown, shown).mlps), "where the sink is all there is"


def test_an_attention_sink_does_not_make_the_figure() -> None:
    """One token's output is a thousand times the others', and is not changed."""
    traces = []
    for by in (1.0, 1.5):
        trace = Trace.of(model := decoder(), Bytes(), Bytes().encode(TEXT), explanation.names(model.config))
        values = trace.values_by_name
        added = by * (values["blocks.1.out"] - values["blocks.1.middle"])
        added[5] = 1000.0
        values["blocks.1.out"] = values["blocks.1.middle"] + added
        traces.append(trace)
    moved = {each.layer: each.change for each in against(*traces).mlps}
    assert moved[1] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 40])
def test_singular_vectors_of_a_product_are_those_of_the_dense_matrix(rank: int) -> None:
    random = np.random.default_rng(rank)
    b, a = random.standard_normal((32, rank)), random.standard_normal((rank, 48))
    expected, sizes, _ = np.linalg.svd(b @ a, full_matrices=False)
    for u, found in (low_rank_svd(b, a), left_svd(b @ a)):
        n = min(rank, 32)
        np.testing.assert_allclose(found[:n], sizes[:n], rtol=1e-7)
        np.testing.assert_allclose(np.abs((u[:, :n] * expected[:, :n]).sum(0)), 1, rtol=1e-7)


@pytest.mark.parametrize("shape", ["llama", "gemma", "gpt2"])
def test_directions_are_read_through_the_unembedding(shape: str) -> None:
    """Of an adapter and of the weights that it makes: the tokens that a loop over the vocabulary finds."""
    one, _ = traces(shape)
    tuned, random = decoder(shape), np.random.default_rng(0)
    names = ["blocks.0.attention.out.weight", "blocks.1.mlp.down.weight"]
    changes = {}
    for name in names:
        rows, columns = tuned.get_parameter(name).shape
        a, b = (random.standard_normal(size).astype(np.float32) for size in ((2, columns), (rows, 2)))
        changes[name] = adapters.LowRank(a, b, 0.1)
        tuned.get_parameter(name).data += torch.from_numpy(changes[name].delta)
    other = Trace.of(tuned, Bytes(), one.ids, explanation.names(tuned.config))
    low, dense = (against(one, other, each).written for each in (changes, None))
    assert {each.weight for each in low} == {each.weight for each in dense} == set(names)
    assert [each.change for each in low] == sorted((each.change for each in low), reverse=True)
    model: Any = one.instrumented
    model = model.model
    head: Any = model.embedding if model.head is None else model.head
    final: Any = model.norm
    table, scale = head.weight.detach().double(), final.weight.detach().double()
    for found, same in zip(low, dense, strict=True):
        delta = np.float64(changes[found.weight].delta)
        u, sizes, _ = np.linalg.svd(delta)
        weight = model.get_parameter(found.weight).detach().double().norm()
        assert found.change == pytest.approx(np.linalg.norm(delta) / float(weight), rel=1e-5)
        assert len(found.directions) == 2 and sum(each.share for each in found.directions) == pytest.approx(1)
        post: Any = model.blocks[0 if "attention" in found.weight else 1]
        post = post.attention_post_norm if "attention" in found.weight else post.mlp_post_norm
        for r, (each, also) in enumerate(zip(found.directions, same.directions, strict=False)):
            assert each.singular_value == pytest.approx(sizes[r], rel=1e-5)
            assert each.share == pytest.approx(sizes[r] ** 2 / np.square(sizes).sum(), rel=1e-5)
            x = torch.from_numpy(u[:, r])
            x = x * post.weight.detach().double() if hasattr(post, "weight") else x
            x = x - x.mean() if shape == "gpt2" else x
            scores = [float(row @ (x * scale)) for row in table]
            best = sorted(range(len(scores)), key=lambda id: scores[id])
            ends = [{one.token(id) for id in part} for part in (best[:6], best[-6:])]
            for direction in (each, also):
                assert [set(direction.promotes), set(direction.opposite)] in (ends, ends[::-1])


def test_other_shapes_and_vocabularies_are_refused() -> None:
    class Other(Bytes):
        def token_bytes(self, id: int) -> bytes:
            return b"x" if id == 9 else super().token_bytes(id)

    llama, words = SHAPES["llama"](), (Bytes(), Bytes())
    check(llama, llama, words)
    with pytest.raises(UserError, match=r"the models have other shapes: blocks\.0\.attention"):
        check(llama, SHAPES["gemma"](), words)
    with pytest.raises(UserError, match="other vocabularies"):
        check(llama, llama, (Bytes(), Other()))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return model_file(tmp_path / "base.gguf")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A folder with a change of one matrix, which names its base."""
    checkpoint, name = load.read_checkpoint(base), "blocks.2.mlp.down.weight"
    random, (rows, columns) = np.random.default_rng(0), checkpoint.tensors.later(name).shape
    a, b = (random.standard_normal(size).astype(np.float32) for size in ((2, columns), (rows, 2)))
    adapters.write_adapter(tmp_path / "adapter", {name: adapters.LowRank(a, b, 0.5)}, checkpoint, str(base))
    return tmp_path / "adapter"


def test_the_verb_opens_the_base_that_the_adapter_names(
    adapter: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", TEXT, "--against", str(adapter), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["against"]) == ("base", "adapter")
    assert [each["weight"] for each in found["written"]] == ["blocks.2.mlp.down.weight"]
    last, before = (max(row[n] for row in found["kl"]) for n in (-1, -2))
    assert last > 0.1 and before == 0 and found["mlps"][0]["layer"] == 2
    assert main(["merge", str(adapter), str(tmp_path / "merged"), "--no-measure"]) == 0
    capsys.readouterr()
    assert main(["explain", TEXT, "--model", str(base), "--against", str(tmp_path / "merged"), "--json"]) == 0
    merged = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(merged["kl"], found["kl"], atol=1e-5)
    one, other = (each["written"][0]["directions"][0] for each in (found, merged))
    assert one["share"] == pytest.approx(other["share"], rel=1e-4)


def test_the_terminal_and_the_page(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", TEXT, "--against", str(adapter)]) == 0
    shown = capsys.readouterr().out
    steps = ("1  Next token", "2  Where they part", "3  Heads and MLPs that moved", "4  Directions written")
    assert all(step in shown for step in steps) and "2.mlp.down" in shown
    assert max(map(len, shown.splitlines())) <= 100
    page = tmp_path / "page.html"
    assert main(["explain", TEXT, "--against", str(adapter), "--html", str(page)]) == 0
    content, _ = unpacked(page.read_text(encoding="utf-8"))
    assert [one["model"] for one in content["explanations"]] == ["base", "adapter"] and content["same_model"]
    changed = content["explanations"][0]["changed"]
    assert content["views"][0] == "changed" and changed["names"] == ["base", "adapter"]
    assert len(changed["kl"]) == len(changed["tokens"]) and changed["written"][0]["change"] > 0
    for more in (["--compare", "x"], ["--ablate", "0"], ["--backends"]):
        assert main(["explain", TEXT, "--against", str(adapter), *more]) == 2
    other = model_file(tmp_path / "other.gguf", control=["<|a|>"])
    assert main(["explain", TEXT, "--model", str(other), "--against", str(tmp_path / "base.gguf")]) == 2
    assert "have other shapes" in capsys.readouterr().err


def test_an_adapter_of_several_matrices_is_one_model(adapter: Path, base: Path) -> None:
    """The tuned side is the adapter beside the base, to the bit."""
    lm = cutaway.load(base, engine="pytorch")
    alone = cutaway.load(adapter, engine="pytorch")
    assert np.array_equal(lm.with_adapter(adapter).logits([1, 2]), alone.logits([1, 2]))
