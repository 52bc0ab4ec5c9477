"""Ready studies: each is what its definition, written by hand on a small model, gives."""

import inspect
import json
from pathlib import Path

import networkx
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.inspect import (
    gradients,
    pairs,
    patching,
    probes,
    steering,
    sweep_pytorch,
    tuned_lens,
    tuned_maps,
)
from cutaway.inspect import head_scores as head_scores_module
from cutaway.inspect.arrays import log_softmax
from cutaway.inspect.edits import Ablate, Add, Patch
from cutaway.inspect.head_scores import head_scores
from cutaway.inspect.logit_attribution import logit_attribution
from cutaway.inspect.result import Result
from cutaway.inspect.subject import Subject
from cutaway.inspect.trace import Trace, trace_texts
from tests.pages import charts
from tests.small import WIDTH, Bytes, decoder
from tests.test_inspect import planted

TEXT, OTHER = list(b"all of it adds"), list(b"all of us add!")
ANSWERS = (7, 9)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.of(decoder(), Bytes())


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[-1, 9] - logits[-1, 7]


def recovered(subject: Subject, edit) -> float:
    here, there, now = (
        float(metric(trace_texts(subject, [ids], ["logits"], by)[0].logits))
        for ids, by in ((TEXT, ()), (OTHER, ()), (TEXT, edit))
    )
    return (now - here) / (there - here)


@pytest.mark.parametrize("over", ["residual", "attention", "mlp", "heads"])
def test_patching_is_a_patch_a_cell(subject: Subject, over) -> None:
    found = patching.patching(subject, TEXT, OTHER, over, answers=ANSWERS)
    assert found.facts["metric"] == "'\\t' - '\\x07'"
    if over == "heads":
        assert found[1, 2] == pytest.approx(recovered(subject, Patch(1, OTHER, "head", 2)), abs=1e-4)
        some = patching.patching(subject, TEXT, OTHER, over, metric=metric, positions=[8, -1])
        assert some[1, 2] == pytest.approx(recovered(subject, Patch(1, OTHER, "head", 2, [8, -1])), abs=1e-4)
        last = patching.patching(subject, TEXT, OTHER, over, metric=metric, layers=[-1, 1])
        assert last.axes["layer"] == [2, 1] and last.values == pytest.approx(found[[2, 1]], abs=1e-5)
        return
    assert found.facts["positions"] == [i for i in range(14) if TEXT[i] != OTHER[i] or i == 13]
    at = found.facts["positions"].index(8)
    assert found[1, at] == pytest.approx(recovered(subject, Patch(1, OTHER, over, positions=[8])), abs=1e-4)
    if over == "residual":
        assert_close(found[-1, -1], 1.0, rtol=0, atol=1e-4)  # the last token's last residual is the answer
        assert_close(found[-1, :-1], np.zeros(found.values.shape[1] - 1), rtol=0, atol=1e-4)


def test_a_study_runs_under_the_subjects_edits(subject: Subject) -> None:
    without = patching.patching(subject.edited(Ablate(1, "head", 2)), TEXT, OTHER, "heads", metric=metric)
    assert without[1, 2] == pytest.approx(0, abs=1e-5), "it was ablated, so its patch is ablated too"
    assert abs(without[1, 1]) > 1e-3


def test_answers_are_the_likeliest_unless_they_are_given(subject: Subject) -> None:
    found = patching.patching(subject, TEXT, OTHER)
    logits = [Trace.of(subject.pytorch.model, Bytes(), ids).logits[-1] for ids in (TEXT, OTHER)]
    assert found.facts["answers"] == tuple(int(one.argmax()) for one in logits)
    for texts, options, why in (
        ((TEXT, TEXT[:5]), {}, "14 tokens, the other 5"),
        ((TEXT, TEXT), {}, "the same"),
        ((TEXT, OTHER), {"answers": (3, 3)}, "give answers="),
        ((TEXT, OTHER), {"answers": ("ab", 3)}, "'ab' is 2 tokens"),
        ((TEXT, OTHER), {"metric": lambda _: float("nan")}, "the metric is nan for this text"),
        ((TEXT, OTHER), {"positions": [14]}, "no position 14"),
        ((TEXT, OTHER), {"layers": [3]}, "no layer 3: this model's layers are 0 to 2"),
        ((TEXT, OTHER), {"layers": []}, "layers is empty"),
    ):
        with pytest.raises(UserError, match=why):
            patching.patching(subject, *texts, **options)
    layers = inspect.unwrap(patching._layers)  # past the types that the tests check
    for wrong in (3, ["1"], "1"):
        with pytest.raises(UserError, match="layers is a list of numbers, and this is"):
            layers(subject, wrong)
    with pytest.raises(UserError, match=r"answers are two tokens.*these are 1"):
        inspect.unwrap(pairs._pair)(subject, TEXT, OTHER, (3,), None, ())


