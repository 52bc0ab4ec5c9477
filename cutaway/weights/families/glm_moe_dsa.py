"""GLM-5 (2026): DeepSeek-V3.2's sparse latent attention, whose choice of keys several layers may share.

The indexer rotates neighbouring pairs, as latent attention does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cutaway.errors import quoted
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, naming
from cutaway.weights.families import deepseek_v3, deepseek_v32
from cutaway.weights.family import Entries, Family, Row, Settings
from cutaway.weights.fields import Fields

OWN, SHARED = "full", "shared"
LETTERS = {"F": OWN, "S": SHARED}


class Indexers(Row):
    """Which layers have an indexer, and which read the choice of the last that has."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers = known["layers"]
        freq = max(fields.integer("index_topk_freq", 1, low=-(1 << 20)), 1)
        offset = fields.integer("index_skip_topk_offset", 2, low=0)
        kinds = [OWN if max(n - offset + 1, 0) % freq == 0 else SHARED for n in range(layers)]
        pattern = fields.get("index_topk_pattern")
        if isinstance(pattern, str):
            kinds = [LETTERS.get(letter, letter) for letter in pattern]
        elif pattern is not None:
            kinds = fields.each_layer("index_topk_pattern", layers, (OWN, SHARED)) or kinds
        kinds = fields.each_layer("indexer_types", layers, (OWN, SHARED)) or kinds
        if len(kinds) != layers or set(kinds) - {OWN, SHARED} or kinds[0] != OWN:
            raise fields.refusal(
                "indexer_types",
                f"should say {OWN} or {SHARED} of each layer, {OWN} of the first: {quoted(kinds)}",
            )
        found, last = [], 0
        for n, kind in enumerate(kinds):
            last = n if kind == OWN else last
            found.append(None if kind == OWN else last)
        return {"index_layers": tuple(found)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"indexer_types": [OWN if each is None else SHARED for each in known["index_layers"]]}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    own = {name: known[name] for name in ("index_heads", "index_size")} | {"top_k": known["index_top"]}
    of = deepseek_v3.latent(known, "dsa", interleaved=True, **own)
    mixers = tuple(replace(of, index_layer=layer) for layer in known["index_layers"])
    return decoders.decoder(known | {"kv_heads": known["heads"], "bias": False, "mixers": mixers})


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    layers = tuple(block.attention.index_layer for block in config.blocks)
    return deepseek_v32.settings(config) | {"index_layers": layers}


def indexes(block: Block) -> bool:
    """Whether a layer has an indexer."""
    of: Any = block.attention
    return of.index_layer is None


def own_block(config: Decoder) -> Block:
    """The last layer's, with an indexer of its own: that of the head that predicts one token more."""
    block = config.blocks[-1]
    return replace(block, attention=replace(block.attention, index_layer=None))


FAMILY = deepseek_v32.FAMILY.but(
    "glm_moe_dsa",
    "GlmMoeDsaForCausalLM",
    hf=naming.of_layers(deepseek_v32.FAMILY.hf, indexes, ".index_"),
    gguf=(),
    rows=(*deepseek_v32.FAMILY.rows, Indexers()),
    build=decoder,
    describe=settings,
    mtp_block=own_block,
    folded=None,
    unfolded=None,
    defaults={"vocab": 154_880, "width": 6144, "hidden": 12288, "layers": 78, "heads": 64, "kv_heads": 64}
    | {"latent": 512, "query_latent": 2048, "head_size": 64, "key_size": 192, "value_size": 256}
    | {"groups": 1, "top_groups": 1, "eps": 1e-5, "context": 202_752, "index_heads": 32, "index_size": 128},
)
