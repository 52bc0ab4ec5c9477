# /// script
# dependencies = [
#     "openai-agents==0.24.0",
# ]
# ///
"""OpenAI's Agents with both of its models, tools, a structured output, streams."""

import asyncio

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checks import Colour, add, check, model, url
from openai import AsyncOpenAI

set_tracing_disabled(True)
for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):

    def agent(**more):
        client = AsyncOpenAI(base_url=url + "/v1", api_key="none")
        settings = ModelSettings(
            max_tokens=1000,
            temperature=0,  # so that a small model comes to an end: the SDK raises where an answer is cut
            tool_choice=more.pop("tool_choice", None),
            parallel_tool_calls=False if "tools" in more else None,
        )
        return Agent(name="a", model=kind(model=model, openai_client=client), model_settings=settings, **more)

    async def streamed():
        run = Runner.run_streamed(agent(), "Hello")
        events = [event async for event in run.stream_events()]
        return events and run.final_output

    name = kind.__name__
    check(name, lambda: Runner.run_sync(agent(), "Hello").final_output)
    check(
        f"{name}, tools",
        lambda: Runner.run_sync(agent(tools=[function_tool(add)], tool_choice="required"), "1+2").new_items,
    )
    check(f"{name}, output_type", lambda: Runner.run_sync(agent(output_type=Colour), "Red.").final_output)
    check(f"{name}, streamed", lambda: asyncio.run(streamed()))
