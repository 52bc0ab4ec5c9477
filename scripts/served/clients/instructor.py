# /// script
# dependencies = [
#     "instructor==1.17.0",
# ]
# ///
"""instructor in each of its modes that speak OpenAI's API."""

import instructor
import openai
from checks import Colour, check, hello, model, url
from instructor.core import IncompleteOutputException, InstructorRetryException

IN_THE_PROMPT = ("JSON", "MD_JSON", "JSON_O1")  # modes in which nothing but the prompt says the schema
asked = {"model": model, "messages": hello, "response_model": Colour, "max_tokens": 300}
for name in (
    "TOOLS",
    "TOOLS_STRICT",
    "PARALLEL_TOOLS",
    "FUNCTIONS",
    "JSON",
    "JSON_SCHEMA",
    "MD_JSON",
    "JSON_O1",
    "RESPONSES_TOOLS",
):
    mode = getattr(instructor.Mode, name, None)
    if mode is None:
        continue

    def work():
        client = instructor.from_openai(openai.OpenAI(base_url=url + "/v1", api_key="none"), mode=mode)
        if name == "PARALLEL_TOOLS":
            from collections.abc import Iterable

            return list(client.chat.completions.create(**asked | {"response_model": Iterable[Colour]}))
        try:
            return client.chat.completions.create(**asked, max_retries=1)
        except (
            IncompleteOutputException,
            InstructorRetryException,
        ) as error:  # a small model does not follow what a prompt alone asks for
            assert name in IN_THE_PROMPT and error.last_completion is not None, error
            return error.last_completion

    check(name + (" (answered)" if name in IN_THE_PROMPT else ""), work)
client = instructor.from_openai(
    openai.OpenAI(base_url=url + "/v1", api_key="none"), mode=instructor.Mode.TOOLS
)
check("create_partial", lambda: list(client.chat.completions.create_partial(**asked)))
