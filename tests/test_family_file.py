"""The recipe of docs/adding-a-family.md, followed: one file, short where a family only renames weights."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cutaway import gguf
from cutaway.errors import UserError
from cutaway.quantization import formats
from cutaway.weights import families, family_registry, load, rules, safetensors, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.family import Family
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors
from tests import recipes

PAGE = "adding-a-family.md"
CONFIG = {
    "model_type": "owl",
    "vocab_size": 40,
    "d_model": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "n_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def owl(tmp_path: Path) -> Iterator[Family]:
    """The page's family in a folder of its own, which joins those of the package."""
    home = tmp_path / "more"
    home.mkdir()
    with recipes.followed(PAGE, families, home) as [name]:
        yield family_registry.get(name)


def test_a_family_that_renames_is_one_file_of_under_60_lines(owl: Family, tmp_path: Path) -> None:
    [(_, source)] = recipes.files(PAGE).items()
    assert len(source.splitlines()) < 60
    config = owl.read(Fields(CONFIG, "config.json"))
    draw = np.random.default_rng(0)
    ours = Tensors(
        {
            name: formats.pack(draw.random(shape, np.float32), "F32")
            for name, shape in config.weights().items()
        }
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    safetensors.write_safetensors(folder / "model.safetensors", dict(rules.save(owl.hf, config, ours)))
    checkpoint = load.read_checkpoint(folder)
    assert checkpoint.family == "owl" and checkpoint.config == config
    save.write_checkpoint(tmp_path / "model.gguf", Checkpoint(config, ours, "owl", tmp_path))
    assert gguf.read(tmp_path / "model.gguf").metadata["night-owl.embedding_length"] == 32
    again = load.read_checkpoint(tmp_path / "model.gguf")
    assert again.family == "owl" and again.config == config
    save.write_checkpoint(tmp_path / "back", again)
    assert "owl.1.w2.weight" in safetensors.read_safetensors(tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["d_model"] == 32
    for name in ours:
        assert np.array_equal(again.tensors[name].data, ours[name].data)


def without(names: Iterable[str]) -> list[str]:
    """A sentence for each family whose class of transformers no case of tests/parity names."""
    tests = (recipes.ROOT / "tests" / "parity").glob("*.py")
    words = {word.lower() for path in tests for word in re.findall(r"\w+", path.read_text("utf-8"))}
    found = []
    for name in names:
        own = family_registry.get(name).hf_class
        short = re.split("For(?=[A-Z])|Model|Encoder|LMHead|MTModel", own)[0]
        if not words & {each.lower() for each in (own, f"{short}Config", f"{short}TextConfig")}:
            found.append(
                f"cutaway/weights/families/{name}.py: no case of tests/parity holds it to transformers"
            )
    return found


def test_every_family_is_judged_and_named_by_its_page(owl: Family) -> None:
    [sentence] = without(family_registry.names())
    assert sentence.startswith("cutaway/weights/families/owl.py: no case of tests/parity")
    page = (recipes.ROOT / "docs" / "families.md").read_text("utf-8")
    assert set(family_registry.names()) - set(re.findall(r"\w+", page)) == {"owl"}


def test_a_file_without_a_family_is_one_sentence(tmp_path: Path) -> None:
    with recipes.followed(PAGE, families, tmp_path) as [name]:
        (tmp_path / f"{name}.py").write_text('"""Nothing yet."""\n')
        with pytest.raises(UserError, match=r"owl\.py has no FAMILY: docs/adding-a-family.md"):
            family_registry.of_hf(Fields({"model_type": "owl"}, "config.json"))


def test_names_are_found_without_importing_the_families() -> None:
    program = (
        "import sys; from cutaway.weights import families, family_registry;"
        "from cutaway.weights.fields import Fields;"
        "family_registry.of_hf(Fields({'model_type': 'qwen3'}, 'config.json'));"
        "here = families.__name__ + '.';"
        "print(sorted(name.rpartition('.')[2] for name in sys.modules if name.startswith(here)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['llama', 'qwen2', 'qwen3']"


@pytest.mark.parametrize(
    ("word", "name"),
    [
        *(("gemma3_text", "gemma3"), ("smollm", "llama"), ("mistral", "mistral"), ("gpt2", "gpt2")),
        *(("gemma4_text", "gemma4"), ("qwen3_5_text", "qwen3_5"), ("qwen3_5_moe_text", "qwen3_5_moe")),
        *(("gpt-sw3", "gpt2"), ("camembert", "roberta"), ("xlm-roberta", "roberta")),
    ],
)
def test_aliases(word: str, name: str) -> None:
    assert family_registry.of_hf(Fields({"model_type": word}, "config.json")).name == name


def test_a_setting_that_no_row_reads_is_refused() -> None:
    data = {**CONFIG, "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4}
    data |= {"d_model": 48}  # which would be harmless if it were 32 again
    with pytest.raises(UserError, match="'d_model' is 48, and llama models have no such setting here"):
        family_registry.get("llama").read(Fields(data, "config.json"))
