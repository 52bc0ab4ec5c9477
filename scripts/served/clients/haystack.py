# /// script
# dependencies = [
#     "haystack-ai==3.4.1",
# ]
# ///
"""Haystack: a chat generator whole and streamed, tools, embedders."""

from checks import add, check, model, url
from haystack.components.embedders import OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret

key, hello = Secret.from_token("none"), [ChatMessage.from_user("Say hello.")]
few = {"max_tokens": 99}


def generator(**more):
    return OpenAIChatGenerator(model=model, api_base_url=url + "/v1", api_key=key, **more)


def streamed():
    parts = []
    generator(generation_kwargs=few, streaming_callback=parts.append).run(hello)
    return parts


forced = few | {"tool_choice": "required"}
tools = [create_tool_from_function(add)]
check("chat", lambda: generator(generation_kwargs=few).run(hello)["replies"][0].text)
check("stream", streamed)
check("tools", lambda: generator(generation_kwargs=forced, tools=tools).run(hello)["replies"][0].tool_calls)
check("embeddings", lambda: OpenAITextEmbedder(model=model, api_base_url=url + "/v1", api_key=key).run("a"))
