"""Fine-tuning: which tokens are trained, packing, accumulation, a run and its adapter."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.cli import main
from cutaway.data import run_tokenizer
from cutaway.data.conversations import Example, Labelled, Pair, Reader
from cutaway.data.example_packing import Packed, placed
from cutaway.data.packing import stacked
from cutaway.errors import UserError
from cutaway.model.decoder import Decoder
from cutaway.position.scaling import Linear, YaRN
from cutaway.quantization import formats
from cutaway.train import config as train_config
from cutaway.train import device, examples
from cutaway.train import run as training_run
from cutaway.train.adapters import dora, ia3, lora
from cutaway.train.flops import Operations, per_token, spans
from cutaway.train.objectives import distill, next_token, reward_model
from cutaway.train.recipes import finetune
from cutaway.train.trainable import Trainable, TrainingBatch
from cutaway.train.training import Training
from cutaway.weights import adapters, build, load, peft_names, safetensors, save
from tests.training import TEMPLATE, Quiet, chatting_model, conversations, model, pairs

END = run_tokenizer.END
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": " Hé! "},
    {"role": "user", "content": f"say {END}"},
    {"role": "assistant", "thoughts": "hm", "content": "no"},
]


def shown(example: Example) -> str:
    """The trained stretches of an example, each in brackets."""
    tokenizer, out, before = run_tokenizer.of_bytes(), b"", False
    for id, trained in zip(example.ids.tolist(), example.trained.tolist(), strict=True):
        out += (
            b"[" if trained and not before else b"]" if before and not trained else b""
        ) + tokenizer.token_bytes(id)
        before = trained
    return (out + (b"]" if before else b"")).decode()


@pytest.fixture
def reader() -> Reader:
    return Reader(run_tokenizer.of_bytes(), TEMPLATE)


def test_each_turn_of_the_assistant_is_trained_with_its_end(reader: Reader) -> None:
    example = reader.example({"messages": TALK}, "here")
    assert shown(example) == (
        f"user: hi{END}\nassistant: [Hé!{END}]\nuser: say {END}{END}\nassistant: [(hm) no{END}]\n"
    )
    last = example.ids[np.flatnonzero(example.trained)[-1]]
    assert int(last) in reader.ends
    typed = [id for id, t in zip(example.ids, example.trained, strict=True) if id == reader.tokenizer.eos]
    assert len(typed) == len(TALK), "what a user typed is no end token"


def test_a_conversational_prompt_is_not_trained(reader: Reader) -> None:
    example = reader.example({"prompt": TALK[:3], "completion": TALK[3:]}, "here")
    assert shown(example).count("[") == 1 and "assistant: Hé!" in shown(example)


def test_texts(reader: Reader) -> None:
    assert shown(reader.example({"prompt": "2+2=", "completion": "4"}, "here")) == f"{END}2+2=[4{END}]"
    assert shown(reader.example({"text": "ab"}, "here")) == f"{END}[ab{END}]"


def test_pairs_may_leave_the_prompt_out(reader: Reader) -> None:
    other = [*TALK[:3], {"role": "assistant", "content": "yes"}]
    pair = reader.pair({"chosen": TALK, "rejected": other}, "here")
    assert shown(pair.chosen).count("[") == shown(pair.rejected).count("[") == 1
    assert f"[yes{END}]" in shown(pair.rejected)
    assert reader.labelled({"prompt": "a", "completion": "b", "label": False}, "here").label is False


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"mesages": []}, "has none of messages"),
        ({"messages": []}, "list of messages"),
        ({"messages": [{"content": "x"}]}, "list of messages"),
        ({"messages": TALK, "chat_template_kwargs": 3}, "entries by name"),
        ({"messages": TALK, "chat_template_kwargs": {"steering": "flag"}}, "not an example's to set"),
        ({"messages": TALK, "chat_template_kwargs": {"a_token": "x"}}, "not an example's to set"),
        ({"messages": TALK, "tools": "[{"}, "not JSON"),
    ],
)
def test_rows_that_are_none(row: dict[str, Any], message: str, reader: Reader) -> None:
    with pytest.raises(UserError, match=f"here.*{message}"):
        reader.example(row, "here")


def test_a_model_without_a_template_takes_no_conversation() -> None:
    with pytest.raises(UserError, match="no chat template"):
        Reader(run_tokenizer.of_bytes(), None).example({"messages": TALK}, "here")


# ---- packing and accumulation ------------------------------------------------------------------------------


def drawn(lengths: list[int], seed: int = 0) -> list[Example]:
    """Random examples of these lengths, about half of each trained."""
    draw = np.random.default_rng(seed)
    made = [Example(draw.integers(0, 256, n).astype(np.int32), draw.random(n) < 0.5) for n in lengths]
    for example in made:
        example.trained[-1] = True
    return made


def gradients(batches: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss of micro-batches, and its gradient."""
    torch.manual_seed(0)
    trainable = Trainable(
        Decoder(model(context=128)), next_token.Config(), torch.ones(320, dtype=torch.int64)
    )
    whole = sum(batch.weight for batch in batches)
    total = 0.0
    for batch in batches:
        loss = trainable(batch)[0] / whole
        loss.backward()
        total += loss.item()
    return total, {n: p.grad for n, p in trainable.model.named_parameters() if p.grad is not None}


