"""Configs edited at random beside transformers: each is refused, or gives transformers' output.

    python -m scripts.check.edited_configs --seed 1 --count 1000     # five minutes

The bases are the published configs of tests/published and those of tests/parity/tiny.py, their sizes small.
Each gets one to three edits: a key dropped, nulled, changed, or added with a value that another config has
for it. Both sides read the same folder, with random weights that transformers made for the edited config.
Where transformers refuses a config, Cutaway refuses it too or reads the base's model. Exit code 1 where one
is read otherwise.
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
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from cutaway.errors import UserError
from cutaway.weights import load
from cutaway.weights.family import HARMLESS_HF
from tests.parity import tiny
from tests.parity.test_config_keys import edited
from tests.published import collection

KEPT = {"model_type", "architectures", "transformers_version", "auto_map", "quantization_config"}
SIZED = {*collection.LAYERS, *collection.QUERY, *collection.WIDTHS, *collection.MLPS, *collection.FIXED}
SIZED |= {*collection.EXPERTS, *collection.GROUPS, "max_position_embeddings", "n_positions"}
SIZED -= {"num_experts_per_tok", "sliding_window", "n_groups", "first_k_dense_replace"}
MOST = 20_000_000  # parameters of a model that is built
NESTED = ("rope_parameters", "rope_scaling")
Config = dict[str, Any]


def bases() -> list[tuple[str, Config]]:
    """The configs that are edited, by name."""
    found = [
        (entry.name, collection.small(collection.text_of(entry.config)))
        for entry in collection.entries()
        if entry.refused is None
    ]
    for case, (name, own) in tiny.CASES.items():
        sizes = {key: tiny.SIZES[key] for key in tiny.ALONE} if "n_layer" in own else tiny.SIZES
        sizes = {key: value for key, value in sizes.items() if key not in tiny.UNKNOWN.get(name, ())}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = getattr(collection.transformers, name)(**copy.deepcopy(sizes | own))
        found.append((case, json.loads(config.to_json_string(use_diff=False))))
    return found


def change(config: Config, others: dict[str, list[Any]], rng: random.Random) -> str:
    """One edit of a config, in place; says which."""
    keys = [key for key in config if key not in KEPT]
    kind = rng.choice(("drop", "null", "change", "change", "add", "add", "inside"))
    inside = [key for key in NESTED if isinstance(config.get(key), dict) and config[key]]
    if kind == "inside" and inside:
        name = rng.choice(inside)
        return f"{name}: " + change_inside(config[name], rng)
    if kind in ("drop", "null"):
        key = rng.choice([key for key in keys if key not in SIZED])
        config[key] = None
        if kind == "drop":
            del config[key]
        return f"{kind} {key}"
    if kind == "change":
        key = rng.choice(keys)
        config[key] = edited(config[key]) if rng.random() < 0.6 else rng.choice(others[key])
        return f"{key} = {json.dumps(config[key])[:60]}"
    key = rng.choice([key for key in others if key not in config and key not in SIZED | KEPT])
    config[key] = copy.deepcopy(rng.choice(others[key]))
    return f"add {key} = {json.dumps(config[key])[:60]}"


def change_inside(section: Config, rng: random.Random) -> str:
    """One edit of a section."""
    key, kind = rng.choice(list(section)), rng.choice(("drop", "null", "change", "add"))
    if kind == "add":
        key = rng.choice(
            ("factor", "mscale", "attention_factor", "beta_fast", "rope_theta", "truncate", "own")
        )
    match kind:
        case "drop":
            del section[key]
        case "null":
            section[key] = None
        case "change":
            section[key] = edited(section[key])
        case _:
            section[key] = rng.choice((True, 0.5, 2.0, 4, None))
    return f"{kind} {key} {section.get(key)!r}"[:80]


def small_enough(config: Config, folder: Path) -> bool:
    """Whether transformers' model of a config is one that a test can hold; its errors are the caller's."""
    read = collection.parsed(config, folder)
    with torch.device("meta"):
        model = collection.auto(config).from_config(read, attn_implementation="eager")
    return sum(one.numel() for one in model.parameters()) < MOST


def bare(config: Config, base: Config) -> Config:
    """A config without the edits that change nothing, some of which transformers refuses by their type."""
    return {
        key: value
        for key, value in config.items()
        if value == base.get(key, ...) or not any(fnmatchcase(key, one) for one in HARMLESS_HF)
    }


def built(config: Config, folder: Path) -> Any:
    """Transformers' model of a config, None for one too large; or its error for one that it does not read."""
    if not small_enough(config, folder):
        return None
    model = collection.made(config, folder)
    collection.theirs(model)
    return model


def judged(base: Config, config: Config, folder: Path) -> tuple[str, str]:
    """What became of an edited config, in a word, and more of it."""
    try:
        model = built(config, folder / "model")
    except Exception:
        try:
            model = built(bare(config, base), folder / "model")
        except Exception as error:  # of whatever kind: transformers does not read this config
            return unread(base, config, folder / "base", error)
    if model is None:
        return "too large", ""
    (folder / "model" / "config.json").write_text(json.dumps(config), "utf-8")
    try:
        found = collection.compared(model, folder / "model")
    except Exception as error:  # bad input is refused in a sentence, and never a traceback
        return "WRONG", f"{type(error).__name__}: {error}"[:200]
    if found.refused:
        return "refused", found.refused
    if not found.agrees:
        return "WRONG", f"{found.distance:.2g} where {found.within:.2g} is rounding"
    return ("warned", found.warned) if found.warned else ("agrees", "")


def unread(base: Config, config: Config, folder: Path, why: Exception) -> tuple[str, str]:
    """A config that transformers refuses, on the base's weights."""
    try:
        collection.made(base, folder)
    except Exception:  # a case of tests/parity/tiny.py that its config alone does not make again
        return "no base", ""
    plain = load.read_checkpoint(folder).config
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    try:
        found = load.read_checkpoint(folder).config
    except UserError as error:
        return "both refuse", str(error)
    first = str(why).splitlines()[0][:150] if str(why) else type(why).__name__
    return ("read as the base", "") if found == plain else ("WRONG", f"transformers refuses it: {first}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    collection.transformers.logging.set_verbosity_error()
    collection.transformers.logging.disable_progress_bar()
    rng, known, counts, begun = random.Random(given.seed), bases(), collections.Counter(), time.monotonic()
    others: dict[str, list[Any]] = collections.defaultdict(list)
    for _, config in known:
        for key, value in config.items():
            others[key].append(value)
    for n in range(given.count):
        name, base = rng.choice(known)
        config = copy.deepcopy(base)
        edits = [change(config, others, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        with tempfile.TemporaryDirectory() as folder:
            verdict, more = judged(base, config, Path(folder))
        counts[verdict] += 1
        if verdict == "WRONG":
            print(f"{n}: {name}: {'; '.join(edits)}: {more}", flush=True)
        if time.monotonic() - begun > given.seconds:
            break
    print(
        f"seed {given.seed}: {sum(counts.values())} configs in {time.monotonic() - begun:.0f} s:",
        dict(counts),
    )
    return int(counts["WRONG"] > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
