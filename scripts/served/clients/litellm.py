# /// script
# dependencies = [
#     "litellm==1.110.2",
# ]
# ///
"""litellm: three of its providers, tools, responses, and its Anthropic adapter before ours."""

import asyncio

import litellm
from checks import Colour, check, hello, model, tool, url

litellm.telemetry = False
for kind, base in (
    ("openai", url + "/v1"),
    ("anthropic", url),
    ("ollama_chat", url),
    ("hosted_vllm", url + "/v1"),
):
    asked = {"model": f"{kind}/{model}", "api_base": base, "api_key": "none", "messages": hello}
    few = asked | {"max_tokens": 9}
    check(kind, lambda: litellm.completion(**few).choices[0].message.content)
    check(f"{kind}, stream", lambda: list(litellm.completion(**few, stream=True)))
    shaped = asked | {"response_format": Colour, "max_tokens": 300}
    check(
        f"{kind}, format",
        lambda: Colour.model_validate_json(litellm.completion(**shaped).choices[0].message.content),
    )
    forced = asked | {"tools": [tool], "tool_choice": "required", "max_tokens": 99}
    if kind != "ollama_chat":  # which Ollama's API cannot force
        check(f"{kind}, tools", lambda: litellm.completion(**forced).choices[0].message.tool_calls)

ours = {"model": f"openai/{model}", "api_base": url + "/v1", "api_key": "none"}
check("responses", lambda: litellm.responses(input="Hello", max_output_tokens=9, **ours).output)
adapted = ours | {"messages": hello, "max_tokens": 9}
check("anthropic adapter", lambda: asyncio.run(litellm.anthropic.messages.acreate(**adapted))["content"])
check("embedding", lambda: litellm.embedding(input=["a"], **ours).data)
