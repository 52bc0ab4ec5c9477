"""The fields of Ollama's requests (github.com/ollama/ollama/blob/main/docs/api.md)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from cutaway.serve.llamacpp.schema import LlamaSampling
from cutaway.serve.openai.message_schema import FunctionCall, Tools
from cutaway.serve.validation import MAX_MESSAGES, FailFast, Indices, Object, StrictModel, Texts, at_most


class Options(LlamaSampling):
    IGNORED = frozenset({  # how it is computed
        "num_ctx", "num_gpu", "num_thread", "num_batch", "num_keep", "main_gpu", "use_mmap", "use_mlock",
        "numa", "low_vram", "f16_kv", "vocab_only", "penalize_newline", "logits_all", "embedding_only",
    })  # fmt: skip
    DEFAULTS: ClassVar = {
        "num_predict": [-1, -2],
        "repeat_last_n": [64, -1],
        "mirostat": [0],
        "mirostat_tau": [5.0],
        "mirostat_eta": [0.1],
        "tfs_z": [1],
    }
    num_predict: Annotated[StrictInt, Field(ge=1)] | None = None


class OllamaRequest(StrictModel):
    """What Ollama's requests share."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"keep_alive"})
    model: StrictStr | None = None
    options: Options | None = None
    stream: StrictBool | None = None
    format: Literal["json", ""] | Object | None = None
    think: StrictBool | Literal["low", "medium", "high"] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None


class Call(StrictModel):
    IGNORED = frozenset({"id", "type"})
    function: CallOf


class CallOf(FunctionCall):
    IGNORED = frozenset({"index", "description", "parsed_arguments"})


class OllamaMessage(StrictModel):
    IGNORED = frozenset({"timestamp", "done"})
    role: Literal["system", "user", "assistant", "tool"]
    content: StrictStr | None = None
    thinking: StrictStr | None = None
    tool_calls: Annotated[list[Call], FailFast] | None = None
    tool_name: StrictStr | None = None
    tool_call_id: StrictStr | None = None


class ChatRequest(OllamaRequest):
    messages: Annotated[list[OllamaMessage], FailFast, at_most(MAX_MESSAGES)] | None = None
    tools: Tools | None = None


class GenerateRequest(OllamaRequest):
    prompt: StrictStr = ""
    suffix: StrictStr | None = None
    system: StrictStr | None = None
    raw: StrictBool | None = None
    context: Indices | None = None


class EmbedRequest(StrictModel):
    IGNORED = frozenset({"keep_alive", "options"})
    model: StrictStr | None = None
    input: Texts
    truncate: StrictBool | None = None
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None
    pooling: Literal["mean", "cls", "last"] | None = Field(None, description="Cutaway's.")


class EmbeddingsRequest(StrictModel):
    """Ollama's former request for one text's vector."""

    IGNORED = frozenset({"keep_alive", "options"})
    model: StrictStr | None = None
    prompt: StrictStr
    pooling: Literal["mean", "cls", "last"] | None = Field(None, description="Cutaway's.")


class ShowRequest(StrictModel):
    IGNORED = frozenset({"verbose"})
    model: StrictStr | None = None
    name: StrictStr | None = None
