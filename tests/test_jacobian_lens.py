"""The Jacobian lens: its matrices are those of a loop over autograd, hostile files are refused, and what
reads and edits by it does what the formulas say.
"""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway.cli import main
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.inspect import jacobian_file
from cutaway.inspect.edits import Add, check
from cutaway.inspect.jacobian_fit import fit, target_layer
from cutaway.inspect.jacobian_lens import JacobianLens, digest
from cutaway.inspect.jacobian_state import FIRST, Fit, Settings, merged
from cutaway.inspect.runtime_edits import unsupported_reason
from cutaway.inspect.subject import Subject
from cutaway.inspect.trace import Trace
from tests.small import WIDTH, Bytes, decoder, model_file

TEXTS = [
    list(b"all of it adds up to a sum, "),
    list(b"of which each part is one b"),
    list(b"a third text is read too!!"),
]


def subject_of(shape: str) -> Subject:
    return Subject.of(decoder(shape), Bytes())


def settings_of(subject: Subject, **more) -> Settings:
    return Settings(
        **{"model": digest(subject), "target": target_layer(subject.config), "rows": WIDTH} | more
    )


def fitted(subject: Subject, texts: list[list[int]], path: Path, **more) -> Fit:
    return fit(subject, texts, Fit.begin(settings_of(subject, **more), WIDTH), path)


def by_loop(model: torch.nn.Module, ids: list[int], layer: int, target: int) -> np.ndarray:
    """The mean over sources of the sum over targets from there on, one output number at a time."""
    row, pos = torch.tensor([ids]), torch.arange(len(ids))[None]
    names = [f"blocks.{layer}.out", f"blocks.{target}.out"]
    with tracing(model, *names, edit={names[0]: lambda x: x.detach().requires_grad_()}) as seen:
        model(row, pos)
    source, end = (seen[name] for name in names)
    valid = range(FIRST, len(ids) - 1)
    total = np.zeros((WIDTH, WIDTH))
    for later in valid:
        for i in range(WIDTH):
            (grad,) = torch.autograd.grad(end[0, later, i], source, retain_graph=True)
            for earlier in valid:
                if earlier <= later:
                    total[i] += grad[0, earlier].double().numpy()
    return total / len(valid)


@pytest.mark.parametrize("shape", ["llama", "gemma", "sandwich"])
def test_the_exact_estimator_is_a_loop_over_autograd(tmp_path: Path, shape: str) -> None:
    subject = subject_of(shape)
    texts = [TEXTS[0][:21], TEXTS[1][:19]]
    found = fitted(subject, texts, tmp_path / "lens.safetensors")
    for layer in range(found.settings.target):
        ours = found.mean[layer]
        theirs = np.mean(
            [by_loop(subject.pytorch.model, ids, layer, found.settings.target) for ids in texts], 0
        )
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
        assert np.abs(ours - np.eye(WIDTH)).max() > 1e-2