def test_a_heads_paths_are_those_of_the_definition(subject: Subject) -> None:
    """All other heads frozen, MLPs computed anew; by hand, with torch's own hooks."""
    model, zs = subject.pytorch.model, [f"blocks.{i}.attention.z" for i in range(3)]
    ours, theirs = (subject.pytorch.run([ids], zs) for ids in (TEXT, OTHER))
    direct = patching.path_patching(subject, TEXT, OTHER, metric=metric)
    whole = patching.patching(subject, TEXT, OTHER, "heads", metric=metric)
    assert_close(direct[-1], whole[-1], rtol=1e-4, atol=1e-4), "no head follows the last layer's"
    some = patching.path_patching(subject, TEXT, OTHER, metric=metric, layers=[1])
    assert some.values == pytest.approx(direct[1:2], abs=1e-5)

    def frozen(sender: int | None) -> list:
        handles = []
        for i, name in enumerate(zs):
            z = ours[name].clone()
            if i == 0 and sender is not None:
                z[:, sender] = theirs[name][:, sender]
            given = z.transpose(1, 2).flatten(2)
            hook = model.blocks[i].attention.out.register_forward_pre_hook(lambda _, x, given=given: (given,))
            handles.append(hook)
        return handles

    handles = frozen(1)
    with tracing(model, "blocks.2.attention.q") as seen:
        logits = subject.pytorch.run([TEXT], ["logits"])["logits"][0]
    for handle in handles:
        handle.remove()
    here, there = (float(metric(Trace.of(model, Bytes(), ids).logits)) for ids in (TEXT, OTHER))
    assert direct[0, 1] == pytest.approx((float(metric(logits)) - here) / (there - here), abs=1e-4)
    query = seen["blocks.2.attention.q"][0, 3]

    def received(q: torch.Tensor) -> torch.Tensor:
        q = q.clone()
        q[:, 3] = query
        return q

    through = patching.path_patching(subject, TEXT, OTHER, [("blocks.2.attention.q", 3)], metric=metric)
    assert through[0, 1] == pytest.approx(recovered(subject, {"blocks.2.attention.q": received}), abs=1e-4)
    assert_close(through[2], np.zeros(4), rtol=0, atol=1e-5), "the receiver's own layer cannot reach it"
    two = [("blocks.2.attention.q", 3), ("blocks.2.attention.q", 1)]
    every = patching.path_patching(subject, TEXT, OTHER, [("blocks.2.attention.q", None)], metric=metric)
    both, other = (patching.path_patching(subject, TEXT, OTHER, one, metric=metric) for one in (two, two[1:]))
    assert abs(both[0, 1] - through[0, 1]) > 1e-6 and abs(both[0, 1] - other[0, 1]) > 1e-6
    four = [("blocks.2.attention.q", head) for head in range(4)]
    assert_close(patching.path_patching(subject, TEXT, OTHER, four, metric=metric).values, every.values)


@pytest.mark.parametrize("over", ["residual", "heads"])
def test_attribution_patching_is_the_patchs_derivative(over) -> None:
    subject, step = Subject.of(decoder().double(), Bytes()), 1e-6
    found = gradients.attribution_patching(subject, TEXT, OTHER, over, metric=metric)
    if over == "heads":
        rate = recovered(subject, Patch(1, OTHER, "head", 2, strength=step)) / step
        assert found[1, 2] == pytest.approx(rate, rel=1e-3)
    else:
        rate = recovered(subject, Patch(1, OTHER, positions=[8], strength=step)) / step
        assert found[1, 8] == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(("baseline", "steps"), [(None, 48), (OTHER, 12)])
