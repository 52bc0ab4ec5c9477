"""Every kind of file that a verb opens: how a sound one is made, and what opens it as the verb does.

``READERS`` names the modules of cutaway that read files, each with the kinds that go through it; a test holds
this table complete.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway import cli
from cutaway.errors import OperationalError, UserError


@dataclass(frozen=True)
class Kind:
    """``make`` puts sound files into a folder; of these the ones that match ``damaged`` (all without) are
    damaged one at a time; ``open`` reads the folder as the verbs of that name do.
    """

    name: str
    verbs: str
    make: Callable[[Path], None]
    open: Callable[[Path, random.Random], None]
    damaged: tuple[str, ...] = ("*",)


KINDS: dict[str, Kind] = {}
TEXT = "The quick brown fox jumps over the lazy dog. the then 12\n" * 8


def verb(*words: object) -> None:
    """Run a verb; what it prints must be no traceback. A refusal is a UserError here too."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = cli.main([str(word) for word in words])
    said = errors.getvalue()
    if "Traceback" in said or "Traceback" in out.getvalue():
        raise AssertionError(f"a traceback was printed: {said[-3000:]}")
    if code == 2:
        raise UserError(said)
    if code:
        raise OperationalError(said)


def kind(name: str, verbs: str, make: Callable[[Path], None], *damaged: str) -> Callable[[Any], Any]:
    """Register what opens this kind."""

    def register(opened: Callable[[Path, random.Random], None]) -> Callable[[Path, random.Random], None]:
        KINDS[name] = Kind(name, verbs, make, opened, damaged or ("*",))
        return opened

    return register


# ---- sound files -------------------------------------------------------------------------------------------


def small(folder: Path) -> Path:
    """A small model, made once a process."""
    from tests.small import model_file

    return model_file(folder / "model.gguf")


_loaded: dict[str, Any] = {}


def lm() -> Any:
    """The small model, loaded; the same for all kinds."""
    import cutaway

    if "lm" not in _loaded:
        home = Path(os.environ["CUTAWAY_MUTANTS"])
        _loaded["lm"] = cutaway.load(home / "model.gguf")
    return _loaded["lm"]


def base() -> Path:
    """The file of the small model."""
    return Path(os.environ["CUTAWAY_MUTANTS"]) / "model.gguf"


def copied(folder: Path) -> None:
    shutil.copyfile(base(), folder / "model.gguf")


def as_folder(folder: Path) -> None:
    lm().save(folder / "m", format="safetensors")
    (folder / "m" / "generation_config.json").write_text(
        json.dumps({"temperature": 0.7, "top_k": 40, "top_p": 0.9, "eos_token_id": [1, 2], "do_sample": True})
    )
    if not list((folder / "m").glob("*.jinja")):
        from tests.small import TEMPLATE

        (folder / "m" / "chat_template.jinja").write_text(TEMPLATE)


