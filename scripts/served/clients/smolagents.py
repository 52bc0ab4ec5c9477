# /// script
# dependencies = [
#     "smolagents[openai]==1.26.0",
# ]
# ///
"""smolagents: a model, and its two agents."""

from checks import check, hello, model, url
from smolagents import CodeAgent, OpenAIServerModel, ToolCallingAgent
from smolagents import tool as tool_of

llm = OpenAIServerModel(model_id=model, api_base=url + "/v1", api_key="none", max_tokens=300)


@tool_of
def add(a: int, b: int) -> int:
    """Adds two whole numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def ran(kind):
    agent = kind(tools=[add], model=llm, max_steps=2, verbosity_level=0)
    agent.run("What is 1+2?")
    return [
        one
        for one in agent.memory.steps
        if getattr(one, "error", None) is None or "generat" not in str(one.error)
    ]


check("generate", lambda: llm.generate(hello).content)
check("generate_stream", lambda: list(llm.generate_stream(hello)))
check("ToolCallingAgent", lambda: ran(ToolCallingAgent))
check("CodeAgent", lambda: ran(CodeAgent))