def test_integrated_gradients_sum_to_the_difference(subject: Subject, baseline, steps) -> None:
    found = gradients.integrated_gradients(subject, TEXT, metric, baseline, "blocks.1.out", steps)
    start = {"blocks.1.out": torch.zeros_like} if baseline is None else Patch(1, OTHER)
    ends = [float(metric(trace_texts(subject, [TEXT], ["logits"], by)[0].logits)) for by in ((), start)]
    assert found.facts["difference"] == pytest.approx(ends[0] - ends[1], abs=1e-4)
    assert found.values.sum() == pytest.approx(ends[0] - ends[1], rel=0.03 if baseline is None else 1e-3)
    with pytest.raises(TypeError, match="baseline"):
        gradients.integrated_gradients(subject, TEXT, metric)  # pyright: ignore[reportCallIssue]
    if baseline is not None:
        same = [i for i in range(14) if TEXT[: i + 1] == OTHER[: i + 1]]
        assert_close(found[same], np.zeros(len(same))), "tokens that are the same have no part"


def test_integrated_gradients_that_miss_the_difference_warn(subject: Subject) -> None:
    with pytest.warns(UserWarning, match="do not rely on them; give a baseline text of equal length"):
        gradients.integrated_gradients(subject, TEXT, metric, None, steps=2)
    seen: list[int] = []
    gradients.integrated_gradients(
        subject, TEXT, metric, OTHER, "blocks.1.out", 12, progress=lambda *at: seen.append(at[1])
    )
    assert seen == list(range(1, 13))