def in_shards(folder: Path) -> None:
    """The same with its weights in two files and an index."""
    from cutaway.weights import safetensors

    as_folder(folder)
    weights = folder / "m" / "model.safetensors"
    found = safetensors.read_safetensors(weights)
    names, where = sorted(found), {}
    for n, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{n:05}-of-00002.safetensors"
        safetensors.write_safetensors(
            folder / "m" / file, {name: found[name] for name in part}, {"format": "pt"}
        )
        where |= dict.fromkeys(part, file)
    weights.unlink()
    (folder / "m" / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


LAYERS = (
    "awq-gemm",
    "bnb-nf4-nested",
    "ct-nvfp4",
    "ct-w4a16-asym",
    "fp8-block",
    "gptq-4-order",
    "hqq-3-axis0",
)


def quantized_layers(folder: Path) -> None:
    """Folders of one layer, a few of each layout, as their own libraries write them."""
    from cutaway.weights import safetensors

    for name in LAYERS:
        path = Path(__file__).parents[3] / "tests/published/quantized/golden" / f"{name}.safetensors"
        (own := folder / name).mkdir()
        shutil.copyfile(path, own / "model.safetensors")
        section = json.loads(safetensors.metadata(path)["section"])
        (own / "config.json").write_text(json.dumps({"quantization_config": section}))


def own_format(folder: Path) -> None:
    """A folder that only Cutaway reads."""
    from dataclasses import replace

    from cutaway.weights import save

    checkpoint = lm().checkpoint
    config = replace(checkpoint.config, tied=False)
    tensors = {name: checkpoint.tensors.later(name) for name in checkpoint.tensors}
    tensors["head.weight"] = tensors["embedding.weight"]
    from cutaway.weights.named_tensors import Tensors

    odd = tuple(
        replace(b, attention=replace(b.attention, scale=0.31 + n)) for n, b in enumerate(config.blocks)
    )
    save.write_checkpoint(
        folder / "m",
        replace(checkpoint, config=replace(config, blocks=odd), tensors=Tensors(tensors)),
        format="safetensors",
    )


def low_rank() -> Any:
    from cutaway.weights.changes import LowRank

    tensors, random = lm().checkpoint.tensors, np.random.default_rng(3)
    made = {}
    for name in [name for name in tensors if name.endswith(("query.weight", "up.weight"))]:
        rows, columns = tensors.later(name).shape
        a, b = (random.standard_normal(shape, np.float32) * 0.1 for shape in ((2, columns), (rows, 2)))
        made[name] = LowRank(a, b, 0.5)
    return made


def eagle3_head(folder: Path) -> None:
    """A head for the small model, in SafeAILab's format."""
    import torch
    from safetensors.numpy import save_file

    own, width, vocab = folder / "e", lm().config.width, lm().config.vocab
    own.mkdir()
    config = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 1}
    config |= {"hidden_size": width, "intermediate_size": 24, "num_attention_heads": 2, "head_dim": 8}
    config |= {"num_key_value_heads": 1, "vocab_size": vocab, "draft_vocab_size": vocab - 3}
    layers = {"eagle_aux_hidden_state_layer_ids": [0, 1, 1]}
    (own / "config.json").write_text(json.dumps(config | {"eagle_config": layers}))
    shapes = {"self_attn.q_proj": (16, 2 * width), "self_attn.k_proj": (8, 2 * width)}
    shapes |= {"self_attn.v_proj": (8, 2 * width), "self_attn.o_proj": (width, 16)}
    shapes |= {"mlp.gate_proj": (24, width), "mlp.up_proj": (24, width), "mlp.down_proj": (width, 24)}
    shapes |= dict.fromkeys(("input_layernorm", "hidden_norm", "post_attention_layernorm"), (width,))
    weights = {f"midlayer.{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    for name, shape in {"norm": (width,), "fc": (width, 3 * width), "lm_head": (vocab - 3, width)}.items():
        weights[f"{name}.weight"] = np.ones(shape, np.float32)
    save_file(weights | {"d2t": np.full(vocab - 3, 3)}, own / "model.safetensors")
    older = folder / "older"
    shutil.copytree(own, older)
    (older / "model.safetensors").unlink()
    tensors = {name: torch.tensor(weight) for name, weight in weights.items()}
    torch.save(tensors | {"d2t": torch.full((vocab - 3,), 3)}, older / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    from cutaway.weights import adapters

    adapters.write_adapter(folder / "a", low_rank(), lm().checkpoint, str(base()))
    path = folder / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {
        "alpha_pattern": {"q_proj": 2, r"layers\.\d+\.mlp\.up_proj": 2},
        "rank_pattern": {".*up_proj": 2},
    }
    path.write_text(json.dumps(config | {"use_rslora": False, "use_dora": False}))


def gguf_adapter(folder: Path) -> None:
    from cutaway.weights import gguf_adapters

    gguf_adapters.write_gguf_adapter(folder / "a.gguf", low_rank(), lm().checkpoint)


MESSAGES = [{"role": "user", "content": "hi the"}, {"role": "assistant", "content": "then 12"}]
ROWS: list[dict[str, Any]] = [
    {"messages": MESSAGES, "tools": None, "chat_template_kwargs": {"x": 1}},
    {"prompt": "a", "completion": "b", "label": True},
    {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5},
    {"instruction": "add", "input": "1 2", "output": "3"},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
    {"text": "some words of a text"},
]


def lines(folder: Path) -> None:
    import gzip

    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(text)
    (folder / "rows.json").write_text(json.dumps(ROWS))
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "text.txt").write_text(TEXT)


def sheets(folder: Path) -> None:
    (folder / "rows.csv").write_text("instruction,input,output\n" + 'add,"1, 2",3\nsay,,"a ""b""\nc"\n' * 5)
    (folder / "rows.tsv").write_text("prompt\tcompletion\n" + "a b\tc d\n" * 10)


def tables(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = {
        "text": ["some words", "and others", "a"] * 30,
        "n": list(range(90)),
        "messages": [MESSAGES] * 90,
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "rows.parquet", compression="snappy")
    plain = pyarrow.table(
        {"text": ["some words"] * 50, "at": pyarrow.array(range(50), pyarrow.timestamp("us"))}
    )
    pyarrow.parquet.write_table(plain, folder / "plain.parquet", compression="none", use_dictionary=False)


def autoencoder(folder: Path) -> None:
    from cutaway.inspect.sae import SAE, Card

    width = lm().config.width
    names = ("blocks.1.out",)
    card = Card("sae", "jumprelu", names, names, (width, width), "small", 24, 4, unexplained=0.5, l0=4.0)
    random = np.random.default_rng(0)
    draw = lambda *shape: random.standard_normal(shape, np.float32)  # noqa: E731
    of = {"W_enc": draw(24, width), "b_enc": draw(24), "W_dec": draw(24, width), "b_dec": draw(width)}
    SAE(card, of | {"threshold": draw(24)}).save(folder / "sae")
    (folder / "sae" / "labels.json").write_text('{"3": "months", "17": "names"}')


def texts_of_features(folder: Path) -> None:
    """An autoencoder with a text of each of its features."""
    from cutaway.weights import safetensors

    autoencoder(folder)
    some: Any = {name: ("F32", (24,), np.ones(24, np.float32)) for name in ("often", "most")}
    some |= {
        "strengths": ("F32", (24, 1), np.ones(24, np.float32)),
        "at": ("I32", (24, 1), np.ones(24, np.int32)),
    }
    some |= {"ids": ("I32", (24, 1, 3), np.tile(np.array([5, 6, -1], np.int32), 24))}
    safetensors.write_safetensors(folder / "sae" / "contexts.safetensors", some)


def dictionaries(folder: Path) -> None:
    """A transcoder as SAELens's and circuit-tracer's folder."""
    from cutaway.inspect import sae_formats
    from cutaway.inspect.sae import SAE, Card

    width = lm().config.width
    names = (("blocks.0.mlp_norm",), ("blocks.0.mlp.down",), (width, width), "small", 24, 0)
    draw = lambda *shape: np.random.default_rng(0).standard_normal(shape, np.float32)  # noqa: E731
    of = {"W_enc": draw(24, width), "b_enc": draw(24), "W_dec": draw(24, width), "b_dec": draw(width)}
    made = SAE(Card("transcoder", "jumprelu", *names), of | {"threshold": np.abs(draw(24))})
    for format in sae_formats.FORMATS:
        sae_formats.save([made], folder / format, format)


def sae_checkpoint(folder: Path) -> None:
    """A training of a sparse dictionary that was stopped."""
    from cutaway.inspect import sae_training_pytorch
    from cutaway.inspect.sae import Card

    card = Card("sae", "topk", ("blocks.1.out",), ("blocks.1.out",), (8, 8), "small", 12, 2, steps=3, batch=4)
    data = np.random.default_rng(0).standard_normal((16, 8), np.float32)
    part, whole = sae_training_pytorch.begun(card, slice(0, 8), slice(0, 8), 0), [slice(0, 8)]
    path, usual, sae_training_pytorch.EVERY = folder / "made.part.safetensors", sae_training_pytorch.EVERY, 1
    sae_training_pytorch.optimize([part], whole, lambda step: (data, data), 1e-3, path, lambda *_: None)
    sae_training_pytorch.EVERY = usual


def graph(folder: Path) -> None:
    groups = [["heads", "0_h0_0", "0_h1_0"], ["an MLP", "0_mlp_0"]]
    (folder / "graph.json").write_text(
        json.dumps({"qParams": {"supernodes": groups}, "nodes": [], "links": []})
    )


def activations(folder: Path) -> None:
    lm().activations([TEXT[:90], TEXT[:50]], ["blocks.1.out"], folder / "acts", shard_tokens=64)


def lens(folder: Path) -> None:
    from cutaway.inspect.tuned_maps import TunedLens

    subject = lm().subject
    layers, width = len(subject.config.blocks), subject.config.width
    maps = (np.zeros(shape, np.float32) for shape in ((layers, width, width), (layers, width)))
    TunedLens(subject, *maps).save(folder / "lens.safetensors")


def jacobian_lens(folder: Path) -> None:
    from cutaway.inspect import jacobian_file
    from cutaway.inspect.jacobian_lens import JacobianLens

    matrices = {0: np.eye(lm().config.width, dtype=np.float32)}
    for name in ("a.safetensors", "a.pt", "a.gguf"):
        jacobian_file.save(folder / name, JacobianLens(matrices, 1, 3))


def traced(folder: Path) -> None:
    lm().trace("the quick").save(folder / "trace.safetensors")


def steering(folder: Path) -> None:
    from cutaway.inspect import steering as own
    from cutaway.inspect.edits import Add

    width = lm().config.width
    own.save(folder / "steer.safetensors", [Add(1, [0.1] * width, strength=2.0)])


def study(folder: Path) -> None:
    head = json.dumps({"study": "x"})
    (folder / "rows.jsonl").write_text(
        "\n".join([head, *(json.dumps([n, [0.5, 1.0]]) for n in range(5))]) + "\n"
    )


def configs(folder: Path) -> None:
    from cutaway.train.config import PRESETS

    shutil.copyfile(PRESETS / "nano.yaml", folder / "nano.yaml")


def pipelines(folder: Path) -> None:
    from cutaway.pipeline import config

    text = config.written(config.read_pipeline("tiny"))
    (folder / "own.yaml").write_text(text, "utf-8")


def bundled(folder: Path) -> None:
    from cutaway import bundle

    adapter(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("A cat.")
    bundle.write_bundle(
        folder / "own.cutaway",
        str(base()),
        base(),
        "# card\n",
        whole=True,
        adapter=folder / "a",
        documents=folder / "notes",
        sampling={"temperature": 0.5},
        tools=("search",),
        system="Be brief.",
    )
    shutil.rmtree(folder / "a")
    shutil.rmtree(folder / "notes")


def importance(folder: Path) -> None:
    from cutaway.weights import imatrix

    checkpoint = lm().checkpoint
    sums = {
        name: (np.ones(checkpoint.tensors.later(name).shape[-1], np.float32), 5)
        for name in checkpoint.tensors
        if name.endswith(("query.weight", "up.weight"))
    }
    imatrix.write_imatrix(folder / "im.gguf", checkpoint, sums, "text", 64)


def word_vectors(folder: Path) -> None:
    from cutaway.embedding.vectors import Vectors
    from cutaway.weights import vectors

    table = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
    made = Vectors([*"abcdefgh", "the"], table)
    for name in ("w.txt", "w.bin", "w.safetensors"):
        vectors.write_vectors(folder / name, made)
    vectors.write_vectors(folder / "w.vec", made, "text")


def tokenizers(folder: Path) -> None:
    from scripts.fuzz import tokenizer_files as own

    (folder / "vocab.txt").write_text("\n".join(own.letters()))
    (folder / "x.tiktoken").write_bytes(own.rank_file())
    for model in ("BPE", "Unigram"):
        (folder / f"{model}.model").write_bytes(own.spm_model.write_file(own.scored(model)))
    for make in (own.bpe_json, own.wordpiece_json, own.unigram_json):
        (folder / f"{make.__name__}.json").write_text(json.dumps(make()))


def counted(folder: Path) -> None:
    (folder / "t.txt").write_text(TEXT)
    verb("tokenizer", "count-words", folder / "t.txt", "--output", folder / "words.counts")
    (folder / "t.txt").unlink()


def corpus(folder: Path) -> None:
    from cutaway.data import run_tokenizer, shards, sources

    (folder / "t.txt").write_text(TEXT)
    tokenizer = run_tokenizer.save(lm().tokenizer, folder / "tok")
    shards.prepare(
        sources.Source(str(folder / "t.txt")), tokenizer or folder / "tok", folder / "c", workers=1
    )
    shutil.rmtree(folder / "tok")


def run_files(folder: Path) -> None:
    run = folder / "run"
    run.mkdir()
    points = [{"step": n, "loss": 3.0 - n / 10, "validation_loss": 3.1} for n in range(1, 12)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    step = run / "step-00000004"
    step.mkdir()
    from cutaway.quantization import formats
    from cutaway.store.files import digest
    from cutaway.weights import safetensors

    safetensors.write_safetensors(
        step / "model.safetensors", {"w": formats.pack(np.ones((2, 3), np.float32), "F32")}
    )
    (step / "state.json").write_text(json.dumps({"step": 4, "tokens": 100, "random": {"seed": 3}}))
    sums = {name: digest(step / name) for name in ("model.safetensors", "state.json")}
    (step / "sums.json").write_text(json.dumps(sums))


def run_checkpoint(folder: Path) -> None:
    """A run's folder with one checkpoint, as the page's Training opens it."""
    import yaml

    from cutaway.model.config_dict import to_dict
    from cutaway.weights import safetensors

    checkpoint = lm().checkpoint
    step = folder / "run" / "checkpoints" / "step-00000004"
    step.mkdir(parents=True)
    config = {"model": to_dict(checkpoint.config), "data": {"sources": []}, "steps": 8}
    (folder / "run" / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 4, "sample": "a"}\n')
    (folder / "run" / "samples.jsonl").write_text('{"step": 4, "question": "a", "completion": "b"}\n')
    safetensors.write_safetensors(step / "weights.safetensors", dict(checkpoint.tensors))
    (step / "state.json").write_text('{"step": 4}')


def report(folder: Path) -> None:
    from cutaway.evaluate import statistics
    from cutaway.security import report
    from cutaway.security.finding import Arm, Curve, Finding

    arms = (Arm("a", statistics.mean([1, 0, 1])), Arm("b", statistics.mean([0, 0, 1]), "control"))
    curves = (Curve("c", "x", "y", ((0.0, 0.5), (1.0, 1.0))),)
    found = [Finding("files", "t", "sound", "s", arms, 0.0, (0,), curves=curves)]
    (folder / "results.json").write_text(json.dumps(report.document("m", found, seed=0, trials=4)))


def indexes(folder: Path) -> None:
    from cutaway.embedding import search

    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("A cat.\n\nA river.")
    index = search.Index(folder / "notes", folder / "home", "m")
    index.update(lambda texts: np.eye(len(texts), 2, dtype=np.float32), lambda text: True)
    index.close()


def stores(folder: Path) -> None:
    from cutaway.serve.response_store import Entry, ResponseStore

    store = ResponseStore(folder / "store.sqlite")
    store.put(b"key", {"resp_1": Entry("response", {"id": "resp_1"}, [{"type": "message"}], 1)})


def conversations(folder: Path) -> None:
    turns = [{"role": "system", "content": "s"}, *MESSAGES, {"role": "user", "content": "x"}]
    call = {"type": "function", "id": "1", "function": {"name": "f", "arguments": "{}"}}
    turns += [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "r"}]
    (folder / "talk.json").write_text(
        json.dumps([*turns, {"role": "assistant", "content": "y", "stopped": True}])
    )


def prompts(folder: Path) -> None:
    (folder / "prompt.txt").write_text("the quick\n")


def exercises(folder: Path) -> None:
    rows = [
        {"prompt": "2 + 2 =", "choices": ["4", "5"], "answer": 0},
        {"prompt": "a", "choices": ["x", "y"], "answer": "y"},
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": "2 + 2?", "answer": "4", "cluster": "c"}, {"prompt": "1?", "answer": 1}]
    (folder / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.txt").write_text(TEXT)


def figures(folder: Path) -> None:
    own = {"acc": 0.5, "acc_interval": [0.4, 0.6], "n": 100}
    (folder / "figures.json").write_text(json.dumps({"tasks": {"own": own}}))


def keys(folder: Path) -> None:
    (folder / "keys.txt").write_text("secret-one\nsecret-two\n")
    entry = {"name": "a", "key": "secret-three", "roles": ["chat"], "requests_per_minute": 60}
    (folder / "keys.yaml").write_text(json.dumps({"keys": [entry]}))


def served(folder: Path) -> None:
    (folder / "serve.yaml").write_text("models: [smollm2]\nport: 8123\nmax-tokens: 64\nlog-level: info\n")


def signed(folder: Path) -> None:
    import base64

    copied(folder)
    resources = [{"algorithm": "sha256", "name": ".", "digest": "00"}]
    payload = base64.b64encode(json.dumps({"predicate": {"resources": resources}}).encode()).decode()
    (folder / "model.gguf.sig").write_text(json.dumps({"dsseEnvelope": {"payload": payload}}))


def pins(folder: Path) -> None:
    (folder / "home").mkdir()
    (folder / "home" / "mcp-tools.json").write_text(json.dumps({"npx x": {"add": "00"}}))


def examples(folder: Path) -> None:
    from cutaway.train import examples as own

    ids, mask = np.arange(12, dtype=np.int32), np.arange(12) % 3 > 0
    np.savez(
        folder / own.EXAMPLES, ids=ids, trained=mask, ends=np.array([5, 12]), numbers=np.zeros(2, np.float32)
    )
    (folder / own.REPORT).write_text(json.dumps({"examples": 2, "source": {"path": "x"}}))


def begun(folder: Path) -> None:
    from cutaway.weights.run_checkpoint import DRAFTS_FOR

    (folder / DRAFTS_FOR).parent.mkdir()
    (folder / DRAFTS_FOR).write_text(json.dumps({"prompts": "asked.jsonl", "model": "smollm2"}))


def reward(folder: Path) -> None:
    from cutaway.quantization import formats
    from cutaway.weights import safetensors
    from cutaway.weights.load import REWARD

    as_folder(folder)
    (folder / "m").rename(folder / "model")
    safetensors.write_safetensors(
        folder / REWARD, {"reward": formats.pack(np.ones(lm().config.width, np.float32), "F32")}
    )


def similarities(folder: Path) -> None:
    (folder / "pairs.txt").write_text("a\tb\t0.5\nthe\tc\t0.1\n# note\nd\te\t3\nf\tg\t2\n")
    (folder / "analogies.txt").write_text(": family\na b c d\ne f g h\n")


def evaluations(folder: Path) -> None:
    from cutaway.evaluate.cache import Cache

    cache = Cache(lm(), folder / "evaluations.sqlite")
    cache.fill([["x", 1]], lambda numbers: [{"a": 1.5} for _ in numbers], lambda n: None)
    cache.database.close()


def marian(folder: Path) -> None:
    from scripts.fuzz import tokenizer_files as own

    model = own.spm_model.write_file(own.scored("Unigram"))
    (folder / "m").mkdir()
    (folder / "m" / "source.spm").write_bytes(model)
    (folder / "m" / "target.spm").write_bytes(model)
    words = {text: n for n, text in enumerate(["</s>", "<unk>", *"▁abcdef", "<pad>"])}
    (folder / "m" / "vocab.json").write_text(json.dumps(words))


def tokenizer_folders(folder: Path) -> None:
    """GPT-2's two files, a rank file and a Tekken, each in a folder of its own."""
    import base64

    from cutaway.tokenizer.bpe import BYTES
    from scripts.fuzz import tokenizer_files as own

    for name in ("gpt2", "ranks", "tekken"):
        (folder / name).mkdir()
    ids = {text: id for id, text in enumerate([*BYTES, "th", "the", "<|endoftext|>"])}
    (folder / "gpt2" / "vocab.json").write_text(json.dumps(ids))
    (folder / "gpt2" / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    (folder / "gpt2" / "added_tokens.json").write_text(json.dumps({"<tool>": len(ids)}))
    (folder / "ranks" / "qwen.tiktoken").write_bytes(own.rank_file())
    (folder / "ranks" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "QWenTokenizer"}))
    tokens = [{"rank": rank, "token_bytes": base64.b64encode(bytes([rank])).decode()} for rank in range(256)]
    config = {"pattern": r"\S+|\s+", "default_vocab_size": 260, "default_num_special_tokens": 4}
    special = [{"rank": rank, "token_str": text} for rank, text in enumerate(["<unk>", "<s>", "</s>"])]
    whole = {"config": config | {"version": "v11"}, "vocab": tokens, "special_tokens": special}
    (folder / "tekken" / "tekken.json").write_text(json.dumps(whole))


def compiled(folder: Path) -> None:
    from cutaway.tokenizer import Tokenizer

    tokenizers(folder)
    for file in folder.iterdir():
        if file.name != "bpe_json.json":
            file.unlink()
    (folder / "bpe_json.json").rename(folder / "tokenizer.json")
    with at_home(folder / "home"):
        Tokenizer.load(folder / "tokenizer.json").encode(TEXT)


@contextlib.contextmanager
def at_home(home: Path) -> Any:
    """Another folder as Cutaway's cache."""
    before = os.environ["CUTAWAY_HOME"]
    os.environ["CUTAWAY_HOME"] = str(home)
    try:
        yield
    finally:
        os.environ["CUTAWAY_HOME"] = before


# ---- what opens them ---------------------------------------------------------------------------------------


def model_verbs(path: Path, rng: random.Random, work: Path, ways: int = 5) -> None:
    way = rng.randrange(ways)
    if way == 0:
        verb("info", path, "--json")
    elif way == 1:
        verb("audit", path, "--json", "--fail-on", "never")
    elif way == 2:
        verb("generate", "the", "--model", path, "--max-tokens", 2)
    elif way == 3:
        verb("tokenizer", "encode", "the <|im_start|>", "--tokenizer", path, "--json")
    else:
        verb("convert", path, work / "out.gguf", "--type", "Q8_0")


@kind("GGUF model", "info generate audit convert tokenizer", copied)
def _(folder: Path, rng: random.Random) -> None:
    model_verbs(folder / "model.gguf", rng, folder)


@kind("Hugging Face folder", "info generate audit convert tokenizer", as_folder)
@kind("folder in shards", "info generate audit convert tokenizer", in_shards, "*index.json", "*-of-*")
def _(folder: Path, rng: random.Random) -> None:
    model_verbs(folder / "m", rng, folder)


@kind("quantized layer", "info generate convert", quantized_layers)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.quantization import formats
    from cutaway.store.reading import parsed
    from cutaway.weights import safetensors
    from cutaway.weights.quantized import methods

    damaged = Path((folder / ".damaged").read_text()).parent if (folder / ".damaged").is_file() else Path()
    for own in [folder / damaged] if damaged.name else sorted(folder.iterdir()):
        method = methods.of_folder(parsed(own / "config.json"), own, own / "config.json")
        found = safetensors.read_safetensors(own)
        for packed in (method.joined(found, own) if method else found).values():
            if packed.type in formats.READERS and packed.shape:
                formats.unpack(packed.rows(slice(0, 3)))
                formats.unpack(packed)


@kind("Cutaway's own folder", "info generate audit tokenizer", own_format, "*.json", "*.safetensors")
def _(folder: Path, rng: random.Random) -> None:
    model_verbs(folder / "m", rng, folder, 4)


@kind("chat template", "chat audit", as_folder, "*.jinja")
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.store.reading import text
    from cutaway.tokenizer import chat

    file = next((folder / "m").glob("*.jinja"))
    chat.render(MESSAGES[:1], text(file), tokenizer=lm().tokenizer)


@kind("adapter", "generate merge serve", adapter)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.weights import adapters

    if rng.random() < 0.3:
        verb("generate", "the", "--model", base(), "--adapter", folder / "a", "--max-tokens", 1)
    else:
        adapters.read_adapter(folder / "a", lm().checkpoint)


@kind("EAGLE-3 head", "generate chat serve", eagle3_head)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.weights import eagle3

    own = folder / rng.choice(("e", "older"))
    if rng.random() < 0.3 and own.name == "e":
        verb("generate", "the", "--model", base(), "--draft", own, "--max-tokens", 6)
    else:
        eagle3.read(own)


@kind("GGUF adapter", "generate merge serve", gguf_adapter)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.weights import adapters

    adapters.read_adapter(folder / "a.gguf", lm().checkpoint)


@kind("rows of examples", "finetune", lines)
@kind("CSV", "finetune", sheets)
@kind("parquet", "finetune pretrain", tables)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.data import layouts, rows, sources
    from cutaway.train.examples import reader

    file = changed_file(folder)
    if file.suffix in (".txt", ".parquet") and rng.random() < 0.5:
        for _ in sources.documents(sources.Source(str(file), weight=None)):
            pass
        return
    read = reader(lm().checkpoint)
    refused: UserError | None = None
    for where, row in rows.rows(file):
        taken = False
        for each in ("examples", "pairs", "labelled"):
            try:
                read.items(each, layouts.standard(each, row, where)[0], where)
                taken = True
            except UserError as problem:
                refused = problem
        if not taken and refused is not None:
            raise refused


def changed_file(folder: Path) -> Path:
    """The file that was damaged: the driver notes its name."""
    return folder / (folder / ".damaged").read_text()


@kind("run.yaml", "pretrain plan finetune", configs)
def _(folder: Path, rng: random.Random) -> None:
    verb("plan", folder / "nano.yaml", "--json")


@kind("pipeline", "pipeline", pipelines)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.commands import pipeline
    from cutaway.pipeline import config

    pipeline.check(config.read_pipeline(folder / "own.yaml"))


@kind("autoencoder", "sae explain", autoencoder)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect import sae_folders

    sae = sae_folders.load(folder / "sae")
    width = sae.card.widths[0]
    sae.top(np.ones((3, width), np.float32), 2)
    with contextlib.suppress(UserError):
        sae.add(3)
    if rng.random() < 0.3:
        verb("explain", "the", "--model", base(), "--sae", folder / "sae", "--json")


@kind("labels of features", "sae features", autoencoder, "sae/labels.json")
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect import features, sae_folders

    features.labels(folder / "sae", sae_folders.load(folder / "sae"))


@kind("texts of features", "sae texts", texts_of_features, "sae/contexts.safetensors")
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect import dictionaries

    (found,) = dictionaries.read_dictionaries(folder / "sae", lm())
    if found.contexts is not None:
        lm().tokenizer.decode([id for one in range(24) for ids, *_ in found.contexts.of(one) for id in ids])


@kind("other tools' dictionaries", "sae convert, sae check", dictionaries)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect.sae_folders import load_set

    for one in load_set(changed_file(folder).parent):
        x = np.ones((3, one.card.widths[0]), np.float32)
        one.decode(one.encode(x), x)


@kind("training of a dictionary", "sae", sae_checkpoint)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect import sae_training_pytorch
    from cutaway.inspect.sae import Card

    names = ("blocks.1.out",)
    card = Card("sae", "topk", names, names, (8, 8), "small", 12, 2, steps=3, batch=4)
    data = np.random.default_rng(0).standard_normal((16, 8), np.float32)
    part = sae_training_pytorch.begun(card, slice(0, 8), slice(0, 8), 0)
    path = folder / "made.part.safetensors"
    sae_training_pytorch.optimize(
        [part], [slice(0, 8)], lambda step: (data, data), 1e-3, path, lambda *_: None
    )


@kind("activations", "sae probes", activations)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect.activations import Activations

    data = Activations.open(folder / "acts")
    for name in data.names:
        next(data.batches(name, 4, keep_sinks=True))
    assert len(data.documents) == len(data.positions) == len(data.token_ids) == len(data)
    repr(data)


@kind("tuned lens", "explain", lens)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect import lenses

    lenses.load(folder / "lens.safetensors", lm())


@kind("Jacobian lens", "lens explain serve", jacobian_lens)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect import lenses

    lenses.load(changed_file(folder), lm())


@kind("trace", "Python: Trace.load", traced)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect.trace import Trace

    repr(Trace.load(folder / "trace.safetensors", lm()))


@kind("steering file", "Python: steering.load", steering)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect import steering as own

    own.load(folder / "steer.safetensors")


@kind("graph", "graph", graph)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect.graph import exported

    if rng.random() < 0.2:
        verb("graph", "the", "--model", base(), "--groups", folder / "graph.json", "--json")
    else:
        exported.read_groups(folder / "graph.json")


@kind("rows of a study", "Python: resume=", study)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.inspect.rows import Rows

    rows = Rows(folder / "rows.jsonl", {"study": "x"})
    for n in range(6):
        rows.of(n, lambda: [1.0, 2.0])


@kind("bundle", "run", bundled)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway import bundle
    from cutaway.weights import adapters, load

    opened = bundle.open(folder / "own.cutaway")
    if opened.model is not None:
        checkpoint = load.read_checkpoint(opened.model)
        if opened.adapter is not None:
            adapters.read_adapter(opened.adapter, checkpoint)


@kind("importance matrix", "quantize convert", importance)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.weights import imatrix

    imatrix.read_imatrix(folder / "im.gguf", lm().checkpoint)


@kind("word vectors", "embed", word_vectors)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.weights import vectors

    file = changed_file(folder)
    vectors.is_vectors(file)
    vectors.read_vectors(file)


@kind("tokenizer", "tokenizer", tokenizers)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.tokenizer import Tokenizer

    file = changed_file(folder)
    options: dict[str, Any] = {"pattern": "gpt2"} if file.suffix == ".tiktoken" else {}
    tok = Tokenizer.load(file, **options)
    for special in ("text", "allow"):
        tok.decode(tok.encode(TEXT, special, add_special=True))
    tok.encode("a" * 3000 + " " * 3000 + "5" + "the" * 500)


@kind("word counts", "tokenizer train", counted)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.tokenizer.word_counts import WordCounts

    WordCounts.load(folder / "words.counts")


@kind("token shards", "pretrain", corpus, "c/*")
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.data.shards import Corpus

    corpus = Corpus(folder / "c")
    corpus.read(0, min(corpus.tokens, 500))


@kind("checkpoint and log", "pretrain --resume", run_files)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.train import checkpoint, curve, log

    run = folder / "run"
    for points in curve.read_curve(run).values():
        curve.text(points)
    curve.page(run)
    log._cut(run / "metrics.jsonl", 6)
    for found in checkpoint.all_in(run):
        if checkpoint.damage(found) is None:
            checkpoint.state(found)
            checkpoint.tensors(found, "model")


@kind("run that is served", "serve open info", run_checkpoint, "run/**/*")
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.serve.api_error import APIError
    from cutaway.serve.runs.folder import Runs
    from cutaway.weights import load

    runs = Runs(folder)
    try:
        for one in runs.listed():
            runs.log(one["id"], runs.folder(one["id"]))
        found = load.read_checkpoint(runs.checkpoint("run", 4))
        for name in found.tensors:
            found.tensors[name]
    except APIError as error:
        raise UserError(str(error)) from None


@kind("report of attacks", "attack", report)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.security import report as own

    own.kept(folder / "results.json", "m", [])


@kind("search index", "chat --tools search, embed search", indexes, "home/*")
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.embedding import search

    index = search.Index(folder / "notes", folder / "home", "m")
    index.update(lambda texts: np.eye(len(texts), 2, dtype=np.float32), lambda text: True)
    index.search(np.ones(2, np.float32), 3)
    index.fused("cat", np.ones(2, np.float32), 3)
    index.close()


@kind("store of responses", "serve --store", stores)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.serve.response_store import ResponseStore

    store = ResponseStore(folder / "store.sqlite")
    store.get(b"key", "resp_1", "response")


@kind("conversation", "chat --load", conversations)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.commands.chat import Conversation

    Conversation.read(folder / "talk.json")


@kind("prompt", "generate --file", prompts)
def _(folder: Path, rng: random.Random) -> None:
    verb("generate", "--file", folder / "prompt.txt", "--model", base(), "--max-tokens", 1)


@kind("evaluation file", "eval", exercises)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.evaluate.tasks import file as own
    from cutaway.evaluate.tasks import text

    path = changed_file(folder)
    (text if path.suffix == ".txt" else own).task(str(path), None)


@kind("figures", "bundle --evaluation", figures)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway import bundle
    from cutaway.commands.bundle import _read

    bundle.card({}, {}, _read(folder / "figures.json"))


@kind("keys", "serve --api-key-file", keys)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.serve.operations import api_keys

    api_keys._entries(changed_file(folder))


@kind("server's config", "serve --config", served)
def _(folder: Path, rng: random.Random) -> None:
    verb("serve", "--config", folder / "serve.yaml", "--print-config")


@kind("signed manifest", "audit", signed, "*.sig")
def _(folder: Path, rng: random.Random) -> None:
    verb("audit", folder / "model.gguf", "--json", "--fail-on", "never")


@kind("pins of MCP tools", "chat --mcp", pins)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.agent import mcp

    with at_home(folder / "home"):
        mcp._accepted()


@kind("examples of a run", "finetune --resume", examples)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.train import examples as own

    own.report(folder)
    own.stored(folder, "examples")


@kind("what a draft began with", "finetune distill --draft", begun, "*begun.json")
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.commands import finetune_draft

    finetune_draft.begun(folder)


@kind("reward model", "finetune grpo --task", reward, "reward.safetensors")
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.train.objectives import reward_model

    opened = next(
        value for value in vars(reward_model).values() if isinstance(value, type) and hasattr(value, "scores")
    )
    opened(folder)


@kind("word similarities", "embed evaluate", similarities)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.embedding import evaluate
    from cutaway.embedding.vectors import Vectors

    file = changed_file(folder)
    vectors = Vectors([*"abcdefgh", "the"], np.eye(9, 6, dtype=np.float32))
    (evaluate.similarity if file.name == "pairs.txt" else evaluate.analogies)(vectors, file)


@kind("kept evaluations", "eval", evaluations)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.evaluate.cache import Cache

    cache = Cache(lm(), folder / "evaluations.sqlite")
    cache.fill([["x", 1], ["y", 2]], lambda numbers: [{"a": 1.5} for _ in numbers], lambda n: None)


@kind("Marian's tokenizer", "tokenizer", marian)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.tokenizer import Tokenizer

    tok = Tokenizer.load(folder / "m")
    tok.decode(tok.encode("abc def"))


@kind("tokenizer's folder", "tokenizer", tokenizer_folders)
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.tokenizer import Tokenizer

    tok = Tokenizer.load(changed_file(folder).parent)
    for special in ("text", "allow"):
        tok.decode(tok.encode(TEXT, special, add_special=True))


@kind("compiled vocabulary", "all verbs with a tokenizer", compiled, "home/*")
def _(folder: Path, rng: random.Random) -> None:
    from cutaway.tokenizer import Tokenizer

    with at_home(folder / "home"):
        tok = Tokenizer.load(folder / "tokenizer.json")
        tok.decode(tok.encode(TEXT, "allow"))


# Modules that read files, with the kinds of the table that go through them, or why none does.
PINNED = "of a checksum that is in the code"
OWN = "a part of this package, or of the system"
PREFIX = [n % 200 for n in range(300)]


def saved_text(folder: Path) -> None:
    """What `cutaway chat --save` and a slot leave."""
    from cutaway.generate.batch.saved_text import Saver
    from cutaway.store.sealed import Seal

    engine = lm().engine
    state = engine.new_state()
    engine.prefill(PREFIX, state)
    pages = [engine.keep(state, page) for page in (0, 1)]
    Saver(b"model", Seal()).write(folder / "talk.kv", engine, b"chat", PREFIX, pages)


@kind("saved KV cache", "chat serve", saved_text)
def _(folder: Path, rng: random.Random) -> None:
    """A text is restored as it was saved, or not at all."""
    from cutaway.generate.batch.saved_text import Saver
    from cutaway.store.sealed import DamagedError, Seal

    engine = lm().engine
    try:
        ids, _, pages = Saver(b"model", Seal()).read(folder / "talk.kv", engine, b"chat")
    except DamagedError:
        raise UserError("it is damaged") from None
    assert list(ids) == PREFIX
    state = engine.resume(pages)
    assert np.array_equal(engine.prefill(PREFIX[state.length :], state), engine.logits(PREFIX)[-1])


def prefix_pages(folder: Path) -> None:
    """Two pages of KV cache, as a server keeps them."""
    from cutaway.generate.batch.prefix_store import PrefixStore

    engine = lm().engine
    state, store = engine.new_state(), PrefixStore(folder / "prefixes", b"model", 1 << 30)
    engine.prefill(PREFIX, state)
    store.keep(engine, [b"one", b"two"], [engine.keep(state, page) for page in (0, 1)])
    store.close()


@kind("prefix pages", "serve", prefix_pages)
def _(folder: Path, rng: random.Random) -> None:
    """A page is loaded as it was written, or not at all."""
    from cutaway.generate.batch.prefix_cache import Absent
    from cutaway.generate.batch.prefix_store import PrefixStore

    engine, size = lm().engine, lm().engine.page
    ids = [PREFIX[:size], PREFIX[size : 2 * size]]
    store = PrefixStore(folder / "prefixes", b"model", 1 << 30)
    found = store.load(engine, Absent([b"one", b"two"], ids))
    store.close()
    state = engine.resume(list(found.values()))
    assert np.array_equal(engine.prefill(PREFIX[state.length :], state), engine.logits(PREFIX)[-1])


READERS = {
    "agent/mcp.py": "pins of MCP tools",
    "agent/tools/read.py": "the text of a user's own folder, given to the model as text",
    "bundle.py": "bundle",
    "cli.py": OWN,
    "extras.py": OWN,
    "commands/arena.py": "prompt",
    "commands/bench.py": OWN,
    "commands/bundle.py": "figures",
    "commands/chat.py": "conversation, chat template",
    "commands/plots.py": OWN,
    "commands/console.py": "prompt, adapter",
    "commands/convert.py": "prompt",
    "commands/embed/project.py": OWN,
    "commands/embed/text.py": "prompt",
    "commands/embed/train.py": "rows of examples",
    "commands/explain.py": OWN,
    "commands/graph.py": OWN,
    "commands/finetune_draft.py": "what a draft began with",
    "commands/generate.py": "prompt",
    "commands/merge.py": "prompt",
    "commands/quantize.py": "prompt",
    "commands/run.py": "bundle",
    "commands/sae.py": "activations",
    "commands/sae_check.py": "activations, autoencoder",
    "commands/sae_features.py": "activations, autoencoder",
    "commands/sae_texts.py": "activations, autoencoder",
    "commands/info.py": "adapter",
    "commands/serve.py": "chat template",
    "commands/serve_options.py": "server's config",
    "commands/tokenizer/measure.py": PINNED,
    "commands/tokenizer/train.py": "prompt",
    "commands/tokenizer_source.py": "prompt",
    "compare/sweep.py": "checkpoint and log",
    "course/attempt.py": "the reader's own code, in a process of its own",
    "course/folder.py": "the reader's own progress, one small JSON file",
    "data/novels.py": PINNED,
    "data/parquet.py": "parquet",
    "data/rows.py": "rows of examples, CSV, parquet, evaluation file",
    "data/shards.py": "token shards",
    "data/sources.py": "rows of examples, parquet",
    "embedding/corpus.py": "rows of examples",
    "embedding/evaluate.py": "word similarities",
    "embedding/glove.py": "runs of one process in a folder that it made",
    "embedding/search.py": "search index",
    "evaluate/cache.py": "kept evaluations",
    "evaluate/data.py": PINNED,
    "evaluate/drafts.py": "rows of examples",
    "evaluate/code_eval.py": "code of the user's own, and what it was",
    "evaluate/tasks/bigbench.py": PINNED,
    "evaluate/tasks/humaneval.py": PINNED,
    "generate/batch/prefix_store.py": "prefix pages",
    "generate/batch/saved_text.py": "saved KV cache",
    "gguf/container.py": "GGUF model",
    "inspect/activations.py": "activations",
    "inspect/collecting.py": "activations",
    "inspect/how/tokenizers.py": OWN,
    "inspect/graph/exported.py": "graph",
    "inspect/rows.py": "rows of a study",
    "inspect/sae_folders.py": "autoencoder",
    "inspect/sae_formats.py": "other tools' dictionaries",
    "inspect/sae_training_pytorch.py": "training of a dictionary",
    "inspect/dictionaries.py": "texts of features",
    "inspect/features.py": "labels of features",
    "inspect/steering.py": "steering file",
    "inspect/saved_trace.py": "trace",
    "inspect/jacobian_file.py": "Jacobian lens",
    "inspect/lenses.py": "Jacobian lens, tuned lens",
    "inspect/tuned_lens.py": "tuned lens",
    "inspect/tuned_maps.py": "tuned lens",
    "memory.py": OWN,
    "runtime/prefetching.py": "what this machine measured, of a damaged file nothing",
    "store/sealed.py": "prefix pages",
    "native/library.py": OWN,
    "page/bundle.py": OWN,
    "page/svg/drawing.py": OWN,
    "sandbox/folders.py": OWN,
    "sandbox/inside.py": OWN,
    "sandbox/launcher.py": OWN,
    "sandbox/namespaces.py": OWN,
    "sandbox/starters.py": OWN,
    "security/audit.py": "GGUF model, Hugging Face folder, signed manifest",
    "security/jailbreak_target.py": "what a probe kept in its own folder",
    "security/probes/files.py": OWN,
    "security/probes/injection_training.py": "what a probe kept in its own folder",
    "security/poisoned_models.py": "what a probe kept in its own folder",
    "security/probes/private_training.py": "what a probe kept in its own folder",
    "security/report.py": "report of attacks",
    "security/training.py": "what a probe kept in its own folder",
    "serve/operations/api_keys.py": "keys",
    "serve/page.py": OWN,
    "serve/response_store.py": "store of responses",
    "serve/runs/folder.py": "run that is served",
    "serve/runs/log.py": "run that is served",
    "store/models.py": PINNED,
    "store/files.py": OWN,
    "store/catalogue.py": OWN,
    "store/hub.py": OWN,
    "store/hub_http.py": OWN,
    "store/reading.py": "all that is text, JSON or arrays",
    "store/yaml_files.py": "run.yaml, server's config",
    "tokenizer/compiled.py": "compiled vocabulary",
    "tokenizer/spec_files.py": "tokenizer",
    "tokenizer/formats/folder.py": "tokenizer, Hugging Face folder",
    "tokenizer/formats/gpt2_files.py": "tokenizer's folder",
    "tokenizer/formats/marian.py": "Marian's tokenizer",
    "tokenizer/formats/rank_folder.py": "tokenizer's folder",
    "tokenizer/tokenizer.py": "tokenizer, GGUF model",
    "tokenizer/training.py": OWN,
    "tokenizer/unicode.py": OWN,
    "tokenizer/word_counts.py": "word counts",
    "train/checkpoint.py": "checkpoint and log",
    "train/compiling.py": "what this machine measured, of a damaged file nothing",
    "train/config.py": "run.yaml",
    "train/curve.py": "checkpoint and log",
    "train/examples.py": "examples of a run",
    "train/folder.py": "checkpoint and log",
    "train/git.py": OWN,
    "train/log.py": "checkpoint and log",
    "train/methods.py": "what a draft began with",
    "train/objectives/reward_model.py": "reward model",
    "train/own_text.py": "rows of examples",
    "train/recipes/finetune.py": "examples of a run",
    "train/remote_sampler.py": "adapter",
    "train/rollouts.py": OWN,
    "weights/adapters.py": "adapter",
    "weights/classifier.py": "a classifier's head in such a folder, which has no kind of its own yet",
    "evaluate/task_registry.py": OWN,
    "weights/class_keys.py": OWN,
    "pipeline/config.py": "pipeline",
    "pipeline/costs.py": OWN,
    "pipeline/data.py": "rows of examples",
    "pipeline/energy.py": OWN,
    "pipeline/folder.py": "figures of a run in a folder that it made",
    "pipeline/run.py": "figures of a run in a folder that it made",
    "pipeline/card.py": "figures of a run in a folder that it made",
    "pipeline/budget.py": "figures of a run in a folder that it made",
    "quantization/codebooks.py": OWN,
    "weights/described.py": "GGUF model, Hugging Face folder",
    "weights/eagle3.py": "EAGLE-3 head",
    "weights/family_registry.py": OWN,
    "weights/gguf_adapters.py": "GGUF adapter",
    "weights/imatrix.py": "importance matrix",
    "weights/load.py": "GGUF model, Hugging Face folder, Cutaway's own folder",
    "weights/pair_inputs.py": "Hugging Face folder",
    "weights/peft_config.py": "adapter",
    "weights/peft_head.py": "adapter",
    "weights/peft_read.py": "adapter",
    "weights/peft_write.py": "adapter",
    "weights/pooling.py": "Hugging Face folder",
    "weights/quantized/methods.py": "quantized layer",
    "weights/run_checkpoint.py": "run that is served",
    "weights/safetensors.py": "Hugging Face folder, folder in shards",
    "weights/torch_zip.py": "Jacobian lens",
    "weights/vectors.py": "word vectors",
}


if str(Path(__file__).parents[3]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[3]))
