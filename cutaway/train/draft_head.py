"""The start of an EAGLE-3 head (2503.01840) for a model, in its published format.

It is one layer of the model's width, which begins as nothing: its stream is the model's own before the last
layer, and its head the model's. So an untrained one says the token that it was given (the logit lens), and is
made unsure of it. The stream is normed before the layer adds to it, since a model's grows large from layer to
layer, and a new one would be too small beside it. It scores only the ids that the model writes most, since
the head is most of what a step of drafting reads.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.model.config import Decoder
from cutaway.quantization import formats
from cutaway.store.files import atomic_file
from cutaway.train.objectives.eagle3 import CONFIG, WEIGHTS
from cutaway.weights import eagle3, safetensors
from cutaway.weights.checkpoint import Checkpoint

SCORED = 8192  # ids at most
KEY = 64  # numbers of an attention head
SURE = 0.2  # of the size that the model gives logits
HEAD, TABLE, NORM = "head.weight", "embedding.weight", "norm.weight"


def checked(checkpoint: Checkpoint) -> Decoder:
    """The config of a model that can have a head. UserError for one that can have none."""
    of = checkpoint.config
    if not isinstance(of, Decoder) or of.table is not None or of.streams or len(of.blocks) < 2:
        raise UserError(
            f"{checkpoint.source}: a head that drafts reads the residual stream before three layers, and the "
            "table of tokens, of a decoder: this model does not have them"
        )
    return of


def write(checkpoint: Checkpoint, counts: np.ndarray, folder: Path, seed: int = 0) -> None:
    """Write an untrained head for a model that wrote each id so many times [v]. UserError for a model that
    can have none.
    """
    of = checked(checkpoint)
    ids = np.sort(np.argsort(-counts, kind="stable")[: min(SCORED, of.vocab)])
    blocks, hidden = len(of.blocks), max(64, round(of.width * 8 / 3 / 64) * 64)
    heads = max(1, of.width // KEY)
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": of.width,
        "target_hidden_size": of.width,
        "intermediate_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": KEY,
        "num_hidden_layers": 1,
        "max_position_embeddings": of.context,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "vocab_size": of.vocab,
        "draft_vocab_size": len(ids),
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "norm_before_residual": True,
        "eagle_aux_hidden_state_layer_ids": [min(2, blocks - 1), blocks // 2, blocks - 1],
    }
    weights = {
        name: formats.pack(value, "F32") for name, value in _weights(checkpoint, of, config, seed).items()
    }
    differences = np.ascontiguousarray(ids - np.arange(len(ids)), "<i8")
    weights["d2t"] = Packed("I64", differences.shape, differences.view(np.uint8))
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write_safetensors(folder / WEIGHTS, eagle3.named(_scored(weights, checkpoint, of, ids)))
    with atomic_file(folder / CONFIG) as out:
        out.write(json.dumps(config, indent=1).encode())


def _weights(checkpoint: Checkpoint, of: Decoder, config: dict, seed: int) -> dict[str, np.ndarray]:
    """float32 by published names, but those of the output head: matrices that are read are drawn, those that
    add to the stream are 0.
    """
    draw, width = np.random.default_rng(seed), of.width
    inner, hidden = config["num_attention_heads"] * config["head_dim"], config["intermediate_size"]
    drawn = {f"self_attn.{name}_proj": (inner, 2 * width) for name in "qkv"}
    drawn |= {f"mlp.{name}_proj": (hidden, width) for name in ("gate", "up")}
    found = {name: (0.02 * draw.standard_normal(shape)).astype(np.float32) for name, shape in drawn.items()}
    found |= {"self_attn.o_proj": np.zeros((width, inner)), "mlp.down_proj": np.zeros((width, hidden))}
    found["fc"] = np.eye(width, 3 * width, 2 * width)
    ones = ("input_layernorm", "hidden_norm", "post_attention_layernorm")
    found |= dict.fromkeys(ones, np.ones(width))
    normed = of.norm.kind == "rms" and NORM in checkpoint.tensors
    found["norm"] = SURE * (formats.unpack(checkpoint.tensors[NORM]) if normed else np.ones(width))
    return {f"{name}.weight": value.astype(np.float32) for name, value in found.items()}


def _scored(
    weights: dict[str, Packed], checkpoint: Checkpoint, of: Decoder, ids: np.ndarray
) -> dict[str, Packed]:
    """The weights with the rows of the model's head that are scored."""
    head = formats.unpack(checkpoint.tensors[TABLE if of.tied else HEAD].rows(ids)) * np.float32(
        of.logit_scale
    )
    return weights | {"lm_head.weight": formats.pack(head, "F32")}
