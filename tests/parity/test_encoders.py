"""Every encoder against transformers: tiny, random, every weight perturbed, both ways, behind padding."""

import json
import re
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import cutaway
from cutaway.errors import UserError
from cutaway.model.config import Encoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.token_vectors import TokenVectors
from cutaway.runtime import text_vectors
from cutaway.runtime.encoder import EncoderEngine, unsupported_reason
from cutaway.weights import build, load, save
from tests import llama_cpp
from tests.parity import tiny_encoders
from tests.parity.tiny import IDS, VOCAB, perturbed, transformers
from tests.parity.words import WORDS

EXACT = 1e-5
SIZES = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 1}
DISTIL = {"vocab_size": VOCAB, "dim": 48, "hidden_dim": 40, "n_heads": 4, "n_layers": 2}
GEMMA = SIZES | {
    "use_bidirectional_attention": True,
    "head_dim": 12,
    "num_key_value_heads": 2,
    "sliding_window": 8,
}
GEMMA |= {"query_pre_attn_scalar": 12}
T5 = {"vocab_size": VOCAB, "d_model": 48, "d_kv": 12, "d_ff": 40, "num_layers": 3, "num_heads": 3}
T5 |= {"initializer_factor": 0.2, "pad_token_id": 0, "eos_token_id": 1}
FULL, NEAR = "full_attention", "sliding_attention"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta-1": ("RobertaConfig", SIZES),
    "roberta-2": (
        "RobertaConfig",
        SIZES | {"type_vocab_size": 1, "pad_token_id": 0, "hidden_act": "relu"},
    ),
    "roberta-3": ("XLMRobertaConfig", SIZES | {"layer_norm_eps": 1e-3, "num_attention_heads": 3}),
    "distilbert-1": ("DistilBertConfig", DISTIL),
    "distilbert-2": ("DistilBertConfig", DISTIL | {"activation": "relu", "n_heads": 3}),
    "distilbert-3": ("DistilBertConfig", DISTIL | {"n_layers": 3, "max_position_embeddings": 40}),
    "modernbert-1": ("ModernBertConfig", SIZES | {"local_attention": 10}),
    "modernbert-2": (
        "ModernBertConfig",
        SIZES
        | {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "layer_types": [NEAR, FULL, NEAR]},
    ),
    "modernbert-3": (
        "ModernBertConfig",
        SIZES
        | {"local_attention": 7, "norm_eps": 1e-3, "num_attention_heads": 2}
        | {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": 500.0} for kind in (FULL, NEAR)}},
    ),
    "modernbert-4": ("ModernBertConfig", SIZES | {"hidden_activation": "relu"}),
    "modernbert-5": ("ModernBertConfig", SIZES | {"hidden_activation": "silu", "layer_types": [FULL] * 3}),
    "embedding_gemma-1": ("Gemma3TextConfig", GEMMA | {"layer_types": [NEAR, FULL, NEAR]}),
    "embedding_gemma-2": (
        "Gemma3TextConfig",
        GEMMA | {"query_pre_attn_scalar": 30, "num_hidden_layers": 2, "layer_types": [FULL] * 2},
    ),
    "embedding_gemma-3": (
        "Gemma3TextConfig",
        GEMMA | {"num_key_value_heads": 1, "head_dim": 20, "sliding_window": 6, "layer_types": [NEAR] * 3},
    ),
    "embedding_gemma-4": ("Gemma3TextConfig", GEMMA | {"layer_types": [FULL] * 3}),
    "t5_encoder-1": ("T5Config", T5 | {"num_decoder_layers": 1}),
    "t5_encoder-2": ("T5Config", T5 | {"feed_forward_proj": "gated-gelu", "d_kv": 20, "num_heads": 5}),
    "t5_encoder-3": (
        "T5Config",
        T5
        | {"feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False}
        | {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 20},
    ),
}
CASES |= tiny_encoders.CASES
IN_GGUF = ("roberta-1", "roberta-3", "distilbert-1", "modernbert-1", "modernbert-3", "modernbert-5")
IN_GGUF += ("distilbert-3", "embedding_gemma-1")
IN_GGUF += tiny_encoders.IN_GGUF
NO_KERNEL = ("deberta-1", "deberta-2", "deberta_v2-1", "deberta_v2-2", "deberta_v2-3")
TABLE = 2e-3  # llama.cpp's GELU is a table of half-precision numbers
LENGTH = IDS.shape[1]
POS = torch.arange(LENGTH).expand(IDS.shape)


def auto(case: str) -> Any:
    """The class of transformers that makes and opens the case's model."""
    return T5Encoder if case.startswith("t5") else transformers.AutoModel


class T5Encoder(transformers.T5EncoderModel):
    """The class that AutoModel does not choose for T5's configs."""

    from_config = transformers.T5EncoderModel._from_config


@lru_cache(maxsize=1)
def made(case: str) -> Any:
    """The case's model, in transformers, to be read only."""
    return perturbed(auto(case), *CASES[case])


@torch.no_grad()
def theirs(model: Any) -> torch.Tensor:
    return model(IDS).last_hidden_state


@torch.no_grad()
def ours(checkpoint: load.Checkpoint) -> torch.Tensor:
    return build.encoder(checkpoint)(IDS, POS)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def test_both_directions(case: str, saved: Path, tmp_path: Path) -> None:
    checkpoint, expected = load.read_checkpoint(saved), theirs(made(case))
    assert checkpoint.family == case.rpartition("-")[0]
    assert (ours(checkpoint) - expected).abs().max() < EXACT
    written = save.write_checkpoint(tmp_path / "ours", checkpoint)
    assert written.family == checkpoint.family, written.notes
    opened, info = auto(case).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    missing = [
        key
        for key in info["missing_keys"]
        if not re.search("pooler|embed_positions|contact_head|inv_freq", key)
    ]
    assert not info["unexpected_keys"] and not missing
    assert (theirs(opened.eval()) - expected).abs().max() < EXACT
    again = load.read_checkpoint(tmp_path / "ours")
    assert again.config == checkpoint.config
    assert all(
        np.array_equal(again.tensors[name].data, checkpoint.tensors[name].data) for name in again.tensors
    )


@torch.no_grad()
def test_padding_changes_nothing_and_the_config_knows_every_weight(case: str, saved: Path) -> None:
    checkpoint = load.read_checkpoint(saved)
    model, expected = build.encoder(checkpoint), theirs(made(case))
    left = model(F.pad(IDS, (5, 0)), F.pad(POS, (5, 0), value=-1))
    right = model(F.pad(IDS, (0, 3)), F.pad(POS, (0, 3), value=-1))
    assert (left[:, 5:] - expected).abs().max() < EXACT and (right[:, :-3] - expected).abs().max() < EXACT
    for kind, wanted in (("mean", expected.mean(1)), ("cls", expected[:, 0]), ("last", expected[:, -1])):
        rows = [row.tolist() for row in IDS]
        found = text_vectors.vectors(TokenVectors(model), [*rows, [1]], kind, normalise=False)
        assert np.abs(found[:-1] - wanted.numpy()).max() < EXACT
        alone = text_vectors.vectors(TokenVectors(model), [[1]], kind, normalise=False)
        assert np.abs(found[-1] - alone[0]).max() < EXACT
    assert from_dict(to_dict(checkpoint.config), Encoder) == checkpoint.config
    named = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert checkpoint.config.weights() == named


def test_the_runtime(case: str, saved: Path) -> None:
    """Texts of three lengths are read together; what has no kernel says so."""
    checkpoint = load.read_checkpoint(saved)
    reason = unsupported_reason(checkpoint.config, checkpoint.tensors)
    assert (reason is not None) == (case in NO_KERNEL), reason
    if reason is not None:
        return
    rows = [IDS[0].tolist(), IDS[1, :1].tolist(), IDS[1].tolist()]
    found = EncoderEngine(checkpoint.config, checkpoint.tensors).encode(rows)
    expected = theirs(made(case)).numpy()
    assert np.abs(found[0] - expected[0]).max() < EXACT and np.abs(found[2] - expected[1]).max() < EXACT


def test_a_key_that_is_not_understood_is_refused(saved: Path, tmp_path: Path) -> None:
    data = json.loads((saved / "config.json").read_text())
    refused = [{"twisted": 2}, {"add_cross_attention": True}]
    refused += [{"is_encoder_decoder": True}] if data["model_type"] != "t5" else []
    for more in refused:
        (tmp_path / "config.json").write_text(json.dumps(data | more))
        (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
        with pytest.raises(UserError, match=next(iter(more))):
            load.read_checkpoint(tmp_path, strict=True)


@pytest.mark.parametrize("every", [2, 3])
def test_modernberts_layers_without_their_list(every: int, tmp_path: Path) -> None:
    """Older configs say how many layers there are to one that sees all tokens, which is the first."""
    made("modernbert-1").save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    del data["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(data | {"global_attn_every_n_layers": every}))
    opened = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    checkpoint = load.read_checkpoint(tmp_path)
    far = [block.attention.reach is None for block in checkpoint.config.blocks]
    assert far == [n % every == 0 for n in range(3)]
    assert (ours(checkpoint) - theirs(opened)).abs().max() < EXACT


def test_gguf_and_llama_cpp(case: str, saved: Path, tmp_path: Path) -> None:
    """llama.cpp pools the same outputs; back in a folder the model is the same. Others are refused."""
    checkpoint = replace(load.read_checkpoint(saved), metadata=WORDS)
    if case not in IN_GGUF:
        with pytest.raises(
            UserError, match=r"cannot be written as GGUF: .*(llama\.cpp|is not supported|no name for)"
        ):
            save.write_checkpoint(tmp_path / "model.gguf", checkpoint)
        return
    save.write_checkpoint(tmp_path / "model.gguf", checkpoint)
    again, expected = load.read_checkpoint(tmp_path / "model.gguf"), theirs(made(case)).numpy()
    assert again.config == replace(checkpoint.config, offset=0)
    save.write_checkpoint(tmp_path / "back", replace(again, read_tokenizer=None))
    assert np.abs(ours(load.read_checkpoint(tmp_path / "back")).numpy() - expected).max() < EXACT
    last = llama_cpp.pooled(tmp_path / "model.gguf", IDS[0].tolist(), "LAST")
    assert np.abs(last - expected[0, -1]).max() < TABLE
    with torch.no_grad():
        mean = made(case)(IDS[1:, :9]).last_hidden_state[0].mean(0).numpy()
    assert np.abs(llama_cpp.pooled(tmp_path / "model.gguf", IDS[1, :9].tolist()) - mean).max() < TABLE


def test_a_t5_encoders_table_has_either_name_and_a_decoder_beside_it_is_left(tmp_path: Path) -> None:
    """As older folders are: of a whole T5's config, its table by the stack's name, or by both."""
    from safetensors.torch import load_file, save_file

    model, expected = made("t5_encoder-1"), theirs(made("t5_encoder-1"))
    model.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"is_encoder_decoder": True}))
    weights = load_file(tmp_path / "model.safetensors")
    table = weights.pop("shared.weight")
    weights["decoder.block.0.layer.0.layer_norm.weight"] = torch.ones(48)
    stack = {"encoder.embed_tokens.weight": table.clone()}
    for tables in (stack, {"shared.weight": table}, stack | {"shared.weight": table}):
        save_file(weights | tables, tmp_path / "model.safetensors")
        assert (ours(load.read_checkpoint(tmp_path)) - expected).abs().max() < EXACT
        lm = cutaway.load(tmp_path)
        with torch.no_grad():
            mean = F.normalize(model(IDS[:1]).last_hidden_state.mean(1), dim=-1)[0].numpy()
        assert np.abs(embedded(lm)[0] - mean).max() < EXACT
    save_file(weights | stack | {"shared.weight": table + 1}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"'encoder.embed_tokens.weight' should repeat 'shared.weight'"):
        load.read_checkpoint(tmp_path)


