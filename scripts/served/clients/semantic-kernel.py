# /// script
# dependencies = [
#     "semantic-kernel==1.45.0",
# ]
# ///
"""Semantic Kernel: chat whole and streamed, a function, a structured answer."""

import asyncio

from checks import Colour, check, model, url
from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import kernel_function


class Sums:
    """A plugin."""

    @kernel_function(description="Adds two whole numbers.")
    def add(self, a: int, b: int) -> int:
        """Adds."""
        return a + b


def asked(**more):
    service = OpenAIChatCompletion(
        ai_model_id=model, async_client=AsyncOpenAI(base_url=url + "/v1", api_key="none")
    )
    history = ChatHistory(system_message="Be kind.")
    history.add_user_message("Say hello.")
    return service, history, OpenAIChatPromptExecutionSettings(max_tokens=99, **more)


async def answered(kernel=None, **more):
    service, history, settings = asked(**more)
    return (await service.get_chat_message_contents(history, settings, kernel=kernel))[0]


async def streamed():
    service, history, settings = asked()
    return [one async for one in service.get_streaming_chat_message_contents(history, settings)]


kernel = Kernel()
kernel.add_plugin(Sums(), "sums")
required = FunctionChoiceBehavior.Required(auto_invoke=False)
check("chat", lambda: asyncio.run(answered()).content)
check("stream", lambda: asyncio.run(streamed()))
check("functions", lambda: asyncio.run(answered(kernel, function_choice_behavior=required)).items)
check(
    "response_format",
    lambda: Colour.model_validate_json(asyncio.run(answered(response_format=Colour)).content),
)
