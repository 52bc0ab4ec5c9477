"""Every kind of adapter once, and every rule that fuses or reorders rows, in both directions beside PEFT.

All kinds on all families: `python -m scripts.check.adapter_matrix --seed N`.
"""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from cutaway.errors import UserError
from cutaway.model.config import Encoder
from cutaway.weights import (
    adapters,
    family_registry,
    gguf_adapters,
    layout,
    load,
    named_tensors,
    rules,
    save,
    tensor_maps,
)
from cutaway.weights.changes import LowRank
from cutaway.weights.peft_write import CONVERTED
from tests.parity import peft_kinds, tiny

Folder = Callable[[str], Path]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
READ = [  # a kind, and a family whose rules cut, reorder, transpose, stack or rename
    ("lora", "gpt_neox-1"),
    ("lora", "falcon-3"),
    ("lora", "qwen3_next-1"),
    ("lora", "kimi_linear-2"),
    ("lora", "granitemoe-2"),
    ("lora", "nanochat-2"),
    ("some", "minicpm3-1"),
    ("rslora", "deepseek_v2-3"),
    ("patterns", "deepseek_v3-2"),
    ("regex", "qwen3_5-1"),
    ("layers", "glm4_moe_lite-1"),
    ("excluded", "gpt_bigcode-2"),
    ("dora", "bloom-1"),
    ("rsdora", "gpt2"),
    ("lora_bias", "phi-2"),
    ("biases", "gpt_neox-2"),
    ("own_biases", "bloom-2"),
    ("tables", "gemma-1"),
    ("output", "gpt_neox-1"),
    ("whole", "gpt_neox-3"),
    ("kept_tied", "gpt2"),
    ("kept_tied", "opt-1"),
    ("kept_tied", "cohere-1"),
    ("kept_whole", "bloom-1"),
    ("experts", "gpt_oss-1"),
    ("experts", "mixtral"),
    ("experts", "lfm2_moe-1"),
    ("ia3", "qwen3_5_moe-1"),
    ("ia3", "gpt_bigcode-1"),
    ("gaussian", "llama"),
    ("orthogonal", "olmo-1"),
    ("pissa", "gpt_neox-1"),
    ("pissa", "gpt2"),
    ("pissa_dora", "phi3-1"),
    ("olora", "bloom-1"),
    ("eva", "falcon-1"),
    ("adalora", "gpt2"),
    ("loha", "qwen3_next-2"),
    ("lokr", "gpt_neox-3"),
    ("vera", "gpt_neox-2"),
    ("lora", "roberta-1"),
    ("lora", "modernbert-1"),
    ("lora", "wrapper/qwen3_vl"),
]
WRITTEN = [
    ("all", "kimi_linear-2"),
    ("all", "glm4_moe-1"),
    ("all", "gpt_oss-2"),
    ("part", "gpt_neox-1"),
    ("part", "falcon-1"),
    ("part", "mixtral"),
    ("reached", "gpt2"),
    ("reached", "qwen3_next-3"),
    ("reached", "gemma-2"),
    ("dora", "minicpm3-2"),
    ("dora_part", "bloom-1"),
    ("dora_part", "phi3-1"),
    ("ia3", "gpt_bigcode-1"),
    ("ia3", "minimax_m2-1"),
    ("runtime", "phi3-1"),
    ("gguf", "gpt_neox-1"),
]
REFUSED = [
    ("tables_dora", "llama", "DoRA of an embedding table"),
    ("lora_bias", "llama", "the base's matrix has none"),
    ("pissa_niter", "llama", "random approximation"),
    ("prompt", "llama", "vectors that are no tokens"),
    ("oft", "llama", "are read"),
    ("lora", "jamba-1", "past PEFT"),
]
FIRST = {own[0]: case for case, own in reversed(tiny.CASES.items())}


@pytest.fixture
def base(request: pytest.FixtureRequest, folder: Folder, tmp_path: Path) -> load.Checkpoint:
    """The case's model, read."""
    case = request.getfixturevalue("case")
    if case in tiny.CASES:
        return load.read_checkpoint(folder(case))
    peft_kinds.model(case).save_pretrained(tmp_path / "base")
    return load.read_checkpoint(tmp_path / "base")


@pytest.mark.parametrize(("kind", "case"), READ)
def test_pefts_folders_have_pefts_logits(kind: str, case: str, base: load.Checkpoint, tmp_path: Path) -> None:
    assert peft_kinds.reading(case, base, kind, 5, tmp_path).word == "equal"


@pytest.mark.parametrize(("kind", "case"), WRITTEN)
def test_peft_opens_what_is_written(kind: str, case: str, base: load.Checkpoint, tmp_path: Path) -> None:
    assert peft_kinds.writing(case, base, kind, 5, tmp_path).word == "equal"


