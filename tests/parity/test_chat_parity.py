"""Benign conversations come to the text and the ids that `transformers` gives them, template by template."""

import pytest

from tests import chat_cases, inputs

SHAPES = chat_cases.benign()
TAKEN = 4  # shapes of each template here, others for the next one; scripts/check/chat_templates.py takes all


@pytest.mark.parametrize(("name", "every"), [("smollm2", 1), ("deepseek", 5), ("phi-3", 5)])
def test_ids_equal_those_of_transformers(name: str, every: int, tmp_path) -> None:
    source = inputs.path("llama-vocab") / "ggml-vocab-phi-3.gguf" if name == "phi-3" else inputs.path(name)
    templates = chat_cases.templates()
    tokenizer, peer = chat_cases.pair(source, tmp_path, chat_cases.markers(list(templates.values())))
    outcomes: dict[str, list[str]] = {}
    for turn, (title, template) in list(enumerate(templates.items()))[::every]:
        for case in [
            case for number, case in enumerate(SHAPES) if (number + turn) % (len(SHAPES) // TAKEN) == 0
        ]:
            outcome = chat_cases.compare_benign(tokenizer, peer, template, SHAPES[case])
            outcomes.setdefault(outcome, []).append(f"{title}: {case}")
    assert len(templates) == 70
    # DeepSeek's templates use a filter, from_json, that transformers does not have and Cutaway does.
    assert all("DeepSeek-V" in where for where in outcomes.pop("only ours renders", []))
    assert len(outcomes.pop("same")) > 220 // every and len(outcomes.pop("neither renders", [])) < 60 // every
    assert outcomes == {}


def test_every_shape_renders_somewhere_and_equals_transformers(tmp_path) -> None:
    templates = chat_cases.templates()
    chosen = [
        "Qwen-Qwen3-0.6B",
        "meta-llama-Llama-3.1-8B-Instruct",
        "ibm-granite-granite-4.0",
        "tencent-Hy3",
        "GLM-4.6",
    ]
    tokenizer, peer = chat_cases.pair(
        inputs.path("smollm2"), tmp_path, chat_cases.markers(list(templates.values()))
    )
    rendered = set()
    for title in chosen:
        for case, shape in SHAPES.items():
            outcome = chat_cases.compare_benign(tokenizer, peer, templates[title], shape)
            assert outcome in ("same", "neither renders"), (title, case)
            rendered |= {case} if outcome == "same" else set()
    assert rendered == set(SHAPES)
