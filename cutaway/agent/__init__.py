"""A model that calls tools: it writes a call, the call runs, its result is read, until it answers.

    agent = lm.agent(tools=["calculator", weather])
    answer = agent.ask("How many hours are 3 days and 7 hours?")
    answer.text, answer.calls

The conversation is kept as ids and only appended to: what the model wrote is never encoded again. A template
that rewrites earlier turns (dropping thoughts, say) cannot be appended to; then the whole conversation is
rendered anew (``Answer.appended`` tells). An answer is free text until a call's mark, then held to the tools'
names and schemas (``generate/tool_calls``). Results and descriptions are text: no control token of theirs
reaches the model.
"""

from cutaway.agent.loop import Agent, AgentOptions, Answer, Limits, ToolResult

__all__ = ["Agent", "AgentOptions", "Answer", "Limits", "ToolResult"]