def test_every_example_has_a_row_and_none_is_cut() -> None:
    sizes = np.random.default_rng(1).integers(1, 64, 200).tolist()
    rows = placed(sizes, 64)
    assert sorted(n for row in rows for n in row) == list(range(200))
    assert all(sum(sizes[n] for n in row) <= 64 for row in rows)
    assert len(rows) <= 1.06 * sum(sizes) / 64


def test_a_row_spelt_out() -> None:
    """The weight is that of the target; each example has positions of its own; the rest is padding."""
    examples = [
        Example(np.array([10, 11, 12], np.int32), np.array([True, False, True])),
        Example(np.array([20, 21], np.int32), np.array([False, True])),
    ]
    row = Packed.of(examples, 5, 0).row(0)
    assert row.ids.tolist() == [[10, 11, 20, 0, 0]] and row.targets.tolist() == [[11, 12, 21, 0, 0]]
    assert row.pos.tolist() == [[0, 1, 0, -1, -1]] and row.documents.tolist() == [[0, 0, 1, 2, 2]]
    assert row.loss_weights.tolist() == [[0, 1, 1, 0, 0]]


def test_a_packed_batch_is_its_examples_alone() -> None:
    examples = drawn([3, 90, 17, 33, 8, 60])
    packed = Packed.of(examples, 128, 0)
    assert packed.rows < len(examples)
    together = gradients([TrainingBatch.of(packed.row(n), torch.device("cpu")) for n in range(packed.rows)])
    alone = gradients(
        [
            TrainingBatch.of(Packed.of([one], len(one.ids) - 1, 0).row(0), torch.device("cpu"))
            for one in examples
        ]
    )
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    for name, grad in together[1].items():
        torch.testing.assert_close(grad, alone[1][name], rtol=1e-3, atol=1e-6)


def test_accumulation_weighs_tokens_not_micro_batches() -> None:
    rows = [Packed.of(drawn([n], n), 96, 0).row(0) for n in (4, 91, 12, 50)]
    one = gradients([TrainingBatch.of(stacked(rows), torch.device("cpu"))])
    four = gradients([TrainingBatch.of(row, torch.device("cpu")) for row in rows])
    assert one[0] == pytest.approx(four[0], rel=1e-5)
    for name, grad in one[1].items():
        torch.testing.assert_close(grad, four[1][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("adapter", [lora.Config(4, dropout=0.5), dora.Config(4, dropout=0.5), ia3.Config()])
def test_the_reference_is_the_base(adapter: Any) -> None:
    torch.manual_seed(0)
    trainable = Trainable(
        Decoder(model(context=128)), next_token.Config(), torch.ones(320, dtype=torch.int64)
    )
    row = TrainingBatch.of(Packed.of(drawn([9, 30]), 64, 0).row(0), torch.device("cpu"))
    before = trainable.log_probs(row, 7)
    logits = trainable.model(row.ids, row.pos, documents=row.documents)
    expected = logits.log_softmax(-1).gather(-1, row.targets[..., None])[..., 0]
    torch.testing.assert_close(before, expected * (row.loss_weights != 0))
    with pytest.raises(UserError, match="all weights are trained"):
        trainable.reference_log_probs(row, 7)
    adapter.attach(trainable.model)
    for parameter in trainable.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    trainable.train()
    found = trainable.reference_log_probs(row, 7)
    torch.testing.assert_close(found, before, rtol=0, atol=3e-6)
    assert not torch.allclose(trainable.log_probs(row, 7), before, atol=0.1)
    assert torch.equal(trainable.reference_log_probs(row, 7), found) and not found.requires_grad


@pytest.mark.parametrize("adapter", [lora.Config(4), dora.Config(4), ia3.Config()])
def test_an_adapter_in_bfloat16_has_the_gradient_of_float32(adapter: Any) -> None:
    torch.manual_seed(0)
    trainable = Trainable(
        Decoder(model(context=128)), next_token.Config(), torch.ones(320, dtype=torch.int64)
    )
    adapter.attach(trainable.model)
    trained = [p for p in trainable.model.parameters() if p.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, 1 if isinstance(adapter, ia3.Config) else 0, 0.05)
    row = TrainingBatch.of(Packed.of(drawn([9, 30]), 64, 0).row(0), torch.device("cpu"))
    found = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = trainable(row)[0] / row.weight
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]))
    assert torch.cosine_similarity(found[0], found[1], dim=0) > 0.99


# ---- a run -------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small llama of bytes with a chat template, as a Hugging Face folder."""
    return chatting_model(tmp_path / "base")


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return conversations(tmp_path / "talk.jsonl")


def config(base: Path, talk: Path, method: str = "sft", **changes: Any) -> finetune.FinetuningConfig:
    words = (
        f"--base {base} --data.path {talk} --data.context 64 --steps 6 --batch-size 2 --micro-batch-size 1"
    )
    words += " --intervals.save 3 --intervals.sample 3 --intervals.evaluate 3 --threads 1"
    words += " --optimizer.learning-rate 0.01"
    return replace(finetune.read_finetuning_config(method, words.split()), **changes)


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """Pairs of answers."""
    return pairs(tmp_path / "pairs.jsonl")


