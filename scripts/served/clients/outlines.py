# /// script
# dependencies = [
#     "outlines[openai]==1.3.3",
#     "ollama==0.6.3",
# ]
# ///
"""Outlines: OpenAI's, vLLM's and Ollama's clients; choices, a regex, a schema."""

from typing import Literal

import ollama
import openai
import outlines
from checks import Colour, check, model, url
from outlines.types import Regex

client = openai.OpenAI(base_url=url + "/v1", api_key="none")
few = {"max_tokens": 200}
plain, vllm = outlines.from_openai(client, model), outlines.from_vllm(client, model)
local = outlines.from_ollama(ollama.Client(host=url), model)
check("from_openai", lambda: plain("Hello", max_tokens=9))
check("from_openai, a schema", lambda: Colour.model_validate_json(plain("Red.", Colour, **few)))
check("from_openai, streamed", lambda: list(plain.stream("Hello", max_tokens=9)))
check("from_vllm, a choice", lambda: vllm("Red?", Literal["yes", "no"], **few) in ("yes", "no"))
check("from_vllm, a regex", lambda: vllm("A number?", Regex("[0-9]{3}"), **few).isdigit())
check("from_vllm, a schema", lambda: Colour.model_validate_json(vllm("Red.", Colour, **few)))
check("from_ollama, a schema", lambda: Colour.model_validate_json(local("Red.", Colour)))
