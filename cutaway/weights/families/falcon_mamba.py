"""Falcon Mamba (2410.05355): Mamba with norms, without weights, of what its steps, B and C are made of."""

from dataclasses import replace

from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.model.config import Decoder, Encoder
from cutaway.weights.families import mamba
from cutaway.weights.family import NUMBER, Field, Settings


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    return mamba.decoder(known | {"inner_norm": Norm("rms", known["inner_eps"], weight=False)})


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    known = mamba.settings(config)
    if known["inner_norm"] is None:
        raise UserError("its mixers norm nothing inside")
    return known | {"inner_eps": known["inner_norm"].eps}


FAMILY = replace(
    mamba.FAMILY,
    name="falcon_mamba",
    hf_class="FalconMambaForCausalLM",
    architecture="mamba",
    rows=(*mamba.FAMILY.rows, Field("inner_eps", "mixer_rms_eps", None, NUMBER)),
    build=decoder,
    describe=settings,
    defaults={**mamba.FAMILY.defaults, "inner_eps": 1e-6},
    gguf_fixed={"inner_eps": lambda known: known["eps"]},  # llama.cpp has one for all norms
    harmless=(*mamba.FAMILY.harmless, "use_falcon_mambapy"),
    instead=None,
)