def test_a_sketch_of_the_whole_basis_is_exact_and_bfloat16_is_near(tmp_path: Path) -> None:
    subject = subject_of("llama")
    exact = fitted(subject, TEXTS[:1], tmp_path / "a").mean
    sketch = fitted(subject, TEXTS[:1] * 4, tmp_path / "b", rows=WIDTH // 4).mean
    assert np.allclose(sketch, exact, atol=1e-5 * np.abs(exact).max())
    part = fitted(subject, TEXTS[:1], tmp_path / "c", rows=WIDTH // 4).mean
    assert np.linalg.norm(part - exact) > 0.5 * np.linalg.norm(exact)
    rounded = fitted(subject, TEXTS[:1], tmp_path / "d", dtype="bfloat16").mean
    off = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0 < off < 0.02
    assert all(weight.requires_grad for weight in subject.pytorch.model.parameters())
    assert not any("forward" in vars(module) for module in subject.pytorch.model.modules())


def test_a_stopped_fit_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    subject, path = subject_of("llama"), tmp_path / "lens.safetensors"
    whole = fitted(subject, TEXTS, tmp_path / "whole.safetensors")

    def stop(state: Fit) -> None:
        if state.texts == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(subject, TEXTS, Fit.begin(whole.settings, WIDTH), path, each=stop)
    state = Fit.resume(path, whole.settings)
    assert state.texts == 2
    found = fit(subject, TEXTS, state, path)
    assert np.array_equal(found.mean, whole.mean) and found.error == whole.error > 0
    for wrong in (TEXTS[::-1], TEXTS[:1]):
        with pytest.raises(UserError, match="not the first of these"):
            fit(subject, wrong, Fit.resume(path, whole.settings), path)
    with pytest.raises(UserError, match="fitted with rows 32, and 8"):
        Fit.resume(path, settings_of(subject, rows=8))


def test_shards_merge_by_their_texts(tmp_path: Path) -> None:
    subject = subject_of("llama")
    whole = fitted(subject, TEXTS, tmp_path / "whole")
    parts = [tmp_path / "a", tmp_path / "b"]
    fitted(subject, TEXTS[:2], parts[0])
    fitted(subject, TEXTS[2:], parts[1])
    found = merged(parts)
    assert found.texts == 3
    assert all(np.allclose(found.matrices[i], whole.mean[i], atol=1e-6) for i in found.matrices)
    assert found.facts["error"] == pytest.approx(whole.error, rel=1e-5)
    with pytest.raises(UserError, match="the same texts"):
        merged([parts[0], parts[0]])
    fitted(subject_of("gemma"), TEXTS[:1], tmp_path / "c")
    with pytest.raises(UserError, match="another model"):
        merged([parts[0], tmp_path / "c"])


def lens_of(subject: Subject, seed: int = 0) -> JacobianLens:
    draw = np.random.default_rng(seed)
    layers = len(subject.config.blocks) - 1
    made = {i: draw.standard_normal((WIDTH, WIDTH)).astype(np.float32) for i in range(layers)}
    return JacobianLens(made, layers, 5, {"model": digest(subject)})


def test_files_are_read_back_and_those_of_other_models_refused(tmp_path: Path) -> None:
    subject = subject_of("llama")
    ours = lens_of(subject)
    for name, near in (("a.safetensors", 0), ("a.pt", 2e-3), ("a.gguf", 2e-2)):
        jacobian_file.save(tmp_path / name, ours)
        found = jacobian_file.load(tmp_path / name, subject)
        assert (found.texts, found.target, list(found.matrices)) == (5, 2, [0, 1])
        for layer, matrix in ours.matrices.items():
            assert np.allclose(found.matrices[layer], matrix, atol=near)
    theirs = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(theirs["J"]) == [0, 1] == theirs["source_layers"] and theirs["J"][0].dtype == torch.float16
    assert (theirs["n_prompts"], theirs["d_model"]) == (5, WIDTH)
    for shape, why in (("gpt2", "2 layers"), ("sandwich", "2 layers")):
        with pytest.raises(UserError, match=why):
            jacobian_file.load(tmp_path / "a.pt", subject_of(shape))
    other = Subject.of(decoder("llama", seed=1), Bytes())
    with pytest.raises(UserError, match="fitted to another model, of this one's shape"):
        jacobian_file.load(tmp_path / "a.safetensors", other)


class Runs:
    def __reduce__(self) -> tuple:
        return print, ("run",)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (Runs(), "would run '__builtin__.print'"),
        ({"J": {0: [1.0]}}, "no matrix of floats"),
        ({"J": {}}, "one square matrix a layer"),
        ({"J": {0: torch.ones(3, 4)}}, "one square matrix a layer"),
        ({"J": {0: torch.ones(3, 3)}, "source_layers": [1]}, "source_layers are not"),
        ({"J": {0: torch.ones(3, 3)}, "d_model": 4}, "d_model is 4"),
        ({"J": {0: torch.ones(3, 3)}, "n_prompts": -1}, "number of texts is -1"),
        ({"J": {0: torch.full((3, 3), torch.nan)}}, "NaN"),
        ({"J": {0: torch.full((3, 3), 3e38)}}, "NaN or beyond"),
        ({"J": {-1: torch.ones(3, 3)}}, "of no layer"),
        ({"J": {0: torch.ones(3, 3).T[1:]}}, "rows do not follow"),
        ([1, 2], "no dict J"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_hostile_artefacts_are_refused(tmp_path: Path, capsys, what, why: str) -> None:
    torch.save(what, tmp_path / "lens.pt")
    with pytest.raises(UserError, match=why):
        jacobian_file.load(tmp_path / "lens.pt")
    assert capsys.readouterr().out == ""


def test_damaged_artefacts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lens.pt"
    jacobian_file.save(path, lens_of(subject_of("llama")))
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    read = 0
    for _ in range(150):
        broken = bytearray(whole)
        for at in draw.integers(len(broken), size=4):
            if draw.random() < 0.7:
                at = int(draw.choice([at % 600, len(broken) - 1 - at % 900]))
            broken[at] = draw.integers(256)
        path.write_bytes(broken[: int(draw.integers(len(broken)))] if draw.random() < 0.2 else broken)
        try:
            jacobian_file.load(path)
            read += 1
        except UserError:
            pass
    assert read < 150
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"J": {}}, 2) + b"\0" * 5000)
    with pytest.raises(UserError, match="compressed"):
        jacobian_file.load(path)
    jacobian_file.save(tmp_path / "b.safetensors", lens_of(subject_of("llama")))
    data = (tmp_path / "b.safetensors").read_bytes().replace(b'\\"target\\": 2', b'\\"target\\": 0')
    (tmp_path / "b.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="target is 0"):
        jacobian_file.load(tmp_path / "b.safetensors")


def test_a_lens_reads_each_layer_through_its_matrix() -> None:
    subject = subject_of("gemma")
    ours = lens_of(subject)
    trace = Trace.of(subject.pytorch.model, Bytes(), TEXTS[0])
    found = trace.lens(ours)
    assert found.names == ("blocks.0.out", "blocks.1.out", "blocks.2.out")
    for row, layer in enumerate((0, 1)):
        stream = torch.from_numpy(trace[f"blocks.{layer}.out"] @ ours.matrices[layer].T)
        logits = subject.pytorch.model.logits(stream[None])[0]
        assert np.array_equal(found.ids[row], logits.argmax(-1).numpy())
    assert np.array_equal(found.ids[2], trace.logits.argmax(-1))
    control = trace.lens(ours.random())
    assert not np.array_equal(control.ids[:2], found.ids[:2])


def test_interventions_are_their_formulas() -> None:
    subject = subject_of("llama")
    ours, ids, at = lens_of(subject), TEXTS[0], "blocks.1.out"
    model = subject.pytorch.model
    h = Trace.of(model, Bytes(), ids)[at]
    directions = model.embedding.weight.detach().numpy()[[65, 66]] @ ours.matrices[1]
    both = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T
    assert np.allclose(ours.directions(subject, ["A", 66], 1), both.T, atol=1e-6)
    found = Trace.of(model, Bytes(), ids, edit=ours.steer(subject, "A", 0.5, [1]))[at]
    assert np.allclose(found, h + 0.5 * np.linalg.norm(h, axis=1, keepdims=True) * both[:, 0], atol=1e-4)
    found = Trace.of(model, Bytes(), ids, edit=ours.swap(subject, "A", "B", [1]))[at]
    c = np.linalg.pinv(both) @ h.T
    assert np.allclose(found, h + (both @ (c[::-1] - c)).T, atol=1e-4)
    found = Trace.of(model, Bytes(), ids, edit=ours.project_out(subject, ["A", "B"], [1]))[at]
    assert np.allclose(found, h - (both @ np.linalg.pinv(both) @ h.T).T, atol=1e-4)
    deep = JacobianLens(dict.fromkeys(range(9), ours.matrices[1]), 9, 1)
    assert deep.band() == [3, 4, 5, 6, 7, 8] and deep.swapped() == [3, 4, 5, 6, 7]
    assert deep.swapped([2, 3]) == [2, 3]
    with pytest.raises(UserError, match="2 tokens"):
        ours.directions(subject, ["AB"], 1)
    with pytest.raises(UserError, match="layers are 0 to 1"):
        ours.steer(subject, "A", 1.0, [2])
    assert "times the norm" in (unsupported_reason(subject.config, ours.steer(subject, "A", 1.0)) or "")
    assert unsupported_reason(subject.config, ours.swap(subject, "A", "B")) is None
    with pytest.raises(UserError, match="names no direction"):
        check(subject.config, Add(1, [0.0] * WIDTH, relative=True), 4)
    assert json.dumps(ours.facts)


def test_the_verb_fits_shows_merges_and_converts(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_file(tmp_path / "tiny.gguf")
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog " * 8)

    def run(words: str, code: int = 0) -> str:
        assert main(["lens", *words.split()]) == code
        out, err = capsys.readouterr()
        return out if code == 0 else err

    fit_by = "fit tiny.gguf --texts t.txt --tokens 20 --threads 1"
    assert "from 2 texts" in run(f"{fit_by} --count 2 --output a.safetensors")
    assert "from 3 texts" in run(f"{fit_by} --count 3 --output a.safetensors")
    for i in (1, 2):
        run(f"{fit_by} --count 4 --shard {i}/2 --output part{i}.safetensors")
    assert "a lens of 4 texts" in run("merge part1.safetensors part2.safetensors --output b.safetensors")
    run(f"{fit_by} --count 4 --output whole.safetensors")
    ours, whole = (jacobian_file.load(Path(name)) for name in ("b.safetensors", "whole.safetensors"))
    assert np.allclose(ours.matrices[0], whole.matrices[0], atol=1e-5)
    run("convert b.safetensors --output b.pt")
    run("convert b.safetensors --layers 1 --output b.gguf")
    assert [*jacobian_file.load(Path("b.gguf")).matrices] == [1]
    shown = json.loads(run("show b.pt hello --model tiny.gguf --json"))["lenses"]
    assert [len(shown[kind]) for kind in ("jacobian", "logit", "random")] == [3, 4, 3]
    assert "fitted to 4 texts, exact, float32" in run("show b.safetensors")
    for words, why in (
        (f"{fit_by} --output b.pt", "convert"),
        (f"{fit_by} --rows 33 --output c", "1 to 32"),
        (f"{fit_by} --shard 3/2 --output c", "write I/N"),
        (f"{fit_by} --count 1 --output a.safetensors", "not the first of these"),
        ("fit no.gguf --texts t.txt --tokens 17 --output c", "--tokens is 17: it must be 18 or more"),
        ("fit no.gguf --texts t.txt --rows 0 --output c", "--rows is 0: it must be 1 or more"),
        ("fit tiny.gguf --texts t.txt --tokens 513 --output c", "18 to 512"),
        ("fit tiny.gguf --texts tiny.gguf --output c", "no texts of 64 tokens"),
        ("show t.txt", "not a safetensors file"),
        ("show b.pt hello --model tiny.gguf --top 99999999", "--top is 99999999: it goes from 1 to 1000"),
        ("show jacobian hello --model tiny.gguf", "has no Jacobian lens yet"),
    ):
        assert why in run(words, 2), words
