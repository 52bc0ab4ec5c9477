"""Bamba (2024): Mamba 2 in most layers, attention that rotates half of each head in some; dense MLPs."""

from dataclasses import dataclass

from cutaway.position import rope
from cutaway.weights import naming, rotary, rows
from cutaway.weights.families import granitemoehybrid, llama
from cutaway.weights.families.granitemoehybrid import attends
from cutaway.weights.family import Entries, Family, Settings
from cutaway.weights.fields import Fields

PART = "partial_rotary_factor"


@dataclass(frozen=True)
class Rope(rotary.Rope):
    """Half of each head rotates, whatever a key beside the section of positions says.

    Transformers' class sets that key to 0.5, so only the section can say another part.
    """

    def rotating(self, given: Fields | None, top: Fields | None) -> float:
        if top:
            top.get(PART)
        return super().rotating(given, None)

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries, position = super().write(known, gguf), known["rope"] or rope.Config(2)
        if entries[PART] == self.part:
            return entries
        return {"rope_parameters": rotary.hf_section(position) | {PART: entries[PART]}}


class Mixers(granitemoehybrid.Mixers):
    """Which layers attend, by their indices."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers = known["layers"]
        attending = fields.indices("attn_layer_indices", layers) or ()
        mamba = tuple(n not in attending for n in range(layers))
        return super().read(fields, known, own) | {"mamba": mamba, "turns": True, "scale": None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        attending = [n for n, mamba in enumerate(known["mamba"]) if not mamba]
        sizes = {key: entry for key, entry in super().write(known, gguf).items() if key != "layer_types"}
        return sizes | {"attn_layer_indices": attending}


FAMILY = llama.FAMILY.but(
    "bamba",
    "BambaForCausalLM",
    hf=(
        *naming.of_layers(naming.HF_PRE_FF, attends, naming.MIXER),
        *granitemoehybrid.HF_MAMBA,
    ),
    gguf=(),
    rows=(
        *rows.replaced(rows.SIZES, Rope(0.5), without=("activation",)),
        *rows.DENSE[:1],
        *rows.biases("attention_bias"),
        *llama.FAMILY.rows[-1:],
        *granitemoehybrid.MAMBA[:-1],
        Mixers(),
    ),
    build=granitemoehybrid.decoder,
    describe=granitemoehybrid.settings,
    defaults={"conv": 4, "state_size": 256, "mamba_groups": 1, "conv_bias": True, "mamba_bias": False}
    | {"kv_heads": 8, "context": 262144, "eps": 1e-5},
    fixed={"activation": "silu"},
    mixers=("mamba2", "mha", "gqa", "mqa"),
    harmless=("mamba_chunk_size", "num_logits_to_keep", "z_loss_coefficient"),
)
