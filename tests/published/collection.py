"""Published config.json files, their sizes made small, beside transformers on random weights.

An entry of ``configs/*.jsonl`` is what a model's own config.json says, with where it was found. ``small``
divides the sizes and leaves every other key as it is published; ``judged`` builds transformers' model of it,
moves every weight off its start, writes its folder with that config, and says what Cutaway makes of it.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from cutaway.errors import UserError
from cutaway.model.config import Encoder, EncoderDecoder
from cutaway.weights import build, load
from cutaway.weights.fields import UnreadKeys
from tests.rounding import noise

CONFIGS = Path(__file__).parent / "configs"
VOCAB, WIDTH, HIDDEN, HEAD, CONTEXT = 64, 32, 48, 16, 16
EXACT = 1e-5
IDS = torch.randint(2, VOCAB - 2, (2, 24), generator=torch.Generator().manual_seed(1))
SOURCE = torch.randint(2, VOCAB - 2, (2, 17), generator=torch.Generator().manual_seed(2))
SEQ2SEQ = ("t5", "mt5", "umt5", "bart", "marian", "mbart", "pegasus", "m2m_100")
LENGTHS_KEPT = ("phimoe",)  # whose long divisors transformers 5 does not take (weights/families/phimoe.py)
ENCODERS = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "albert",
    "electra",
    "mpnet",
    "modernbert",
    "deberta-v2",
)
ENCODERS += ("deberta", "ernie", "camembert", "megatron-bert", "data2vec-text", "rembert")
ENCODERS += ("roberta-prelayernorm", "xlm-roberta-xl")


class Entry(NamedTuple):
    """A published config: of which model, where it was found, and why it is refused if it is."""

    name: str
    source: str
    config: dict[str, Any]
    refused: str | None = None


def entries() -> list[Entry]:
    """The collection, in the order of its files."""
    lines = (
        line for file in sorted(CONFIGS.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()
    )
    return [Entry(**json.loads(line)) for line in lines]


def text_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that says how text is read, without how its weights were packed."""
    found = dict(config.get("text_config") or config)
    if "text_config" in config and "tie_word_embeddings" in config:
        found.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
    found.pop("quantization_config", None)
    return found


