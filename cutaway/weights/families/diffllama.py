"""DiffLlama (2410.05258): llama's block with differential attention, whose lambda starts by depth."""

import math

from cutaway.model.config import Decoder
from cutaway.model.kinds import mixer
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import Settings
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

OURS, THEIRS = "blocks.{n}.attention", "model.layers.{n}.self_attn"
LAMBDAS = {"q1": "query_one", "k1": "key_one", "q2": "query_two", "k2": "key_two"}


def lambda_start(layer: int) -> float:
    """l0 of this layer, counted from 0."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    mixers = tuple(
        mixer(
            "differential",
            **decoders.shape(known),
            bias=known["bias"],
            out_bias=known["out_bias"],
            lambda_start=lambda_start(n),
            eps=known["eps"],
            norm_weight=False,
        )
        for n in range(known["layers"])
    )
    return decoders.decoder(known | {"mixers": mixers})


FAMILY = llama.FAMILY.but(
    "diffllama",
    "DiffLlamaForCausalLM",
    hf=(
        *naming.HF_DECODER,
        *(Rule(f"{THEIRS}.lambda_{a}", f"{OURS}.lambda_{b}", same) for a, b in LAMBDAS.items()),
    ),
    gguf=(),
    rows=(*rows.SIZES, *rows.DENSE[:1], *rows.biases("attention_bias")),
    build=decoder,
    defaults={"eps": 1e-5},
    mixers=("differential",),
    harmless=("lambda_std_dev",),
)
