# /// script
# dependencies = [
#     "autogen-ext[openai]==0.7.5",
#     "autogen-agentchat==0.7.5",
# ]
# ///
"""AutoGen: its OpenAI client, a structured answer, an agent with a tool."""

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from checks import Colour, add, check, model, url

info = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "family": "unknown",
    "structured_output": True,
}
hello = [UserMessage(content="Say hello.", source="user")]


def client():
    return OpenAIChatCompletionClient(
        model=model, base_url=url + "/v1", api_key="none", model_info=info, max_tokens=300
    )


async def streamed():
    return [one async for one in client().create_stream(hello)]


async def agent():
    return (await AssistantAgent("a", client(), tools=[add]).run(task="What is 1+2?")).messages


check("create", lambda: asyncio.run(client().create(hello)).content)
check("create_stream", lambda: asyncio.run(streamed()))
check(
    "json_output",
    lambda: Colour.model_validate_json(asyncio.run(client().create(hello, json_output=Colour)).content),
)
check("AssistantAgent", lambda: asyncio.run(agent()))