def measured(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
def test_lora_in_one_function_is_its_equation(precision: torch.dtype, dropout: float, bias: bool) -> None:
    """Values and gradients of torch's own operations; float64 to the last bits, autocast to bfloat16's."""
    torch.manual_seed(0)
    kind = torch.float64 if precision == torch.float64 else torch.float32
    module = lora.LoRALinear(torch.nn.Linear(24, 40, bias), lora.Config(4, 12.0, dropout)).to(kind)
    module.b.data.normal_()
    module.base.requires_grad_(False)
    x = torch.randn(2, 9, 24, dtype=kind, requires_grad=True)
    given, found = torch.randn(2, 9, 40, dtype=kind), []
    for fast in (True, False):
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            torch.manual_seed(1)
            out = module(x) if fast else module.plain(x, torch.nn.functional.dropout(x, dropout))
        assert out.dtype == (precision if precision == torch.bfloat16 else kind)
        grads = torch.autograd.grad((out.to(kind) * given).sum(), [x, module.a, module.b])
        assert [grad.dtype for grad in grads] == [kind] * 3
        found.append([out.to(kind), *grads])
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[precision]
    for one, other in zip(*found, strict=True):
        assert float((one - other).detach().norm() / other.detach().norm()) < close
    leaf = torch.randn(3, 24, dtype=kind)  # of the first layer nothing asks for x's gradient
    module(leaf).sum().backward()
    assert module.a.grad is not None and module.a.grad.abs().sum() > 0


@pytest.mark.parametrize("adapter", [lora.Config(4, dropout=0.2), dora.Config(4, dropout=0.2), None])
def test_a_run_resumes_to_the_same_weights_and_opens(
    adapter: Any, base: Path, talk: Path, tmp_path: Path
) -> None:
    """With dropout, and whatever else draws: here a callback and a new process's measurements."""
    run = config(base, talk, adapter=adapter)
    training_run.train(run, tmp_path / "whole", Quiet(), recipe=finetune)

    def stop(step: int) -> None:
        torch.rand(step)
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training_run.train(run, tmp_path / "cut", Quiet(stop), recipe=finetune)
    device.peak.cache_clear()
    training_run.train(run, tmp_path / "cut", Quiet(), recipe=finetune, resume=True)
    ids = [1, 2, 3, 250]
    whole, cut = (cutaway.load(tmp_path / name, engine="pytorch").logits(ids) for name in ("whole", "cut"))
    assert np.array_equal(whole, cut)
    before = cutaway.load(base, engine="pytorch").logits(ids)
    assert not np.allclose(whole, before, atol=1e-3)
    validation = [
        line["validation_loss"] for line in measured(tmp_path / "whole") if "validation_loss" in line
    ]
    assert validation[-1] < validation[0]


def test_a_steps_operations_are_those_of_its_documents(base: Path, talk: Path, tmp_path: Path) -> None:
    """Not of rows, padding, or the context that the base could hold."""
    run = config(base, talk, adapter=lora.Config(4), steps=2)
    training_run.train(run, tmp_path / "run", Quiet(), recipe=finetune)
    data = finetune.ready(run, tmp_path / "run", lambda _: None)
    work = Operations(run.model, frozen=True)
    for step, line in enumerate(line for line in measured(tmp_path / "run") if "loss" in line):
        batch = data.train.batch(2 * step, 2)
        found = spans(batch.pos, batch.documents)
        tokens = int((batch.pos >= 0).sum())
        assert line["tokens_per_second"] * line["seconds"] == pytest.approx(tokens) and tokens < 2 * 64
        assert line["flops_per_second"] * line["seconds"] == pytest.approx(work.of(found))
        assert work.of(found) < per_token(run.model, frozen=True) * tokens, "128 positions are never full"
    assert run.flops_per_token == per_token(run.model, 64, frozen=True) < per_token(run.model, frozen=True)


def test_packed_base_trains_as_float(base: Path, talk: Path, tmp_path: Path) -> None:
    found = []
    for kind in ("float32", "packed"):
        run = config(base, talk, adapter=lora.Config(4), base_type=kind)
        training_run.train(run, tmp_path / kind, Quiet(), recipe=finetune)
        found.append(cutaway.load(tmp_path / kind, engine="pytorch").logits([5, 6]))
    assert np.allclose(*found, atol=1e-5)


def test_a_step_unpacks_a_packed_head_once(
    base: Path, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all of its micro-batches; behind the step it is packed alone."""
    run = finetune.resolved(config(base, talk, adapter=lora.Config(4), base_type="packed"), tmp_path, print)
    made = Training(run, finetune.ready(run, tmp_path, print))
    unpacked: list[Any] = []
    head, unpack = made.trainable.head, made.trainable.head.unpack
    monkeypatch.setattr(head, "unpack", lambda packed: unpacked.append(packed.shape) or unpack(packed))
    made._gradient(made._batches(), 0)
    assert len(made.micro_batches) == 2 and unpacked.count(head.packed.shape) == 1
    assert made.trainable.head_weight is not made.trainable.head_weight


def test_what_is_wrong_with_the_data_is_counted(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    question, long = {"role": "user", "content": "q"}, {"role": "assistant", "content": "y" * 200}
    rows: list[dict[str, Any]] = [
        {"messages": [question, {"role": "assistant", "content": "a"}], "source": "me"},
        {"messages": [question, {"role": "assistant", "content": "a"}]},
        {"messages": [question, long]},
        {"messages": [question]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    run = config(base, path)
    _, report = examples.prepare(run.data, run.objective, finetune.base(run), lambda _: None)
    assert (report.examples, report.duplicates, report.left_out_too_long, report.without_trained_tokens) == (
        2,
        1,
        1,
        1,
    )
    assert report.unread_columns == ("source",) and report.without_end_token == 0
    path.write_text(json.dumps(rows[3]))
    with pytest.raises(UserError, match="no example can be trained on"):
        examples.prepare(run.data, run.objective, finetune.base(run), lambda _: None)


def test_a_packed_base_needs_an_adapter(base: Path, talk: Path) -> None:
    with pytest.raises(UserError, match="cannot be trained"):
        config(base, talk, adapter=None, base_type="packed")


def test_merge_writes_the_tuned_model_and_says_what_rounding_takes(
    base: Path, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training_run.train(config(base, talk, adapter=lora.Config(4)), tmp_path / "run", Quiet(), recipe=finetune)
    ids = [1, 2, 3, 250]
    tuned = cutaway.load(tmp_path / "run", engine="pytorch").logits(ids)
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "exact"), "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)
    assert exact["rounding_to_change"]["largest"] == 0 and exact["matrices"] == 14
    assert np.array_equal(cutaway.load(tmp_path / "exact", engine="pytorch").logits(ids), tuned)
    assert [(one["from"], one["to"]) for one in exact["divergences"]] == [("adapter", "written")]
    assert abs(exact["divergences"][0]["kl_divergence"]) < 1e-6
    rounded = ["merge", str(tmp_path / "run"), str(tmp_path / "q4.gguf"), "--type", "q4_0", "--no-measure"]
    assert main(rounded) == 0
    printed = capsys.readouterr()
    assert "changes 14 weights" in printed.out
    assert "The rounding error of a weight is" in " ".join(printed.out.split())
    before = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    assert main(["merge", str(tmp_path / "exact"), str(tmp_path / "run"), "--force"]) == 2
    assert "is a run or an adapter, not where to write" in capsys.readouterr().err
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == before
    assert main([*rounded[:3], "--model", str(base)]) == 2 and "--force" in capsys.readouterr().err


def test_a_run_of_lora_is_small_and_its_rank_is_read_back(base: Path, talk: Path, tmp_path: Path) -> None:
    training_run.train(config(base, talk, adapter=lora.Config(4)), tmp_path / "run", Quiet(), recipe=finetune)
    checkpoint = load.read_checkpoint(base)
    changes = adapters.read_adapter(tmp_path / "run", checkpoint)
    assert {change.a.shape[0] for change in changes.values() if isinstance(change, adapters.LowRank)} == {4}
    exact = adapters.joined(checkpoint, changes)
    assert {each.error for each in adapters.rounding(checkpoint, changes, exact).values()} == {0.0}


def test_merge_measures_adapter_float_and_written_and_warns_of_lost_changes(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a base of 4 bits a change below half a step is lost, and the divergences say so."""
    quantised, text = tmp_path / "base.gguf", tmp_path / "text.txt"
    cutaway.load(base).save(quantised, type="Q4_0")
    text.write_text("It is a truth universally acknowledged. " * 9)
    checkpoint, random = load.read_checkpoint(quantised), np.random.default_rng(0)
    name = "blocks.1.mlp.up.weight"
    rows, columns = checkpoint.tensors.later(name).shape
    for size in (1e-3, 0.5):
        a, b = (random.standard_normal(s, np.float32) for s in ((2, columns), (rows, 2)))
        change = adapters.LowRank(a, b * np.float32(size), 1.0)
        adapters.write_adapter(tmp_path / "adapter", {name: change}, checkpoint, str(quantised), force=True)
        words = ["merge", str(tmp_path / "adapter"), str(tmp_path / "out.gguf"), "--type", "q4_0", "--force"]
        assert main([*words, "--text", str(text), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        before, written = (
            formats.unpack(checkpoint.tensors[name]),
            load.read_checkpoint(tmp_path / "out.gguf").tensors[name],
        )
        moved, lost = np.abs(change(before) - before), 0
        halves = written.data.reshape(-1, 18)[:, :2].view("<f2")  # the scale of each 32 values
        for block, half in zip(moved.reshape(-1, 32), halves, strict=True):
            lost += sum(0 < value < abs(float(half[0])) / 2 for value in block)
        assert found["changes_below_half_step"] == pytest.approx(lost / np.count_nonzero(moved))
        kl = {(one["from"], one["to"]): one["kl_divergence"] for one in found["divergences"]}
        assert main([*words, "--no-measure"]) == 0
        warned = "less than half a step of Q4_0" in capsys.readouterr().err
        if size < 0.1:
            assert lost > 0.9 * moved.size and warned
            assert kl["adapter", "written"] == pytest.approx(kl["float", "written"], rel=0.2)
        else:
            assert not warned and lost < moved.size / 2
        assert 0 <= kl["adapter", "float"] < kl["adapter", "written"] / 5


def test_merge_keeps_the_types_of_a_packed_base(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a GGUF file it does, rounded again and measured; as a folder it is F32, and a note says so."""
    quantised = tmp_path / "base.gguf"
    cutaway.load(base).save(quantised, type="Q4_0")
    checkpoint, random = load.read_checkpoint(quantised), np.random.default_rng(0)
    name = "blocks.1.mlp.up.weight"
    rows, columns = checkpoint.tensors.later(name).shape
    a, b = (random.standard_normal(s, np.float32) for s in ((2, columns), (rows, 2)))
    adapters.write_adapter(
        tmp_path / "adapter", {name: adapters.LowRank(a, b, 1.0)}, checkpoint, str(quantised)
    )
    merge = ["merge", str(tmp_path / "adapter")]
    assert main([*merge, str(tmp_path / "out.gguf"), "--json"]) == 0
    divergences = json.loads(capsys.readouterr().out)["divergences"]
    assert {(one["from"], one["to"]) for one in divergences} >= {("adapter", "written"), ("float", "written")}
    written = load.read_checkpoint(tmp_path / "out.gguf")
    types = {each: written.tensors.later(each).type for each in written.tensors}
    assert types == {each: checkpoint.tensors.later(each).type for each in checkpoint.tensors}
    assert types[name] == "Q4_0" and not np.array_equal(
        written.tensors[name].data, checkpoint.tensors[name].data
    )
    assert main([*merge, str(tmp_path / "folder"), "--no-measure"]) == 0
    assert "a folder of safetensors holds no blocks" in capsys.readouterr().err
    assert main([*merge, str(tmp_path / "whole.gguf"), "--type", "F32", "--no-measure"]) == 0
    assert "without --type the file has the base's types" in capsys.readouterr().err


@pytest.mark.parametrize("adapter", [lora.Config(4), None])
@pytest.mark.parametrize(("kind", "scaling"), [("linear", Linear(2.0)), ("yarn", YaRN(2.0, 128))])
def test_a_context_is_extended_before_training_and_wherever_the_run_opens(
    kind: str, scaling: Any, adapter: Any, base: Path, talk: Path, tmp_path: Path
) -> None:
    words = [f"--base={base}", f"--data.path={talk}", "--data.context=200", "--steps=2", "--batch-size=1"]
    words += ["--micro-batch-size=1", "--threads=1", "--optimizer.learning-rate=0.01"]
    with pytest.raises(UserError, match="the base holds 128 tokens"):
        finetune.read_finetuning_config("sft", words)
    words += [f"--context-extension.kind={kind}", "--context-extension.factor=2"]
    run, folder = replace(finetune.read_finetuning_config("sft", words), adapter=adapter), tmp_path / "run"
    assert run.model.context == 256
    assert {block.attention.position.scaling for block in run.model.blocks} == {scaling}
    assert finetune.trained_model(run, finetune.base(run)).config == run.model
    training_run.train(run, folder, Quiet(), recipe=finetune)
    training_run.train(run, folder, Quiet(), recipe=finetune, resume=True)
    assert finetune.read_finetuning_config(str(folder)).context_extension == run.context_extension
    ids = [n % 250 for n in range(200)]
    tuned = cutaway.load(folder, engine="pytorch")
    assert tuned.config == run.model and tuned.context == 256
    expected = tuned.logits(ids)
    if adapter is not None:
        plain = cutaway.load(base, engine="runtime")
        beside = plain.with_adapter(folder)
        assert np.array_equal(beside.pytorch.logits(ids), expected)
        assert np.abs(beside.logits(ids) - expected).max() < 1e-3 * np.abs(expected).max()
        short, checkpoint = ids[:100], load.read_checkpoint(base)
        forgotten = adapters.joined(checkpoint, adapters.read_adapter(folder, checkpoint))
        other = cutaway.lm.LanguageModel(forgotten, engine="pytorch").logits(short)
        assert np.abs(other - expected[:100]).max() > 1e-4, "the positions make a difference"
        assert main(["merge", str(folder), str(tmp_path / "merged"), "--no-measure"]) == 0
        merged = cutaway.load(tmp_path / "merged", engine="pytorch")
        assert merged.config == run.model and np.array_equal(merged.logits(ids), expected)
        assert main(["convert", str(folder), str(tmp_path / "alone.gguf"), "--adapter"]) == 2
    with pytest.raises(UserError, match="scales its positions already"):
        finetune.read_finetuning_config("sft", [f"--base={folder}", *words[1:]])


# ---- comparisons, rewards, a teacher -----------------------------------------------------------------------


@pytest.mark.parametrize(("method", "adapter"), [("dpo", lora.Config(4)), ("dpo", None), ("kto", None)])
def test_a_run_of_comparisons_resumes_to_the_same_weights(
    method: str, adapter: Any, base: Path, compared: Path, tmp_path: Path
) -> None:
    """Where all weights are trained the reference's log-probabilities are from before the first step."""
    run = config(base, compared, method, adapter=adapter)
    training_run.train(run, tmp_path / "whole", Quiet(), recipe=finetune)

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training_run.train(run, tmp_path / "cut", Quiet(stop), recipe=finetune)
    training_run.train(run, tmp_path / "cut", Quiet(), recipe=finetune, resume=True)
    whole, cut = (cutaway.load(tmp_path / n, engine="pytorch").logits([1, 250]) for n in ("whole", "cut"))
    assert np.array_equal(whole, cut)
    lines = [line for line in measured(tmp_path / "whole") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(np.log(2) if method == "dpo" else 0.5, abs=1e-6)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.02
    assert (tmp_path / "whole" / "reference.npz").is_file() is (adapter is None)
    validation = next(line for line in reversed(measured(tmp_path / "whole")) if "validation_loss" in line)
    assert validation["validation_loss"] < lines[0]["loss"]
    assert lines[0].get("margin", 0.0) == pytest.approx(0, abs=1e-5)


def test_all_weights_or_an_adapter_have_one_reference(base: Path, compared: Path, tmp_path: Path) -> None:
    found = []
    for name, adapter in (("adapter", lora.Config(4)), ("all", None)):
        run = config(base, compared, "dpo", adapter=adapter)
        run = finetune.resolved(run, tmp_path / name, lambda _: None)
        made = finetune.ready(run, tmp_path / name, lambda _: None)
        assert isinstance(made.train, Packed) and made.model is not None
        trainable = Trainable(made.model, run.objective, made.lengths)
        batch = TrainingBatch.of(made.train.row(0), torch.device("cpu"))
        found.append(trainable.reference_log_probs(batch, 64))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_the_reference_of_a_tuned_base_is_the_tuned_base(
    base: Path, talk: Path, compared: Path, tmp_path: Path
) -> None:
    training_run.train(
        config(base, talk, adapter=lora.Config(4)), tmp_path / "talk", Quiet(), recipe=finetune
    )
    run = config(tmp_path / "talk", compared, "dpo", adapter=lora.Config(4))
    training_run.train(run, tmp_path / "preferred", Quiet(), recipe=finetune)
    lines = [line for line in measured(tmp_path / "preferred") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    ids = [1, 2, 250]
    plain, talks, prefers = (
        cutaway.load(tmp_path / name, engine="pytorch").logits(ids) for name in ("base", "talk", "preferred")
    )
    assert not np.allclose(talks, prefers, atol=1e-3) and not np.allclose(plain, talks, atol=1e-3)
    row = TrainingBatch.of(Packed.of(drawn([9, 30]), 64, 0).row(0), torch.device("cpu"))
    data = finetune.ready(run, tmp_path / "preferred", lambda _: None)
    own, expected = (
        Trainable(made, next_token.Config(), data.lengths)
        for made in (data.model, build.decoder(load.read_checkpoint(tmp_path / "talk")))
    )
    torch.testing.assert_close(
        own.reference_log_probs(row, 64), expected.log_probs(row, 64), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("adapter", [lora.Config(4), None])
def test_a_reward_model_scores_answers(adapter: Any, base: Path, compared: Path, tmp_path: Path) -> None:
    run = replace(config(base, compared, "reward", adapter=adapter), steps=12)
    training_run.train(run, tmp_path / "run", Quiet(), recipe=finetune)
    lines = [line for line in measured(tmp_path / "run") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(np.log(2)) and lines[-1]["accuracy"] == 1
    with pytest.raises(UserError, match="is a reward model, which scores answers and writes none"):
        cutaway.load(tmp_path / "run")
    judge = reward_model.RewardModel(tmp_path / "run")
    prompt = [{"role": "user", "content": "7?"}]
    rows = [{"prompt": prompt, "completion": [{"role": "assistant", "content": c}]} for c in ("xx", "yy")]
    better, worse = judge.scores(rows)
    assert better > worse
    pair = judge.reader.pair(
        {"prompt": prompt, "chosen": rows[0]["completion"], "rejected": rows[1]["completion"]}, ""
    )
    ended = [examples._reading_its_end(example) for example in pair.documents]
    batch = TrainingBatch.of(Packed.of([Pair(*ended)], 128, 0).row(0), torch.device("cpu"))
    run.objective.attach(judge.model)
    judge.model.get_parameter("reward").data = judge.weight
    _, sums = Trainable(judge.model, run.objective, torch.ones(320))(batch)
    assert float(sums["margin"].detach()) == pytest.approx(better - worse, abs=1e-5)
    with pytest.raises(UserError, match="holds no reward model"):
        reward_model.RewardModel(base)


def test_a_teacher_of_other_tokens_is_refused(base: Path, talk: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no model"):
        config(base, talk, "distill")
    words = run_tokenizer.of("bpe:266", ["the cat and the hat and the rat"] * 9)
    other = replace(load.read_checkpoint(base), read_tokenizer=lambda: words)
    save.write_checkpoint(
        tmp_path / "other", replace(other, source=run_tokenizer.save(words, tmp_path / "w")), "safetensors"
    )
    with pytest.raises(UserError, match="another vocabulary"):
        finetune.teacher(
            distill.Config(teacher=str(tmp_path / "other")), load.read_checkpoint(base).tokenizer
        )


def test_a_student_that_is_its_teacher_has_nothing_to_learn(base: Path, talk: Path, tmp_path: Path) -> None:
    objective = distill.Config(teacher=str(base), teacher_type="packed")
    run = config(base, talk, "sft", adapter=lora.Config(4))
    training_run.train(replace(run, objective=objective), tmp_path / "run", Quiet(), recipe=finetune)
    losses = [line["loss"] for line in measured(tmp_path / "run") if "loss" in line]
    assert losses[0] == pytest.approx(0, abs=1e-6) and max(losses) < 1e-3
    assert not any(
        "teacher" in name for name in safetensors.read_safetensors(tmp_path / "run" / peft_names.WEIGHTS)
    )


def test_what_is_wrong_with_pairs_is_counted(base: Path, tmp_path: Path, capsys: Any) -> None:
    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    prompt = [{"role": "user", "content": "q"}]
    rows = [
        {"prompt": prompt, "chosen": turn("a"), "rejected": turn("b")},
        {"prompt": prompt, "chosen": turn("a"), "rejected": turn("b"), "margin": 2},
        {"prompt": prompt, "chosen": turn("a"), "rejected": turn("a")},
        {"prompt": prompt, "chosen": turn("a" * 30), "rejected": turn("b" * 30)},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    words = ["finetune", "dpo", "--data", str(path), "--model", str(base), "--check", "--data.context", "64"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [
        report[name] for name in ("rows", "examples", "duplicates", "same_answers", "left_out_too_long")
    ] == [
        "pairs",
        2,
        1,
        1,
        1,
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "chosen: " in shown and "rejected: " in shown and "whose answers are the same" in shown
    run = config(base, path, "kto")
    items, counted = examples.prepare(run.data, run.objective, finetune.base(run), lambda _: None)
    assert [item.label for item in items if isinstance(item, Labelled)] == [True, False] * 4
    assert (counted.rows, counted.liked) == ("labelled", 4)
    run = config(base, path, "dpo")
    prepared = examples.prepare(run.data, run.objective, finetune.base(run), lambda _: None)
    items = prepared.items
    examples.store(tmp_path / "kept", prepared, {})
    kept = examples.stored(tmp_path / "kept", "pairs")
    assert [item.margin for item in kept if isinstance(item, Pair)] == [0, 2]
    for item, again in zip(items, kept, strict=True):
        for one, other in zip(item.documents, again.documents, strict=True):
            assert np.array_equal(one.ids, other.ids) and np.array_equal(one.trained, other.trained)
    path.write_text(json.dumps(rows[0] | {"margin": "big"}))
    with pytest.raises(UserError, match="margin is 'big'; it must be a number"):
        examples.prepare(run.data, run.objective, finetune.base(run), lambda _: None)


# ---- how long, and when it ends ----------------------------------------------------------------------------


def numbers(base: Path, data: Path, folder: Path, *words: str) -> tuple[finetune.FinetuningConfig, list[str]]:
    """A run with the numbers that its examples ask for, and its notes."""
    sentences: list[str] = []
    given = (f"--base={base}", f"--data.path={data}", *words)
    return finetune.resolved(
        finetune.read_finetuning_config("sft", given), folder, sentences.append
    ), sentences


def test_context_batch_and_steps_follow_the_examples(base: Path, talk: Path, tmp_path: Path) -> None:
    run, sentences = numbers(base, talk, tmp_path / "a")
    assert (run.data.context, run.batch_size, run.steps) == (64, 2, 26) and run.schedule.warmup_steps == 2
    assert sentences[-2].startswith(
        "3 epochs of 33 examples: 26 steps of 2 rows of 64 tokens, 3.9 examples a step"
    )
    assert run.early_stopping == 0 and "1 more is held out" in sentences[-2]
    assert numbers(base, talk, tmp_path / "b", "--epochs=0.5")[0].steps == 5
    fixed, _ = numbers(base, talk, tmp_path / "c", "--steps=7", "--batch-size=3", "--data.context=100")
    assert (fixed.steps, fixed.batch_size, fixed.micro_batch_size, fixed.data.context) == (7, 3, 1, 100)
    assert fixed.schedule.warmup_steps == 10, "what was given stays as it is"
    many = tmp_path / "many.jsonl"
    many.write_text(
        "\n".join(json.dumps({"question": f"{n}?", "answer": "x" * (n % 90)}) for n in range(200))
    )
    run, sentences = numbers(base, many, tmp_path / "d")
    assert run.data.context == 128 and run.batch_size == 4 and run.early_stopping == 2
    many.write_text(json.dumps({"question": "q" * 300, "answer": "a"}) + "\n" + many.read_text())
    run, sentences = numbers(base, many, tmp_path / "e")
    assert run.data.context == 128 and "1 example is longer than data.context (128)" in " ".join(sentences)


@pytest.mark.parametrize("option", ["--lr", "--learning-rate"])
def test_short_options_mean_what_they_say(option: str, base: Path, talk: Path) -> None:
    given = [f"--base={base}", f"--data.path={talk}", option, "3e-5", "--batch-size", "6", "--epochs", "2"]
    run = finetune.read_finetuning_config("sft", given)
    assert (run.optimizer.learning_rate, run.batch_size, run.epochs, run.steps) == (3e-5, 6, 2.0, 0)
    changed = train_config.read_run_config("book", [option, "0.5"])
    assert changed.optimizer.learning_rate == changed.optimizer.adamw.learning_rate == 0.5
    assert train_config.read_run_config("book", ["--batch-size", "12"]).micro_batch_size == 4


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--epohs", "--epochs"),
        ("--rank", "--adapter.rank"),
        ("--lora-alpha", "--adapter.alpha"),
        ("--max-seq-length", "--data.context"),
        ("--num-train-epochs", "--epochs"),
        ("--per-device-train-batch-size", "--batch-size"),
        ("--optimiser.learning-rate", "--optimizer.learning-rate"),
        ("--data.contxt", "--data.context"),
        ("--warmup-step", "--schedule.warmup-steps"),
        ("--gradient-clipping", "--gradient-clip"),
    ],
)
def test_the_nearest_option_is_named(option: str, meant: str, base: Path, talk: Path) -> None:
    message = f"no option {option} in `cutaway finetune`: did you mean {meant}[?]"
    with pytest.raises(UserError, match=message):
        finetune.read_finetuning_config("sft", [f"--base={base}", f"--data.path={talk}", option, "1"])


def test_examples_of_a_run_that_never_began_are_not_those_of_the_next(base: Path, tmp_path: Path) -> None:
    """A run that was stopped before its first step leaves its examples; another one's are read anew."""
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text('{"question": "a", "answer": "one"}')
    other.write_text('{"question": "a", "answer": "other"}')
    found = []
    for path in (one, other, other):
        numbers(base, path, tmp_path / "run")
        ids = examples.stored(tmp_path / "run", "examples")[0].documents[0].ids
        found.append(run_tokenizer.of_bytes().decode(ids.tolist()))
    assert "one" in found[0] and "other" in found[1] and found[1] == found[2]


def rising(losses: list[float]) -> Any:
    """Validation losses by evaluation, in place of those that are measured."""
    left = iter(losses)
    return lambda self, sequences: {"validation_loss": next(left)}


def test_a_run_stops_when_the_validation_loss_rises_and_keeps_the_best(
    base: Path, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(base, talk, adapter=lora.Config(4), early_stopping=2)
    data = replace(run.data, validation_fraction=0.3)
    run = replace(run, data=data, steps=9, intervals=replace(run.intervals, evaluate=1, sample=0))
    heard = Quiet()
    monkeypatch.setattr(Training, "evaluate", rising([3.0, 2.0, 2.5, 2.4]))
    training_run.train(run, tmp_path / "run", heard, recipe=finetune)
    assert len(heard.steps) == 4 and "stops after 4 of 9 steps" in heard.notes[-2]
    assert "weights of step 2 are kept, whose validation loss of 2.000" in heard.notes[-1]
    assert run.schedule.factor(1, 9) == run.schedule.factor(1, 2) == 0.2, "two steps of warm-up are the same"
    monkeypatch.setattr(Training, "evaluate", rising([3.0, 2.0]))
    training_run.train(replace(run, steps=2), tmp_path / "two", Quiet(), recipe=finetune)
    kept, best = (cutaway.load(tmp_path / n, engine="pytorch").logits([1, 2, 250]) for n in ("run", "two"))
    assert np.array_equal(kept, best), "the folder's weights are those after the best step"
    monkeypatch.setattr(Training, "evaluate", rising([]))
    again = Quiet()
    training_run.train(run, tmp_path / "run", again, recipe=finetune, resume=True)
    assert not again.steps and "stops after 4 of 9 steps" in again.notes[-2]
    monkeypatch.setattr(Training, "evaluate", rising([2.3, 2.2, 2.1, 2.05, 1.0]))
    on = Quiet()
    training_run.train(replace(run, early_stopping=0), tmp_path / "run", on, recipe=finetune, resume=True)
    assert [int(step["step"]) for step in on.steps] == [5, 6, 7, 8, 9]


def test_resume_without_a_folder_continues_the_last_run(
    base: Path,
    talk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["finetune", "sft", str(talk), "--model", str(base), "--intervals.sample", "0", "--threads", "1"]
    assert main([*words, "--steps", "2"]) == 0
    assert main([*words, "--steps", "2"]) == 2
    command = re.search("continue it with `cutaway (.*?)`", capsys.readouterr().err)
    assert command is not None and command[1] == "finetune runs/sft --resume"
    assert main([*command[1].split(), "--steps", "3"]) == 0
    for line in (["finetune", "--resume", "--steps", "4"], ["finetune", "--resume", "--output", "runs/sft"]):
        assert main(line) == 0
        assert "Continuing runs/sft." in capsys.readouterr().err
    assert main([*words, "--steps", "5", "--resume"]) == 0
    steps = [line["step"] for line in measured(tmp_path / "runs" / "sft") if "loss" in line]
    assert steps == [1, 2, 3, 4, 5]
    assert main(["pretrain", "--resume"]) == 2 and "holds no run to continue" in capsys.readouterr().err
    assert main([*words[:3], "--model", str(base), "--resume", "--epochs", "1"]) == 0
    assert "The run has 9 steps now" in capsys.readouterr().err
