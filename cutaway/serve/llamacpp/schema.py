"""The fields of llama-server's requests (github.com/ggml-org/llama.cpp: tools/server/README.md)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StrictBool, StrictInt, StrictStr

from cutaway.serve.openai.message_schema import Ending, Messages, Tools
from cutaway.serve.validation import FailFast, Id, Number, Object, Prompts, StrictModel, Texts


class LlamaSampling(StrictModel):
    """llama.cpp's names of how tokens are chosen, which are Ollama's too."""

    temperature: Number | None = None
    top_k: StrictInt | None = None
    top_p: Number | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    repeat_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    seed: StrictInt | None = None
    stop: Texts | None = None


class LlamaRequest(LlamaSampling):
    """What /completion and /infill share."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({
        "cache_prompt", "n_keep", "t_max_predict_ms", "response_fields", "timings_per_token",
        "return_progress", "post_sampling_probs", "n_cache_reuse", "samplers", "min_keep", "n_indent",
    })  # fmt: skip
    DEFAULTS: ClassVar = {
        "n_predict": [-1],
        "n_probs": [0],
        "seed": [-1, 4294967295],
        "repeat_last_n": [64, -1],
        "mirostat": [0],
        "mirostat_tau": [5.0],
        "mirostat_eta": [0.1],
        "dynatemp_range": [0.0],
        "dynatemp_exponent": [1.0],
        "xtc_probability": [0.0],
        "xtc_threshold": [0.1],
        "dry_multiplier": [0.0],
        "n_discard": [0],
        "return_tokens": [False],
        "id_slot": [-1],
    }
    model: StrictStr | None = None
    n_predict: Annotated[StrictInt, Field(ge=1)] | None = None
    stream: StrictBool | None = None
    n_probs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    grammar: StrictStr | None = None
    json_schema: Object | None = None
    ignore_eos: StrictBool | None = None
    return_tokens: StrictBool | None = None
    id_slot: Annotated[StrictInt, Field(ge=0)] = 0
    logit_bias: Annotated[list[tuple[Id, Number | bool]], FailFast, Field(max_length=1024)] | None = None


class LlamaCompletion(LlamaRequest):
    prompt: Prompts


class Extra(StrictModel):
    filename: StrictStr = ""
    text: StrictStr


class Infill(LlamaRequest):
    input_prefix: StrictStr
    input_suffix: StrictStr
    input_extra: Annotated[list[Extra], FailFast, Field(max_length=256)] | None = None
    prompt: StrictStr = ""


class Conversation(Ending):
    DEFAULTS: ClassVar = {"add_generation_prompt": [True], "continue_final_message": [False]}
    model: StrictStr | None = None
    messages: Messages
    tools: Tools | None = None
