"""A model of each family with several keys moved at once, written as GGUF and opened by llama.cpp.

``python -m scripts.perturbed_gguf`` moves every key of every family by itself.
"""

from pathlib import Path

import pytest

from tests.parity import perturbed

FAMILIES = sorted(perturbed.bases())


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_moved_together_are_what_llama_cpp_computes(family: str, tmp_path: Path) -> None:
    case = perturbed.together(family, tmp_path)
    assert case is not None, "no case of this family is written as GGUF: give it one, or no names in GGUF"
    found = perturbed.outcome(case, tmp_path)
    assert found.what == "agrees", f"{case.name}: {found.what}, {found.detail}"
