# /// script
# dependencies = [
#     "ollama==0.6.3",
#     "pydantic==2.14.4",
# ]
# ///
"""Ollama's SDK: chat, generate, format, tools, embed, what the model is."""

import ollama
from checks import Colour, add, check, hello, model, url

client = ollama.Client(host=url)
few = {"num_predict": 9}


def shaped():
    answer = client.chat(model=model, messages=hello, format=Colour.model_json_schema())
    return Colour.model_validate_json(answer.message.content)


check("chat", lambda: client.chat(model=model, messages=hello, options=few).message.content)
check("stream", lambda: list(client.chat(model=model, messages=hello, options=few, stream=True)))
check("format", shaped)
check("tools", lambda: client.chat(model=model, messages=hello, tools=[add], options=few).message)
check("think", lambda: client.chat(model=model, messages=hello, think=False, options=few).message)
check("generate", lambda: client.generate(model=model, prompt="Hello", options=few).response)
check(
    "generate, stream", lambda: list(client.generate(model=model, prompt="Hello", options=few, stream=True))
)
check(
    "list, show, ps", lambda: client.list().models and client.show(model).capabilities and client.ps().models
)
check("embed", lambda: client.embed(model=model, input=["a", "b"]).embeddings)