# ---- sizes made small --------------------------------------------------------------------------------------

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
LAYERS += ("encoder_layers", "decoder_layers", "num_decoder_layers")
QUERY = ("num_attention_heads", "n_head", "num_heads", "n_heads")
QUERY += ("encoder_attention_heads", "decoder_attention_heads")
GROUPS = ("num_key_value_heads", "num_kv_heads")
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "pooler_hidden_size")
WIDTHS += ("block_dim", "conv_dim")
MLPS = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "hidden_dim", "block_ff_dim")
MLPS += ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size")
MLPS += ("encoder_ffn_dim", "decoder_ffn_dim", "moe_shared_expert_intermediate_size")
MLPS += ("intermediate_size_mlp", "dense_intermediate_size")
FIXED = {  # other sizes, and what they become where they are larger
    "vocab_size": VOCAB,
    "embedding_size": 16,
    "sliding_window": 8,
    "window_size": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "index_n_heads": 16,  # fewer have equal scores, of which any may be chosen
    "index_head_dim": 16,
    "index_topk": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_n_heads": 4,
    "mamba_head_dim": 16,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "state_size": 8,
    "n_groups": 2,
    "mamba_n_groups": 2,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
    "block_multiple_of": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "global_head_dim": 32,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "num_kv_shared_layers": 2,
    "attention_chunk_size": 8,
    "rotary_dim": 8,
    "kv_channels": HEAD,
    "d_kv": 8,
    "moe_latent_size": 16,
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
OF_HEADS = ("head_dim", "attention_head_dim")


def small(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with sizes that a test can hold; its keys and all else are those that were published."""
    found: dict[str, Any] = copy.deepcopy(dict(config))
    before = next((found[key] for key in LAYERS if found.get(key)), None)
    after = _layers(found, before)
    for key, value in found.items():
        if isinstance(value, list) and before and len(value) == before and key != "rope_scaling":
            found[key] = value[:after]
        elif key in LAYERS and value:
            found[key] = min(value, after)
        elif key in MLPS and value:
            found[key] = HIDDEN
        elif key in FIXED and isinstance(value, int) and not isinstance(value, bool):
            found[key] = min(value, FIXED[key])
        elif key in EXPERTS and value:
            found[key] = min(value, max(8, 2 * (found.get("n_group") or 1)))
        elif key.endswith("token_id") and value is not None:
            found[key] = [each % VOCAB for each in value] if isinstance(value, list) else value % VOCAB
    if "hybrid_override_pattern" in found:
        found["hybrid_override_pattern"] = found["hybrid_override_pattern"][:after]
    if "attention_types" in found:
        found["attention_types"] = [[kinds, after // len(kinds)] for kinds, _ in found["attention_types"]]
    if found.get("full_attn_idxs"):
        found["full_attn_idxs"] = [n for n in found["full_attn_idxs"] if n < after]
    if found.get("bad_words_ids"):
        found["bad_words_ids"] = [[id % VOCAB for id in ids] for ids in found["bad_words_ids"]]
    _heads(found)
    _positions(found)
    return found


def _layers(config: Mapping[str, Any], before: int | None) -> int:
    """How many layers show every kind of layer that the config has."""
    if before is None:
        return 2
    listed = [value for value in config.values() if isinstance(value, list) and len(value) == before]
    pattern = config.get("hybrid_override_pattern")
    listed += [list(pattern)] if pattern else []
    needed = [2]
    for kinds in listed:
        kinds = [json.dumps(kind) for kind in kinds]
        needed.append(max(kinds.index(kind) for kind in set(kinds)) + 1)
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    period = len(period) if isinstance(period, str) else period
    needed += [
        period or 0,
        config.get("full_attention_interval") or 0,
        config.get("no_rope_layer_interval") or 0,
    ]
    if config.get("full_attn_idxs"):
        needed.append(config["full_attn_idxs"][0] + 1)
    if config.get("first_k_dense_replace"):
        needed.append(3)
    if config.get("num_kv_shared_layers"):
        needed.append(2 * max(needed))
    return min(before, max(needed))


def _heads(found: dict[str, Any]) -> None:
    """Few heads, in the proportion that there was, and a width that they share."""
    query = [key for key in QUERY if found.get(key)]
    if not query:
        return
    heads = found[query[0]]
    groups = next((found[key] for key in GROUPS if found.get(key)), None)
    few = 2 if groups is None or groups == heads else min(groups, 2)
    many = few if groups == heads else 2 * few if groups else 4 if heads % 4 == 0 else 2
    if found.get("multi_query") and not found.get("new_decoder_architecture"):
        few, many = 2, 2
    for key in query:
        found[key] = many
    for key in GROUPS:
        if found.get(key):
            found[key] = few
    own = next((key for key in OF_HEADS if isinstance(found.get(key), int)), None)
    shared = WIDTH if own or "d_kv" in found or "kv_lora_rank" in found else many * HEAD
    for key in WIDTHS:
        if found.get(key):
            found[key] = shared
    for key in OF_HEADS:
        if isinstance(found.get(key), int):
            found[key] = _head(found)
    keys, values = found.get("linear_num_key_heads"), found.get("linear_num_value_heads")
    if keys and values:
        found |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2 * (values // keys)}
    if found.get("conv_dim_out"):
        found["conv_dim_out"] = shared
    if found.get("mamba_num_heads") and not found.get("mamba_head_dim"):
        found["mamba_num_heads"] = 4


def _head(found: Mapping[str, Any]) -> int:
    """A size of heads of which an even number rotates, in whole pairs for each section of positions."""
    part = found.get("partial_rotary_factor") or 1.0
    start = 2 * HEAD if "linear_key_head_dim" in found else HEAD
    return next(size for size in range(start, 4 * start, 2) if int(size * part) % 2 == 0)


def _positions(found: dict[str, Any]) -> None:
    """Lists of a number for each pair of a head, cut; an original context that a text of a test fills."""
    context = next((key for key in ("max_position_embeddings", "n_positions") if found.get(key)), None)
    sections = [found[key] for key in ("rope_scaling", "rope_parameters") if isinstance(found.get(key), dict)]
    for section in (
        *sections,
        *(inner for each in sections for inner in each.values() if isinstance(inner, dict)),
    ):
        part = section.get("partial_rotary_factor") or found.get("partial_rotary_factor") or 1.0
        size = found.get("qk_rope_head_dim") or next((found[key] for key in OF_HEADS if found.get(key)), HEAD)
        pairs = int(size * part) // 2
        for key in ("short_factor", "long_factor"):
            if isinstance(listed := section.get(key), list):
                section[key] = [listed[n * len(listed) // pairs] for n in range(pairs)]
        if isinstance(listed := section.get("mrope_section"), list):
            first = [n * pairs // sum(listed) for n in listed]
            section["mrope_section"] = [pairs - sum(first[1:]), *first[1:]]
    places = [found, *sections]
    key = "original_max_position_embeddings"
    original = next((place[key] for place in places if place.get(key)), None)
    if original is None or context is None or found.get("model_type") in LENGTHS_KEPT:
        return
    division = original / CONTEXT
    for place in places:
        if place.get(key):
            place[key] = round(place[key] / division)
    for name in (context, "initial_context_length"):
        if found.get(name):
            found[name] = round(found[name] / division)


# ---- transformers' model and ours --------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of an entry: how far Cutaway's output is from transformers', or why it is refused."""

    distance: float = math.nan
    within: float = math.nan
    refused: str = ""
    warned: str = ""

    @property
    def agrees(self) -> bool:
        return self.distance <= self.within


def auto(config: Mapping[str, Any]) -> Any:
    """The class of transformers that makes a config's model."""
    kind = config["model_type"]
    if kind in SEQ2SEQ:
        return transformers.AutoModelForSeq2SeqLM
    if kind in ENCODERS or config.get("use_bidirectional_attention") is True:
        return transformers.AutoModel
    return transformers.AutoModelForCausalLM


def parsed(config: Mapping[str, Any], folder: Path) -> Any:
    """Transformers' reading of a config.json, written into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    read = transformers.AutoConfig.from_pretrained(folder)
    read.dtype = torch.float32
    if (getattr(read, "pad_token_id", 0) or 0) >= VOCAB:  # the class's own, which no config here says
        read.pad_token_id = None
    return read


def made(config: Mapping[str, Any], folder: Path) -> Any:
    """Transformers' model of a config.json in a folder, all of its weights moved, and written there."""
    read = parsed(config, folder)
    torch.manual_seed(0)
    model = auto(config).from_config(read, attn_implementation="eager").float().eval()
    if config.get("tie_word_embeddings") is False and hasattr(model, "lm_head"):  # T5's too, as published
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.3)
    moved = ("_correction_bias", "expert_bias", "layer_scalar", "final_logits_bias")
    buffers = [buffer for name, buffer in model.named_buffers() if name.endswith(moved)]
    with torch.no_grad():
        for weight in (*(one for one in model.parameters() if one.requires_grad), *buffers):
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # of the class's own ids
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return model


@torch.no_grad()
def theirs(model: Any) -> torch.Tensor:
    """What transformers' model makes of the ids."""
    if model.config.is_encoder_decoder:
        return model(input_ids=SOURCE, decoder_input_ids=IDS).logits
    found = model(IDS)
    return found.logits if "logits" in found else found.last_hidden_state


@torch.no_grad()
def ours(checkpoint: load.Checkpoint) -> torch.Tensor:
    """What Cutaway makes of them."""
    pos, source = (
        torch.arange(IDS.shape[1]).expand(IDS.shape),
        torch.arange(SOURCE.shape[1]).expand(SOURCE.shape),
    )
    if isinstance(checkpoint.config, EncoderDecoder):
        return build.encoder_decoder(checkpoint)(SOURCE, source, IDS, pos)
    if isinstance(checkpoint.config, Encoder):
        return build.encoder(checkpoint)(IDS, pos)
    return build.decoder(checkpoint)(IDS, pos)


def judged(config: Mapping[str, Any], folder: Path, strict: bool = False) -> Verdict:
    """Cutaway beside transformers on a folder of this config."""
    return compared(made(config, folder), folder, strict)


def compared(model: Any, folder: Path, strict: bool = False) -> Verdict:
    """Cutaway's reading of a folder beside the model that transformers made for it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnreadKeys)
        try:
            checkpoint = load.read_checkpoint(folder, strict)
        except UserError as error:
            return Verdict(refused=str(error))
    warned = " | ".join(str(one.message) for one in caught if issubclass(one.category, UnreadKeys))
    expected = theirs(model)
    distance = float((ours(checkpoint) - expected).abs().max())
    bound = EXACT if distance <= EXACT else max(EXACT, 4 * noise(model, lambda: theirs(model)))
    return Verdict(distance, bound, warned=warned)