@pytest.mark.parametrize("case", ["qwen3-moe"])
def test_peft_opens_what_is_written_for_a_mixture_without_experts(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose model type still has PEFT convert the targets of the config."""
    name, own = tiny.CASES[case]
    monkeypatch.setitem(tiny.CASES, "dense", (name, own | {"mlp_only_layers": [0, 1]}))
    tiny.model("dense").save_pretrained(tmp_path / "base")
    base = load.read_checkpoint(tmp_path / "base")
    assert peft_kinds.writing("dense", base, "all", 5, tmp_path).word == "equal"


def test_pefts_converted_families_are_known() -> None:
    from peft.utils import transformers_weight_conversion as conversion

    types = conversion._MODEL_TO_CONVERSION_PATTERN.items()
    converted = {kind for kind, like in types if like in conversion._MOE_TARGET_MODULE_MAPPING}
    ours = {name for name, aliases in family_registry.names().items() if converted & {name, *aliases}}
    assert ours == set(CONVERTED)


@pytest.mark.parametrize(
    ("case", "without", "why"),
    [("opt-1", "embed_tokens", "no tensors of the table"), ("opt-1", "lm_head", "no tensors of the head")],
)
def test_half_of_a_tied_change_is_refused(
    case: str, without: str, why: str, folder: Folder, tmp_path: Path
) -> None:
    model, base = tiny.model(case), load.read_checkpoint(folder(case))
    tied = {"target_modules": ["lm_head"], "alpha_pattern": {"lm_head": 9}, "ensure_weight_tying": True}
    config = peft_kinds.low_rank(model, random.Random(1), **tied)
    peft_kinds.peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: one for name, one in load_file(path).items() if without not in name}, path)
    with pytest.raises(UserError, match=f"ensure_weight_tying is true.*{why}"):
        adapters.read_adapter(tmp_path, base)


@pytest.mark.parametrize(
    ("kind", "case", "why"),
    [
        ("dora", "deepseek_v3-1", "no DoRA of this matrix in a mixture"),
        ("all", "mamba2-1", "PEFT refuses LoRA"),
    ],
)
def test_what_peft_has_no_form_for_is_not_written(
    kind: str, case: str, why: str, base: load.Checkpoint, tmp_path: Path
) -> None:
    found = peft_kinds.writing(case, base, kind, 5, tmp_path)
    assert found.word == "refused" and why in found.why, found


@pytest.mark.parametrize(("kind", "case", "why"), REFUSED)
def test_what_is_not_computed_is_refused(
    kind: str, case: str, why: str, base: load.Checkpoint, tmp_path: Path
) -> None:
    found = peft_kinds.reading(case, base, kind, 5, tmp_path)
    assert found.word == "refused" and why in found.why, found


@pytest.mark.parametrize("case", sorted(FIRST.values()))
def test_matrices_have_the_names_of_transformers_parameters(case: str, folder: Folder) -> None:
    """Else PEFT leaves out what is written for them, with a warning."""
    own = {name: tuple(weight.shape) for name, weight in tiny.model(case).named_parameters()}
    checkpoint = load.read_checkpoint(folder(case))
    for bound in layout.modules(family_registry.get(checkpoint.family or ""), checkpoint.config):
        if len(bound.place.shapes[0]) == 2 and ".conv" not in bound.ours[0]:
            assert own.get(bound.theirs) == bound.how.shape(bound.place), bound.theirs


def test_a_rule_that_does_more_than_reorder_is_refused() -> None:
    """By the numbers of places that it moves; a transposed one is seen as such."""
    place = rules.Place(((6, 4), (2, 4)), None)
    fused = rules.Bound(
        "their.weight", ("one", "two"), tensor_maps.chain(tensor_maps.transpose, tensor_maps.split), place
    )
    matrix = layout.matrix(fused)
    assert (matrix.outputs, matrix.inputs, matrix.transposed) == (8, 4, True)
    assert [order.rows.tolist() for order in matrix.orders] == [[0, 1, 2, 3, 4, 5], [6, 7]]
    doubled = rules.How(
        lambda packed, _: (packed.rows([0, 0, 1]),), lambda parts, _: parts[0], tensor_maps.same.shape
    )
    uneven = rules.How(
        lambda packed, _: (named_tensors.exchanged(packed, 2),),
        lambda parts, _: parts[0],
        tensor_maps.same.shape,
    )
    assert layout.matrix(rules.Bound("t", ("o",), doubled, rules.Place(((3, 4),), None))).inputs == 4
    for how in (uneven, tensor_maps.plus_one):
        with pytest.raises(UserError, match="no adapter of a matrix reaches"):
            layout.matrix(rules.Bound("t", ("o",), how, rules.Place(((4, 4),), None)))


@pytest.mark.parametrize(
    ("case", "name"),
    [("deepseek_v2-1", "blocks.0.attention.down.weight"), ("falcon_h1-1", "blocks.0.attention.key.weight")],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    case: str, name: str, folder: Folder, tmp_path: Path
):
    """DeepSeek's latents pass by llama.cpp's adapters; Falcon-H1's multipliers are in its file's matrices."""
    base = load.read_checkpoint(folder(case))
    rows, columns = base.config.weights()[name]
    pair: Any = LowRank(np.ones((1, columns), np.float32), np.ones((rows, 1), np.float32), 1.0)
    with pytest.raises(UserError, match="write base and adapter as one model"):
        gguf_adapters.write_gguf_adapter(tmp_path / "talk.gguf", {name: pair}, base)


@pytest.mark.parametrize("case", ["gpt_neox-1", "mixtral"])
def test_the_merged_model_is_pefts(case: str, folder: Folder, tmp_path: Path) -> None:
    """What `cutaway merge` writes, opened by transformers."""
    base = load.read_checkpoint(folder(case))
    peft_kinds.made(tiny.model(case), "lora", 5, tmp_path / "adapter")
    expected = tiny.theirs(peft_kinds.opened(tiny.model(case), tmp_path / "adapter"))
    save.write_checkpoint(
        tmp_path / "merged", adapters.joined(base, adapters.read_adapter(tmp_path / "adapter", base))
    )
    assert float((tiny.reopened(tmp_path / "merged") - expected).abs().max()) < 1e-4
    assert not isinstance(base.config, Encoder)


def test_a_table_of_tasks_is_written_as_an_embeddings_change(tmp_path: Path) -> None:
    """ERNIE's task embeddings, which were written as a matrix's: PEFT left them at their start."""
    model = peft_kinds.model("ernie-2")
    model.save_pretrained(tmp_path / "base")
    found = peft_kinds.writing("ernie-2", load.read_checkpoint(tmp_path / "base"), "reached", 1, tmp_path)
    assert found.word == "equal", found.why
