"""Every key of every family's config.json, dropped, nulled and edited, against transformers.

The law: a config is refused, or the logits are those of transformers. What transformers refuses may be read
only if the key is one that changes nothing. A key that transformers' class does not read is warned of.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cutaway.errors import UserError
from cutaway.weights import class_keys, load
from cutaway.weights.fields import UnreadKeys
from scripts.tables import class_keys as scripts_class_keys
from tests.parity import tiny, tiny_decoders, tiny_recurrent
from tests.parity.test_families import distance, within

Folder = Callable[[str], Path]
CASES = (
    "llama",
    "llama3",
    "mistral",
    "mixtral",
    "qwen2-window",
    "qwen3",
    "qwen2-moe-mixed",
    "qwen3-moe",
    "gpt2",
)
CASES += ("gemma3-odd", "exaone4-1", "bamba-1", "gemma4-2", "mamba2-1", "nemotron_h-1", "falcon_h1-1")
CASES += ("opt-1", "deepseek_v32-1", "kimi_linear-1")
CASES += (*tiny_recurrent.EDITED, *tiny_decoders.EDITED)
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
EXTRA: list[dict[str, Any]] = [  # keys that configs have in other places, or that other families have
    {"is_causal": False},
    {"is_causal": None},
    {"rope_theta": 5e5},
    {"rope_theta": 5e5, "rope_parameters": None},
    {"rope_theta": None, "rope_parameters": None},
    {"rope_scaling": LINEAR},
    {"rope_scaling": LINEAR, "rope_parameters": None, "rope_theta": 5e5},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None},
    {"rope_scaling": LINEAR | {"rope_theta": 1e3}},
    {"rope_scaling": {}},
    {"rope_parameters": {}},
    {"rope_parameters": LINEAR},
    {"rope_parameters": {"rope_theta": None, "rope_type": "default"}},
    {"rope_parameters": {"rope_theta": 1e3}},
    {"rope_parameters": {"rope_type": "default", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3}},
    {"rope_parameters": {"rope_type": "llama3", **LLAMA3}, "original_max_position_embeddings": 32},
    {"rope_parameters": {"full_attention": LINEAR | {"rope_theta": 1e3}}},
    {
        "rope_parameters": {"sliding_attention": {"rope_theta": 1e3, "rope_type": "default"}},
        "rope_theta": 5e4,
    },
    {"rope_local_base_freq": 1e3},
    {"rope_local_base_freq": 1e3, "rope_parameters": None},
    {"original_max_position_embeddings": 16},
    {"partial_rotary_factor": 0.5},
    {"sliding_window": 4},
    {"layer_types": ["full_attention", "full_attention"]},
    {"layer_types": ["sliding_attention", "full_attention"]},
    {"sliding_window_pattern": 2},
    {"sliding_window_pattern": 2, "layer_types": None},
    {"_sliding_window_pattern": 2, "layer_types": None},
    {"use_sliding_window": False},
    {"num_experts": 5},
    {"num_local_experts": 6},
    {"head_dim": 8},
    {"attention_bias": True},
    {"tie_word_embeddings": True},
    {"logit_scale": 2.0},
    {"hidden_size": 64, "n_embd": 64},
    {"attn_logit_softcapping": 5.0},
    {"unsloth_fixed": True},
]


def edited(value: Any) -> Any:
    """A likely other value."""
    match value:
        case bool():
            return not value
        case int():
            return value + 2
        case float():
            return value * 1.5 + 0.25
        case "silu" | "gelu_new" | "gelu_pytorch_tanh":
            return "relu"
        case str():
            return value + "x"
        case list():
            return value[:-1]
        case None:
            return 8
    return {key: edited(entry) if isinstance(entry, float | int) else entry for key, entry in value.items()}


def changes(base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The base config, changed in one way after another; ``...`` drops a key."""
    for key, value in base.items():
        if key in ("model_type", "architectures", "transformers_version", "dtype", "vocab_size"):
            continue
        for other in (..., None, edited(value)):
            yield {key: other}
    yield from EXTRA