def test_a_stopped_sweep_goes_on_and_other_studies_are_refused(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the file are taken, a half-written one and those that lack are computed."""
    edit, file = Add(1, [1.0] * WIDTH), tmp_path / "rows.jsonl"

    def patched(of: Subject = subject, metric=metric, **options):
        return patching.patching(of, TEXT, OTHER, "heads", metric=metric, **options)

    def paths(**options):
        return patching.path_patching(subject, TEXT, OTHER, metric=metric, **options)

    def steered(of: Subject = subject, **options):
        return steering.sweep(of, edit, [TEXT], metric, [0.0, 1.0, 2.0], text=OTHER, **options)

    for study in (patched, paths, steered):
        file.unlink(missing_ok=True)
        monkeypatch.setattr(sweep_pytorch, "WHOLE", 4)
        whole = study()

        def stop(_doing: str, done: int, total: int) -> None:
            if 3 * done == 2 * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            study(resume=file, progress=stop)
        lines = file.read_text().splitlines()
        assert len(lines) == 3
        file.write_text(
            "\n".join([lines[0], "[0, [" + ", ".join(["0.5"] * len(whole[0])) + "]]", lines[2][:9]])
        )
        again = study(resume=file)
        assert_close(again[0], np.full(len(whole[0]), 0.5)), "the first row is the file's"
        assert_close(again[1:], whole[1:])
        assert_close(study(resume=file).values, again.values)
    for other in (patched, paths):
        with pytest.raises(UserError, match="is of another study, it differs in study"):
            other(resume=file)
    file.unlink()
    patched(resume=file)
    with pytest.raises(UserError, match="it differs in here, there"):
        patched(subject.edited(Ablate(0)), resume=file)
    with pytest.raises(UserError, match="it differs in positions"):
        patched(positions=[-1], resume=file)
    file.write_text("my notes")
    with pytest.raises(UserError, match="holds no rows of a study"):
        patched(resume=file)
    assert file.read_text() == "my notes"


def test_a_steering_file_takes_a_vector_a_layer_and_nothing_else(tmp_path: Path) -> None:
    named, file = Add(name="blocks.1.out", vector=[1.0] * WIDTH, strength=2.0), tmp_path / "s.safetensors"
    steering.save(file, [named, Add(0, [3.0] * WIDTH)])
    assert {one.layer: one.vector[0] for one in steering.load(file)} == {0: 3.0, 1: 2.0}
    for wrong in (
        [Add(name="embed", vector=[1.0])],
        [Add(1, [1.0], positions=[2])],
        [named, Add(1, [1.0] * WIDTH)],
    ):
        with pytest.raises(UserError, match="one vector a layer"):
            steering.save(tmp_path / "no.safetensors", wrong)


def test_an_edges_effect_is_its_derivative_and_the_graph_is_read_by_networkx(tmp_path: Path) -> None:
    model, step = decoder().double(), 1e-6
    subject = Subject.of(model, Bytes())
    made = gradients.circuit(subject, TEXT, OTHER, metric=metric)
    assert len(made.edges) == (1 + 5) + (6 + 10) + (11 + 15) + 16, (
        "senders before each attention and MLP, and all"
    )
    found = {edge[:2]: edge[2] for edge in made.edges}
    ours, theirs = trace_texts(
        subject, [TEXT, OTHER], ["blocks.*.attention.z", "blocks.*.mlp.down", "*.middle", "*.out"]
    )
    z = theirs["blocks.0.attention.z"][1] - ours["blocks.0.attention.z"][1]
    head = torch.from_numpy(z).double() @ model.blocks[0].attention.out.weight[:, 8:16].T
    mlp = torch.from_numpy(theirs["blocks.1.mlp.down"] - ours["blocks.1.mlp.down"]).double()
    for edge, norm, stream, delta in (
        (("0.1", "mlp 2"), "blocks.2.mlp_norm", "blocks.2.middle", head),
        (("0.1", "attention 1"), "blocks.1.attention_norm", "blocks.0.out", head),
        (("mlp 1", "logits"), "norm", "blocks.2.out", mlp),
    ):
        with torch.no_grad():
            moved = model.get_submodule(norm)(torch.from_numpy(ours[stream]).double() + step * delta)[None]
        rate = recovered(subject, {norm: lambda _, moved=moved: moved}) / step
        assert found[edge] == pytest.approx(rate, rel=1e-3, abs=1e-6)
    assert (
        ("0.1", "attention 0") not in found and ("mlp 1", "mlp 1") not in found and ("0.1", "mlp 0") in found
    )
    few = made.strongest(5)
    for name in ("c.json", "c.dot"):
        few.save(tmp_path / name)
    graph = networkx.node_link_graph(json.loads((tmp_path / "c.json").read_text()), edges="links")
    assert graph.number_of_edges() == 5 and graph.edges[few.edges[0][:2]]["weight"] == few.edges[0][2]
    assert (tmp_path / "c.dot").read_text().count("->") == 5
    with pytest.raises(UserError, match="dot or"):
        few.save(tmp_path / "c.png")


def test_logit_attributions_add_up_by_head_neuron_and_position(subject: Subject) -> None:
    trace = Trace.of(subject.pytorch.model, Bytes(), TEXT)
    whole = trace.attribution(7)
    by = {kind: logit_attribution(subject, TEXT, [7, 9], kind) for kind in ("head", "neuron", "position")}
    assert_close(by["head"][0], np.stack(list(whole.heads)))
    assert_close(by["neuron"][0].sum(1), whole.mlps, rtol=1e-4, atol=1e-5)
    assert_close(by["position"][0].sum(1), by["head"][0].sum(1), rtol=1e-4, atol=1e-5)
    lead = logit_attribution(subject, TEXT, [7], against=9)
    assert_close(lead[0], by["head"][0] - by["head"][1], rtol=1e-4, atol=1e-5)


def test_a_tuned_lens_starts_as_the_logit_lens_and_comes_nearer(subject: Subject, tmp_path: Path) -> None:
    texts = [TEXT, OTHER, list(b"what a lens is trained on")]
    plain, tuned = (tuned_lens.train(subject, texts, steps, 32, 0.01) for steps in (0, 25))
    trace = Trace.of(subject.pytorch.model, Bytes(), TEXT)
    assert np.array_equal(trace.lens(plain).ids, trace.lens().ids)
    assert tuned.losses[-1] < 0.7 * tuned.losses[0]
    assert trace.lens(tuned).final[:-1].mean() > trace.lens().final[:-1].mean()
    tuned.save(tmp_path / "lens.safetensors")
    again = tuned_maps.load(tmp_path / "lens.safetensors", subject)
    assert np.array_equal(trace.lens(again).final, trace.lens(tuned).final)
    with pytest.raises(UserError, match="no tuned lens of this model"):
        tuned_maps.load(tmp_path / "lens.safetensors", Subject.of(decoder("gpt2"), Bytes()))
    steering.save(tmp_path / "other.safetensors", [Add(0, [1.0] * 32)])
    with pytest.raises(UserError, match="no tuned lens of this model"):
        tuned_maps.load(tmp_path / "other.safetensors", subject)


def test_a_stopped_lens_training_goes_on_to_the_same_bits(subject: Subject, tmp_path: Path) -> None:
    texts, kept = [TEXT, OTHER], tmp_path / "maps"
    whole = tuned_lens.train(subject, texts, 45, 32, 0.01)

    def stop(task: str, done: int, total: int) -> None:
        if done == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned_lens.train(subject, texts, 45, 32, 0.01, resume=kept, progress=stop)
    done: list[int] = []
    again = tuned_lens.train(
        subject, texts, 45, 32, 0.01, resume=kept, progress=lambda _, step, __: done.append(step)
    )
    assert done[0] == 21 and again.losses == whole.losses
    assert np.array_equal(again.weights, whole.weights) and np.array_equal(again.biases, whole.biases)
    with pytest.raises(UserError, match="another training"):
        tuned_lens.train(subject, texts, 45, 32, 0.02, resume=kept)
    with pytest.raises(UserError, match="45 steps already"):
        tuned_lens.train(subject, texts, 30, 32, 0.01, resume=kept)


def test_head_scores_are_means_over_the_patterns(subject: Subject) -> None:
    asked = {"length": 5, "texts": 2, "seed": 3}
    patterns = head_scores_module._patterns(subject, **asked)
    previous, induction = (
        of(subject, **asked)
        for of in (head_scores_module.previous_token_scores, head_scores_module.induction_scores)
    )
    for layer, p in enumerate(patterns):  # [b h t s]
        for h in range(p.shape[1]):
            before = [float(p[b, h, t, t - 1]) for b in range(2) for t in range(1, 10)]
            after = [float(p[b, h, t, t - 5 + 1]) for b in range(2) for t in range(5, 10)]
            assert float(previous[layer][h]) == pytest.approx(np.mean(before), rel=1e-4)
            assert float(induction[layer][h]) == pytest.approx(np.mean(after), rel=1e-4)


def test_steering_is_as_strong_as_it_was_saved_by_default() -> None:
    assert inspect.signature(steering.load).parameters["strength"].default == 1.0
    assert inspect.signature(steering.sweep).parameters["strengths"].default == (0.0, 0.5, 1.0, 2.0, 4.0)


def test_head_scores_see_an_edit() -> None:
    subject = Subject.of(planted(), Words())
    whole = head_scores(subject, "induction", 12)
    assert whole.top(1)[0][:2] == (1, 2) and whole[1, 2] > 0.7
    assert head_scores(subject, "previous", 12).top(1)[0][:2] == (0, 1)
    assert head_scores(subject.edited(Ablate(0, "head", 1)), "induction", 12)[1, 2] < 0.2

    def without(z: torch.Tensor) -> torch.Tensor:
        return z * (torch.arange(z.shape[1]) != 1)[:, None, None]

    with tracing(subject.pytorch.model, edit={"blocks.0.attention.z": without}):
        assert head_scores(subject, "induction", 12)[1, 2] < 0.2, "a ready study inside tracing"


class Words(Bytes):
    def __len__(self) -> int:
        return 40


def test_a_steering_sweep_has_the_metric_and_its_price(subject: Subject) -> None:
    edit = Add(1, [1.0] * WIDTH)
    found = steering.sweep(subject, edit, [TEXT, OTHER], metric, [0.0, 2.0], text=TEXT)
    for row, strength in zip(found.values, (0.0, 2.0), strict=True):
        moved = [
            Trace.of(subject.pytorch.model, Bytes(), ids, edit=Add(1, [strength] * WIDTH))
            for ids in (TEXT, OTHER)
        ]
        assert row[0] == pytest.approx(np.mean([float(metric(trace.logits)) for trace in moved]), abs=1e-4)
        chances = log_softmax(moved[0].logits[:-1].astype(np.float64))[range(13), TEXT[1:]]
        assert row[1] == pytest.approx(np.exp(-chances.mean()), rel=1e-4)


def test_a_probe_finds_what_an_activation_holds(subject: Subject) -> None:
    draw = np.random.default_rng(0)
    texts = [[*draw.integers(1, 256, 5).tolist(), int(label)] for label in (65, 66) * 20]
    labels = ["a" if text[-1] == 65 else "b" for text in texts]
    found = probes.probe(subject, texts, labels, folds=4)
    assert found.axes["activation"] == [f"blocks.{i}.out" for i in range(3)] and found[0] > 0.75
    assert probes.probe(subject, texts, labels, ["embed"], folds=4)[0] == 1.0, "the label is the last token"
    assert probes.probe(subject, texts, draw.permutation(labels).tolist(), ["blocks.0.out"], folds=4)[0] < 0.7
    assert found.facts["chance"] == 0.5
    direction = found.facts["directions"]["blocks.0.out"]
    values = trace_texts(subject, texts, ["blocks.0.out"]).at("blocks.0.out") @ np.array(direction.vector)
    assert values[1::2].mean() > values[::2].mean(), "it points to the second label"
    with pytest.raises(UserError, match="4 texts or more"):
        probes.probe(subject, texts[:4], labels[:4], folds=4)


def test_a_result_shows_itself(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(2, 3, 2) - 6
    made = Result(values, {"token": ["<a>", "b"], "layer": range(3), "head": range(2)}, "a <study>", {"n": 3})
    assert made.top(2) == [("<a>", 0, 0, -6.0), ("<a>", 0, 1, -5.0)] and np.asarray(made)[1, 2, 1] == 5
    shown = made.show(1)
    assert "a <study> (n 3)" in repr(shown) and "5.00" in repr(shown) and "-6.00" not in repr(shown)
    assert "A &lt;study&gt;" in shown.html and "<study>" not in shown._repr_html_()
    [chart] = charts(shown.html)
    assert chart["values"] == made.values[1].tolist() and chart["columns"]["title"] == "head"
    assert shown.save(tmp_path / "s.html").read_text().startswith("<!doctype html>")
    assert (
        made.to_pandas()["b", 2, 1] == 5 and float(made.to_xarray().sel(token="b", layer="2", head="1")) == 5
    )
    wide = Result(np.ones((2, 1500)), {"layer": range(2), "neuron": range(1500)}, "wide")
    assert (
        "60 of 1,500 columns" in repr(wide.show()) and len(charts(wide.show().html)[0]["values"][1]) == 1500
    )
    with pytest.raises(UserError, match="indices of 1 axes, and these are 2"):
        made.show(1, 2)


@pytest.mark.parametrize(
    ("study", "why"),
    [
        (
            lambda of: patching.path_patching(
                of, TEXT, OTHER, [("blocks.2.attention.q", 40)], answers=ANSWERS
            ),
            "head 40",
        ),
        (
            lambda of: patching.patching(of, TEXT, OTHER, metric=lambda logits: logits[-1]),
            "it must give one number",
        ),
        (lambda of: logit_attribution(of, TEXT, []), "one token or more"),
        (lambda of: tuned_lens.train(of, []), "there are no texts"),
        (lambda of: Result(np.ones(2), {"layer": [0, 1]}, "a").top(-1), "count is -1"),
        (lambda of: gradients.circuit(of, TEXT, OTHER, answers=ANSWERS).strongest(-1), "count is -1"),
    ],
    ids=["head", "metric", "tokens", "texts", "top", "strongest"],
)
def test_what_a_study_cannot_be_of_is_refused(subject: Subject, study, why: str) -> None:
    with pytest.raises(UserError, match=why):
        study(subject)