def embedded(lm: cutaway.LanguageModel) -> np.ndarray:
    return lm.embed([IDS[0].tolist(), IDS[1, :9].tolist()])


def test_dense_layers_after_the_pooling_are_applied_and_kept(tmp_path: Path) -> None:
    """As sentence-transformers applies those of EmbeddingGemma's folder: pooled, projected, then normed."""
    from safetensors.torch import save_file

    folder, model = tmp_path / "model", made("embedding_gemma-1")
    model.save_pretrained(folder)
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dense", "3_Dense")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    sizes, layers = (48, 80, 24), []
    for n, (inside, out) in enumerate(pairwise(sizes), 2):
        layers.append(torch.nn.Linear(inside, out, bias=n == 3))
        (folder / f"{n}_Dense").mkdir()
        named = "Tanh" if n == 3 else "linear.Identity"
        own = {
            "in_features": inside,
            "out_features": out,
            "bias": n == 3,
            "activation_function": f"torch.nn.{named}",
        }
        (folder / f"{n}_Dense" / "config.json").write_text(json.dumps(own))
        weights = {f"linear.{name}": weight for name, weight in layers[-1].state_dict().items()}
        save_file(weights, folder / f"{n}_Dense" / "model.safetensors")
    with torch.no_grad():
        hidden = [model(IDS[:1]).last_hidden_state, model(IDS[1:, :9]).last_hidden_state]
        pooled = torch.cat([x.mean(1) for x in hidden])
        expected = F.normalize(layers[1](layers[0](pooled)).tanh(), dim=-1).numpy()
    assert np.abs(embedded(cutaway.load(folder)) - expected).max() < EXACT
    save.write_checkpoint(tmp_path / "again", load.read_checkpoint(folder))
    assert np.abs(embedded(cutaway.load(tmp_path / "again")) - expected).max() < EXACT
    with pytest.raises(UserError, match="dense layers after the pooling are not supported in GGUF"):
        save.write_checkpoint(tmp_path / "model.gguf", replace(load.read_checkpoint(folder), metadata=WORDS))
    for n, (inside, out) in enumerate(((48, 80), (80, 48)), 2):  # those that llama.cpp has room for
        own = {"in_features": inside, "out_features": out, "bias": False}
        (folder / f"{n}_Dense" / "config.json").write_text(json.dumps(own))
        matrix = torch.nn.Linear(inside, out, bias=False).weight.detach()
        save_file({"linear.weight": matrix}, folder / f"{n}_Dense" / "model.safetensors")
    save.write_checkpoint(tmp_path / "model.gguf", replace(load.read_checkpoint(folder), metadata=WORDS))
    found = embedded(cutaway.load(tmp_path / "model.gguf"))
    assert np.abs(found - embedded(cutaway.load(folder))).max() < EXACT
    judged = llama_cpp.pooled(tmp_path / "model.gguf", IDS[1, :9].tolist())
    assert np.abs(judged / np.linalg.norm(judged) - found[1]).max() < TABLE
