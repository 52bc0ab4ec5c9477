# /// script
# dependencies = [
#     "openai==3.57.0",
# ]
# ///
"""OpenAI's SDK: chat, tools, responses, embeddings."""

import openai
from checks import Colour, check, hello, model, tool, url

client = openai.OpenAI(base_url=url + "/v1", api_key="none")
chat, responses = client.chat.completions, client.responses
few = {"model": model, "messages": hello, "max_tokens": 9}
forced = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
function = {"type": "function", **tool["function"], "strict": False}


def tools_and_results():
    call = chat.create(model=model, messages=hello, max_tokens=99, **forced).choices[0].message
    results = [{"role": "tool", "tool_call_id": one.id, "content": "3"} for one in call.tool_calls]
    return chat.create(model=model, messages=[*hello, call, *results], tools=[tool]).choices[0].message


def chat_streamed():
    # The SDK raises where an answer was cut off, which this one is not.
    with chat.stream(**few | {"max_tokens": 400, "stop": [" "]}) as events:
        return events.get_final_completion().choices[0].message.content


def streamed():
    with responses.stream(model=model, input="Red.", text_format=Colour) as events:
        return events.get_final_response().output_parsed


def goes_on():
    first = responses.create(model=model, input="Hello", max_output_tokens=9)
    second = responses.create(model=model, input="Go on", previous_response_id=first.id, max_output_tokens=9)
    assert responses.retrieve(second.id).output_text == second.output_text
    return second.output_text


def responses_tools():
    asked = {"model": model, "tools": [function], "max_output_tokens": 99}
    made = responses.create(input="1+2", tool_choice="required", **asked)
    call = next(one for one in made.output if one.type == "function_call")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    return responses.create(input=[result], previous_response_id=made.id, **asked).output


def compacted():
    made = responses.compact(model=model, input="Hello", extra_body={"max_output_tokens": 9})
    asked = [*made.output, {"role": "user", "content": "Go on"}]
    return responses.create(model=model, input=asked, max_output_tokens=9).output_text


check("models", lambda: client.models.list().data and client.models.retrieve(model))
check("chat", lambda: chat.create(**few).choices[0].message.content)
check("stream", chat_streamed)
check(
    "logprobs, n", lambda: chat.create(**few, n=2, logprobs=True, top_logprobs=2).choices[1].logprobs.content
)
check(
    "parse", lambda: chat.parse(model=model, messages=hello, response_format=Colour).choices[0].message.parsed
)
check("tools", tools_and_results)
check(
    "completions", lambda: client.completions.create(model=model, prompt="Once", max_tokens=9).choices[0].text
)
check("responses", lambda: responses.create(model=model, input="Hello", max_output_tokens=9).output_text)
check("responses.stream", streamed)
check("responses.parse", lambda: responses.parse(model=model, input="Red.", text_format=Colour).output_parsed)
check("responses, tools", responses_tools)
check("previous_response_id", goes_on)
check("responses.compact", compacted)
check("conversations", lambda: client.conversations.create(items=[{"role": "user", "content": "Hi"}]).id)
check("embeddings", lambda: client.embeddings.create(model=model, input=["a"] * 600).data[599].embedding)
