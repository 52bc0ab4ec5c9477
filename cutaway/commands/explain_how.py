"""`cutaway explain --how`: the page's "How it works" as one file, recorded on the user's own sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cutaway.commands.console import doing
from cutaway.errors import UserError
from cutaway.extras import installed

if TYPE_CHECKING:
    from cutaway.lm import LanguageModel

RECORDED = ("Q8_0", "Q4_K_M", "Q4_0", "Q2_K")  # types that are measured for the file


def document(lm: LanguageModel, ids: Sequence[int], text: str, name: str) -> str:
    """The file: a trace, and what the server would answer for each chapter."""
    from cutaway.inspect import page_data
    from cutaway.inspect.how import page

    with doing("Running the model"):
        data = page_data.build(lm.trace(list(ids), names=page_data.names(lm.config)), name)
    return page.page(replace(data, facts=data.facts | {"how": answers(lm, ids, text)}))


def answers(lm: LanguageModel, ids: Sequence[int], text: str) -> dict[str, Any]:
    """The answer of `/v1/how/...` by chapter; of quantized a list, empty for a model that is too large."""
    from cutaway.inspect.how import architecture, mechanisms, plan, quantized, tokenizers, vectors

    with doing("Computing the chapters"):
        found: dict[str, Any] = {
            "tokenizers": tokenizers.tokenizers(lm.tokenizer, text),
            "vectors": vectors.vectors(lm.subject),
            "mechanisms": mechanisms.mechanisms(lm.config, len(ids)),
            "architecture": architecture.architecture(lm),
            "plan": plan.plan(lm, len(ids)),
        }
    if installed("torch"):
        from cutaway.inspect.how import alignment

        with doing("Training a translator"):
            found["alignments"] = alignment.alignments(text)
    with doing("Quantizing"):
        try:
            found["quantized"] = [quantized.quantized(lm, ids, kind) for kind in RECORDED]
        except UserError:  # more tokens or parameters than are quantized here, which the chapter says
            found["quantized"] = []
    return found
