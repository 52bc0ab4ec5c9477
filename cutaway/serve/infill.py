"""Texts with a gap that the model is to fill in ("fill in the middle", 2207.14255), where its vocabulary has
the marks for it.

    PREFIX before SUFFIX after MIDDLE        and the model writes what is between
"""

from __future__ import annotations

from cutaway.serve.api_error import APIError
from cutaway.serve.service import Service

MARKS = (  # what begins the text before the gap, the text after it, and what fills it
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


def ids(service: Service, before: list[int], after: str, param: str) -> list[int]:
    """The ids of a text with a gap behind ``before``, whose own begin token stays in front. APIError for a
    model without marks.
    """
    tokenizer = service.lm.tokenizer
    known = {**tokenizer.added, **tokenizer.special}
    found = next((marks for marks in MARKS if all(mark in known for mark in marks)), None)
    if found is None:
        text = f"{service.name}'s vocabulary has no marks of a gap, such as <|fim_prefix|>: it fills none in"
        raise APIError(400, f"{text}, so leave {param} out", param=param, code="no_infill")
    prefix, suffix, middle = (known[mark] for mark in found)
    begin = 1 if before[:1] == [tokenizer.bos] else 0
    return [*before[:begin], prefix, *before[begin:], suffix, *tokenizer.encode(after), middle]
