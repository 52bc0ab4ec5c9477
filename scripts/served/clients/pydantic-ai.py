# /// script
# dependencies = [
#     "pydantic-ai-slim[openai,anthropic]==2.68.0",
# ]
# ///
"""Pydantic AI: chat, responses and Anthropic's models, outputs three ways, tools."""

from checks import Colour, add, check, model, url
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=url + "/v1", api_key="none")
few = {"max_tokens": 300}
for kind in (OpenAIChatModel, OpenAIResponsesModel, AnthropicModel):
    theirs = AnthropicProvider(base_url=url, api_key="none") if kind is AnthropicModel else provider
    made = kind(model, provider=theirs)
    check(kind.__name__, lambda: Agent(made, model_settings=few).run_sync("Hello").output)
    check(
        f"{kind.__name__}, tools", lambda: Agent(made, tools=[add], model_settings=few).run_sync("1+2").output
    )
    check(
        f"{kind.__name__}, output by a tool",
        lambda: Agent(made, output_type=Colour, model_settings=few).run_sync("Red.").output,
    )
    if kind is not AnthropicModel:
        check(
            f"{kind.__name__}, NativeOutput",
            lambda: Agent(made, output_type=NativeOutput(Colour), model_settings=few).run_sync("Red.").output,
        )
check("stream", lambda: list(Agent(made, model_settings=few).run_stream_sync("Hello").stream_text()))
