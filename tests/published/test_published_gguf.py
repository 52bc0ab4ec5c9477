"""Metadata of published GGUF files: each key is read or harmless, and says what is written again.

``gguf/metadata.jsonl`` holds what llama.cpp's logs say of published files, with the shapes of the weights
that a reading looks at. Lists that the logs cut short are those of the model's own config.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway import gguf
from cutaway.gguf import Later, Packed
from cutaway.model.config import Model
from cutaway.quantization import formats
from cutaway.weights import family_registry, load, rotary, save
from cutaway.weights.family import Family
from cutaway.weights.fields import Fields
from tests.parity import perturbed

PATH = Path(__file__).parent / "gguf" / "metadata.jsonl"
ENTRIES = [json.loads(line) for line in PATH.read_text("utf-8").splitlines()]
# Which may say that there is none, count layers that are not read, or have no layer that they are of.
UNSAID = {
    "block_count",
    "attention.sliding_window",
    "expert_shared_feed_forward_length",
    "feed_forward_length",
}


def value(entry: object) -> object:
    """As a file holds it."""
    return np.array(entry) if isinstance(entry, list) else entry


def read(entry: dict[str, Any]) -> tuple[Family, Model]:
    """The family and the config of a file with these entries."""
    architecture, words = entry["architecture"], {key: value(one) for key, one in entry["metadata"].items()}
    words["general.architecture"] = architecture
    shapes = {"token_embd.weight": (entry["vocab"], words[f"{architecture}.embedding_length"])}
    shapes |= {name: tuple(shape) for name, shape in entry.get("tensors", {}).items()}

    def later(name: str, shape: tuple[int, ...]) -> Packed | Later:
        if name.startswith("rope_"):  # whose numbers are read, too: as Gemma 4's, or all 1
            turns = shape[0] // 4 if architecture == "gemma4" else shape[0]
            divisors = np.where(np.arange(shape[0]) < turns, 1, rotary.STILL)
            return formats.pack(divisors.astype(np.float32), "F32")
        return Later("F32", shape, lambda: pytest.fail(f"{name} is read"))

    tensors = {name: later(name, shape) for name, shape in shapes.items()}
    family = family_registry.of_gguf(Fields(words, entry["name"]))
    return family, family.read(Fields(words, entry["name"], f"{architecture}.", tensors))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_metadata_of_published_files(entry: dict[str, Any]) -> None:
    family, config = read(entry)
    architecture = entry["architecture"]
    words = {key.removeprefix(f"{architecture}."): one for key, one in entry["metadata"].items()}
    assert len(config.blocks) == words["block_count"] - words.get("nextn_predict_layers", 0)
    again = family.write(config, gguf=True)
    for key in words.keys() & again.keys() - UNSAID:
        stated, found = (np.asarray(each[key]) for each in (words, again))
        same = (
            np.array_equal(stated, found)
            if found.dtype.kind == "U"
            else np.allclose(stated, found, rtol=2e-6)
        )
        assert same, (key, stated, found)


def test_layers_that_predict_further_tokens_are_left_out_where_weights_are_missing(tmp_path: Path) -> None:
    """As in some files of GLM-4.5, which count them among their blocks."""
    case = perturbed.bases()["glm4_moe"][0]
    family, config = perturbed.read(case.data)
    config = replace(config, mtp=())
    save.write_checkpoint(tmp_path / "plain.gguf", perturbed.checkpoint_of(family.name, config, 0))
    file = gguf.read(tmp_path / "plain.gguf")
    last, count = len(config.blocks) - 1, "glm4moe.block_count"
    more = {name.replace(f"blk.{last}.", f"blk.{last + 1}."): one for name, one in file.tensors.items()}
    more[f"blk.{last + 1}.nextn.eh_proj.weight"] = formats.pack(np.zeros((4, 8), np.float32), "F32")
    words = {**file.metadata, count: np.uint32(last + 2), "glm4moe.nextn_predict_layers": np.uint32(1)}
    gguf.write(tmp_path / "further.gguf", words, file.tensors | more)
    plain, further = (load.read_checkpoint(tmp_path / f"{name}.gguf") for name in ("plain", "further"))
    assert further.config == plain.config
    assert np.array_equal(perturbed.ours(further, [5, 6, 7]), perturbed.ours(plain, [5, 6, 7]))
