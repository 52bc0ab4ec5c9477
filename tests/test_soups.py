"""Model soups: each method against a float64 loop over values, and the verb that writes them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway.cli import main
from cutaway.errors import UserError
from cutaway.quantization import formats
from cutaway.weights import adapters, load, soups
from cutaway.weights.named_tensors import Tensors
from tests.small import model_file

SHAPE = (5, 6)


def drawn(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32))


def by_loop(method: str, base: Any, models: Any, weights: Any, density: float, scale: float) -> np.ndarray:
    """The method's equation, one value at a time."""
    base, models = np.float64(base), [np.float64(model) for model in models]
    out = np.zeros(SHAPE)
    angle = t = 0.0
    if method == "slerp":
        cosine = (models[0] * models[1]).sum() / np.sqrt((models[0] ** 2).sum() * (models[1] ** 2).sum())
        angle, t = np.arccos(cosine), weights[1] / sum(weights)
    kept = []
    for model in models:
        largest = sorted(np.abs(model - base).ravel(), reverse=True)[: round(density * base.size)]
        kept.append([[abs(v) >= min(largest) for v in row] for row in model - base])
    for place in np.ndindex(*SHAPE):
        values = [model[place] for model in models]
        changes = [value - base[place] for value in values]
        if method == "average":
            out[place] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        elif method == "slerp":
            out[place] = np.sin((1 - t) * angle) * values[0] + np.sin(t * angle) * values[1]
            out[place] /= np.sin(angle)
        elif method == "task":
            out[place] = base[place] + scale * sum(w * c for w, c in zip(weights, changes, strict=True))
        else:
            trimmed = [c if kept[n][place[0]][place[1]] else 0.0 for n, c in enumerate(changes)]
            elected = np.sign(sum(w * c for w, c in zip(weights, trimmed, strict=True)))
            own = [(w, c) for w, c in zip(weights, trimmed, strict=True) if c and np.sign(c) == elected]
            mean = sum(w * c for w, c in own) / sum(w for w, _ in own) if own else 0.0
            out[place] = base[place] + scale * mean
    return out


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 0.9)])
@pytest.mark.parametrize("method", soups.METHODS)
def test_each_method_is_its_equation(method: str, weights: tuple[float, ...]) -> None:
    base, *models = drawn(3)
    options = {"task": {"scale": 0.7}, "ties": {"scale": 0.7, "density": 0.4}}.get(method, {})
    start = [base] if options else []
    made = soups.METHODS[method](*start, models, weights, **options)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, by_loop(method, base, models, weights, 0.4, 0.7), rtol=1e-5, atol=1e-6)


def test_three_models_and_the_edges() -> None:
    base, *models = drawn(4)
    for method, weights in (("average", (1, 2, 3)), ("task", (1, -1, 0.5)), ("ties", (1, 2, 1))):
        options = {"density": 0.5, "scale": 1.0}
        used = options if method == "ties" else {}
        made = soups.METHODS[method](*([] if method == "average" else [base]), models, weights, **used)
        np.testing.assert_allclose(made, by_loop(method, base, models, weights, **options), atol=1e-5)
    one = models[0]
    np.testing.assert_allclose(soups.slerp([one, one * np.float32(2)], [1, 1]), one * 1.5, rtol=1e-6)
    assert not soups.slerp([one * 0, one], [1, 0]).any()
    np.testing.assert_allclose(soups.ties(base, [one], [1], density=1), one, atol=1e-6)
    assert np.array_equal(soups.ties(base, [base, base], [1, 1]), base)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return model_file(tmp_path / "base.gguf")


@pytest.fixture
def runs(base: Path, tmp_path: Path) -> list[Path]:
    """Two adapters of one base, of different matrices but one."""
    checkpoint, random = load.read_checkpoint(base), np.random.default_rng(0)
    folders = []
    for n, layers in enumerate(((0, 1), (1, 2))):
        changes = {}
        for layer in layers:
            name = f"blocks.{layer}.mlp.up.weight"
            rows, columns = checkpoint.tensors.later(name).shape
            a, b = (random.standard_normal(s).astype(np.float32) for s in ((2, columns), (rows, 2)))
            changes[name] = adapters.LowRank(a, b, 0.5)
        folders.append(tmp_path / f"run{n}")
        adapters.write_adapter(folders[-1], changes, checkpoint, str(base))
    return folders


def test_the_verb_adds_two_tasks_to_their_base(
    runs: list[Path], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soup"
    assert main(["merge", *map(str, runs), str(out), "--method", "task", "--weights", "1,-1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["method"] == "task" and document["models"] == list(map(str, runs))
    found, start = load.read_checkpoint(out).tensors, load.read_checkpoint(base)
    changes = [adapters.read_adapter(run, start) for run in runs]
    for name in start.tensors:
        expected = formats.unpack(start.tensors[name])
        for sign, each in zip((1, -1), changes, strict=True):
            change = each.get(name)
            expected = expected + sign * change.delta if isinstance(change, adapters.LowRank) else expected
        np.testing.assert_allclose(formats.unpack(found[name]), expected, atol=1e-5)
    average = tmp_path / "average.gguf"
    words = ["merge", *map(str, runs), str(average), "--method", "average", "--type", "q8_0"]
    text = tmp_path / "text.txt"
    text.write_text("the king and the queen " * 40)
    assert main([*words, "--text", str(text)]) == 0
    shown = capsys.readouterr().out
    assert "float    -> written" in shown and "adapter" not in shown
    assert cutaway.load(average).generate("the", max_tokens=2).ids


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "slerp", "--density", "0.5"], "--density is no option of slerp"),
        (["--method", "average", "--weights", "1,2,3"], "3 weights were given for 2 models"),
        (["--method", "average", "--weights", "1,x"], "write a number for each model"),
        (["--method", "average", "--weights", "1,-1"], "only task subtracts"),
        (["--method", "ties", "--density", "0"], "density is 0.0: it must be above 0"),
        (["--weights", "1,1"], "need a method"),
        ([], "need a method"),
    ],
)
def test_what_makes_no_soup(
    words: list[str], message: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", *map(str, runs), str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_models_are_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = load.read_checkpoint(base)
    with pytest.raises(UserError, match="exactly 2, and 3 were given"):
        soups.soup("slerp", [one] * 3, [1] * 3)
    with pytest.raises(UserError, match="another config"):
        soups.soup("average", [one, replace(one, config=replace(one.config, context=64))], [1, 1])
    assert main(["merge", str(base), str(base), str(tmp_path / "out"), "--method", "ties"]) == 2
    assert "they name no common one: add --model" in capsys.readouterr().err


def test_weights_are_made_one_at_a_time(base: Path) -> None:
    """Nothing is read before it is asked for, and then only that."""
    one, read = load.read_checkpoint(base), []

    class Counted(Tensors):
        def __getitem__(self, name: str) -> Any:
            read.append(name)
            return super().__getitem__(name)

    tensors = Counted({name: one.tensors.later(name) for name in one.tensors})
    made = soups.soup("average", [replace(one, tensors=tensors), one], [1, 1])
    assert not read
    assert np.array_equal(
        formats.unpack(made.tensors["norm.weight"]), formats.unpack(one.tensors["norm.weight"])
    )
    assert read == ["norm.weight"]