def judged(folder: Path, known: dict[str, Any]) -> Any:
    """Transformers' logits, or None where it refuses or draws a weight at random.

    ``known`` keeps them by all that transformers reads of the config: many changes come to the same.
    """
    try:
        read = repr(vars(tiny.transformers.AutoConfig.from_pretrained(folder)))
        if read not in known:
            known[read] = tiny.reopened(folder)
        return known[read]
    except Exception:
        return None


@pytest.mark.filterwarnings("ignore::cutaway.weights.fields.UnreadKeys")
@pytest.mark.parametrize("case", CASES)
def test_each_key_is_that_of_transformers_or_refused(case: str, folder: Folder, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder(case), model)
    base = json.loads((model / "config.json").read_text())
    plain = load.read_checkpoint(model)
    expected, read, known = tiny.ours(plain), 0, {}
    for change in changes(base):
        data = {key: value for key, value in (base | change).items() if value is not ...}
        (model / "config.json").write_text(json.dumps(data))
        try:
            found = load.read_checkpoint(model)
            logits = expected if found.config == plain.config else tiny.ours(found)
        except UserError:
            continue
        read += 1
        theirs = judged(model, known)
        if theirs is None:
            assert found.config == plain.config, f"{change} is refused by transformers"
        else:
            bound = within(case)
            assert distance(logits, theirs) < bound, f"{change} is read otherwise"
    assert read > 20


def test_a_key_that_no_such_model_reads_is_warned_of_and_strictly_refused(
    folder: Folder, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder("qwen3"), model)
    base = json.loads((model / "config.json").read_text())
    plain = load.read_checkpoint(model, strict=True)

    def read(strict: bool = False, **own: object) -> Any:
        (model / "config.json").write_text(json.dumps(base | own))
        return load.read_checkpoint(model, strict)

    for own in (
        {"use_mrope": False},
        {"rope_interleaved": False},
        {"n_ctx": base["max_position_embeddings"]},
    ):
        assert read(strict=True, **own).config == plain.config  # says what is computed
    with pytest.warns(
        UnreadKeys, match=r"'use_mrope' is True, 'ours' is \[1\]: without effect, since no qwen3"
    ):
        assert read(use_mrope=True, ours=[1]).config == plain.config
    with pytest.warns(UnreadKeys, match=r"'rope_parameters.fast' is 2: without effect"):
        read(rope_parameters=base["rope_parameters"] | {"fast": 2})
    for own in ({"use_mrope": True}, {"rope_parameters": base["rope_parameters"] | {"fast": 2}}):
        with pytest.raises(UserError, match="have no such setting here"):
            read(strict=True, **own)
    with pytest.raises(UserError, match="'num_local_experts' is 4, and qwen3 models have no such setting"):
        read(num_local_experts=4)  # which transformers asks of a config


def test_the_table_of_keys_is_that_of_this_transformers() -> None:
    """Of a few of its models; `python -m scripts.tables.class_keys --check` compares all."""
    assert f"transformers {tiny.transformers.__version__} reads" in class_keys.FILE.read_text("utf-8")
    for kind in ("llama", "qwen2", "falcon", "gpt_oss", "bert", "t5"):
        found = class_keys.of(kind)
        assert found and found == class_keys.of("*") | scripts_class_keys.keys(kind)


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"model_type": "idefics"}, "transformers has such models, and Cutaway does not read them"),
        (
            {
                "model_type": "own_7b",
                "auto_map": {"AutoConfig": "you/it--configuration_own.Own", "AutoModel": 3},
            },
            r"only code of its own knows such a model \(configuration_own.py, by auto_map\)",
        ),
        ({"model_type": "own_7b"}, "'own_7b', not one of"),
    ],
)
def test_a_model_of_no_family_is_named_for_what_it_is(
    own: dict[str, Any], why: str, folder: Folder, tmp_path: Path
) -> None:
    shutil.copytree(folder("llama"), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    with pytest.raises(UserError, match=why):
        load.read_checkpoint(tmp_path / "model")
