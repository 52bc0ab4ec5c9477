"""Every causal model type of transformers, built at random: each gives transformers' logits or is refused.

    python -m scripts.check.all_families --seed 1                 # ten minutes of one core
    python -m scripts.check.all_families --seed 1 --only gemma    # those whose name has this in it

A type's config is its class's own, its sizes made small; by the seed some of its switches are flipped and
some numbers moved, as far as transformers still builds a model of it. Exit code 1 where the logits differ by
more than rounding, or where what is refused is no sentence. What transformers itself does not build from a
small config is counted apart, with its reason.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from scripts.check.edited_configs import built
from tests.parity import tiny
from tests.published import collection

Config = dict[str, Any]
# Switches of what is given out or kept, not of what is computed.
OF_CALLS = ("use_cache", "return_dict", "is_decoder", "is_encoder_decoder", "torchscript", "output_", "add_")
OF_CALLS += ("gradient_checkpointing", "use_bfloat16", "use_mambapy", "use_kernels", "pretraining_tp")
MOVED = ("eps", "theta", "scaling", "multiplier", "softcap", "scale", "limit", "alpha")
DRAWS = 4  # of a type, before its own config is taken


def plain(kind: str) -> Config:
    """The config of a type, small: that of tests/parity where there is one, else its class's own."""
    for name, own in tiny.CASES.values():
        class_of = getattr(transformers, name)
        if class_of.model_type == kind:
            sizes = {key: tiny.SIZES[key] for key in tiny.ALONE} if "n_layer" in own else tiny.SIZES
            sizes = {key: value for key, value in sizes.items() if key not in tiny.UNKNOWN.get(name, ())}
            return json.loads(class_of(**copy.deepcopy(sizes | own)).to_json_string(use_diff=False))
    config = configuration_auto.CONFIG_MAPPING[kind]()
    return collection.small(collection.text_of(json.loads(config.to_json_string(use_diff=False))))


def drawn(config: Config, rng: random.Random) -> Config:
    """The config with some switches flipped and some numbers moved."""
    found = copy.deepcopy(config)
    for key, value in config.items():
        if key.startswith(OF_CALLS) or rng.random() > 0.3:
            continue
        if isinstance(value, bool):
            found[key] = not value
        elif isinstance(value, float) and key.endswith(MOVED):
            found[key] = value * rng.choice((0.5, 2.0))
    return found


def judged(kind: str, rng: random.Random) -> tuple[str, str]:
    """What became of a type, in a word, and more of it."""
    try:
        base = plain(kind)
    except Exception as error:  # of whatever kind: transformers makes no config of this type without more
        return "not built", f"{type(error).__name__}: {error}"[:150]
    reason = ""
    for draw in range(DRAWS + 1):
        config = base if draw == DRAWS else drawn(base, rng)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                model = built(config, folder)
            except Exception as error:  # this draw fits no model of transformers
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:150]
                continue
            if model is None:
                return "not built", "too large"
            try:
                found = collection.compared(model, folder)
            except Exception as error:  # bad input is refused in a sentence, and never a traceback
                return "WRONG", f"{type(error).__name__}: {error}"[:200]
            if found.refused:
                return "refused", found.refused
            much = f"{found.distance:.2g} where {found.within:.2g} is rounding"
            flipped = ", ".join(f"{key} {config[key]}" for key in config if config[key] != base[key])
            return ("agrees", flipped) if found.agrees else ("WRONG", f"{much}; {flipped}")
    return "not built", reason


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    counts, begun = collections.Counter(), time.monotonic()
    for kind in sorted(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        if given.only in kind:
            verdict, more = judged(kind, random.Random(f"{given.seed} {kind}"))
            counts[verdict] += 1
            print(f"{kind:<28} {verdict:<10} {more}", flush=True)
    print(f"seed {given.seed}: {counts.total()} types in {time.monotonic() - begun:.0f} s:", dict(counts))
    return int(counts["WRONG"] > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
