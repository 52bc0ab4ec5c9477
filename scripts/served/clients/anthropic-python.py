# /// script
# dependencies = [
#     "anthropic==2.14.0",
# ]
# ///
"""Anthropic's SDK: messages, tools, thinking, counting."""

import anthropic
from checks import Colour, check, hello, model, schema, url

client = anthropic.Anthropic(base_url=url, api_key="none")
few = {"model": model, "messages": hello, "max_tokens": 9}
add = {"name": "add", "description": "Adds.", "input_schema": schema}
forced = {"tools": [add], "tool_choice": {"type": "any"}, "max_tokens": 99}


def streamed():
    with client.messages.stream(**few) as events:
        return events.get_final_text()


def tools_and_results():
    made = client.messages.create(model=model, messages=hello, **forced)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "3"}
        for block in made.content
        if block.type == "tool_use"
    ]
    messages = [*hello, {"role": "assistant", "content": made.content}, {"role": "user", "content": results}]
    return client.messages.create(model=model, messages=messages, tools=[add], max_tokens=20).content


def thinking():
    thought = {"type": "enabled", "budget_tokens": 1024}
    return client.messages.create(model=model, messages=hello, max_tokens=2048, thinking=thought).content


def runner():
    tool = anthropic.beta_tool(lambda a, b: str(a + b), name="add", description="Adds.", input_schema=schema)
    asked = {"model": model, "messages": hello, "max_tokens": 99, "max_iterations": 2}
    return list(client.beta.messages.tool_runner(tools=[tool], **asked))


check("messages", lambda: client.messages.create(**few).content[0].text)
check("stream", streamed)
check("tools", tools_and_results)
check("tool_runner", runner)
check("thinking", thinking)
check("parse", lambda: client.messages.parse(**few | {"max_tokens": 400}, output_format=Colour).parsed_output)
check("count_tokens", lambda: client.messages.count_tokens(model=model, messages=hello).input_tokens)
check("models", lambda: client.models.list().data)
