"""The fields of chats, completions and embeddings (platform.openai.com/docs/api-reference)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt

from cutaway.serve.edit_schema import Edits
from cutaway.serve.openai.message_schema import (
    AllowedTools,
    Ending,
    Function,
    Messages,
    NamedFunction,
    NamedTool,
    Tools,
)
from cutaway.serve.openai.sampling_schema import IGNORED, SamplingRequest
from cutaway.serve.validation import MAX_TEXTS, FailFast, Indices, Object, Prompts, StrictModel, Text, Texts


class ChatCompletionRequest(SamplingRequest, Ending):
    messages: Messages
    max_completion_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: StrictBool | None = None
    functions: Annotated[list[Function], FailFast, Field(max_length=128)] | None = Field(
        None, description="OpenAI's former tools; `function_call` is their `tool_choice`."
    )
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    reasoning_effort: Annotated[Text, Field(max_length=32)] | None = Field(
        None, description="For the template; where it reads none, a thinking_token_budget."
    )
    thinking_token_budget: Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="vLLM's: a thought is ended after so many tokens, and the answer follows."
    )
    chat_template_kwargs: Object | None = Field(None, description="vLLM's: variables of the template.")
    continue_token_ids: Indices | None = Field(
        None, description="Cutaway's: the answer goes on with these ids, the `token_ids` of an earlier one."
    )
    return_token_ids: StrictBool | None = Field(
        None,
        description="vLLM's: the answer has prompt_token_ids and each choice token_ids, the end token among "
        "them; logprobs have an entry for each of the latter, and every entry has its token's id.",
    )
    edits: Edits | None = Field(None, description="Cutaway's: changes of the model's activations.")


class CompletionRequest(SamplingRequest):
    prompt: Prompts
    suffix: Text | None = Field(None, description="What follows the text that the model is to fill in.")
    begun: Text | None = Field(None, description="Cutaway's: what the text before a suffix begins with.")
    echo: StrictBool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    edits: Edits | None = Field(None, description="Cutaway's: changes of the model's activations.")
    return_token_ids: StrictBool | None = Field(
        None,
        description="vLLM's: each choice has prompt_token_ids and token_ids, the end token among them, and "
        "logprobs have an entry for each of the latter.",
    )


class EmbeddingRequest(StrictModel):
    IGNORED = IGNORED
    model: Text | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None, description="Cutaway's: how one vector is made of the tokens'. Required for a decoder."
    )


class RerankRequest(StrictModel):
    """Texts in the order of how near they are to a query."""

    IGNORED = IGNORED | {"max_chunks_per_doc", "max_tokens_per_doc", "rank_fields"}
    model: Text | None = None
    query: Text
    documents: Annotated[list[Text | RerankDocument], FailFast, Field(min_length=1, max_length=MAX_TEXTS)]
    top_n: Annotated[StrictInt, Field(ge=1)] | None = None
    return_documents: StrictBool | None = None
    pooling: Literal["mean", "cls", "last"] | None = Field(None, description="Cutaway's, as in embeddings.")


class RerankDocument(StrictModel):
    text: Text


class ScoreRequest(StrictModel):
    """vLLM's: how near texts are to others."""

    IGNORED = IGNORED
    model: Text | None = None
    text_1: Texts
    text_2: Texts
    pooling: Literal["mean", "cls", "last"] | None = Field(None, description="Cutaway's, as in embeddings.")
