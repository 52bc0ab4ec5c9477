"""Agent exercises: the model may call tools, and its answer after the calls is checked.

acc      the answer is right
called   a tool was called, and its call could be read
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cutaway.data.tasks import RIGHT
from cutaway.errors import UserError
from cutaway.evaluate.cache import Cache
from cutaway.evaluate.task import EvaluationTask
from cutaway.lm import LanguageModel

Values = dict[str, list[float]]


def answered(
    lm: LanguageModel,
    task: EvaluationTask,
    cache: Cache,
    max_tokens: int | None,
    progress: Callable[[int, int], None],
) -> tuple[Values, list[list[str]], int, str]:
    """Each item's figures, the answers, the tokens of conversations, and the first prompt; greedy."""
    items: Any = task.items
    size = max_tokens or task.max_tokens
    agents = {tools: lm.agent(tools, temperature=0, max_tokens=size) for tools in {i.tools for i in items}}

    def compute(numbers: Sequence[int]) -> list[list[Any]]:
        out = []
        for n in numbers:
            agent = agents[items[n].tools]
            agent.messages.clear()
            try:
                answer = agent.ask(items[n].prompt)
            except UserError as error:  # its own calls fill the context: it has no answer
                out.append([f"({error})", 0, 0])
            else:
                out.append([answer.text, len(answer.calls), len(answer.ids)])
        return out

    asked = [[{"role": "user", "content": item.prompt}] for item in items]
    declared = {tools: [tool.declaration for tool in agent.tools] for tools, agent in agents.items()}
    prompts = [lm.chat_ids(each, tools=declared[item.tools]) for each, item in zip(asked, items, strict=True)]
    requests = [["agent", ids, list(item.tools), size] for ids, item in zip(prompts, items, strict=True)]
    found = cache.fill(requests, compute, lambda done: progress(done, len(requests)))
    values = {
        "acc": [float(item.check(text) >= RIGHT) for item, (text, _, _) in zip(items, found, strict=True)],
        "called": [float(calls > 0) for _, calls, _ in found],
    }
    texts = [[text] for text, _, _ in found]
    return values, texts, sum(count for _, _, count in found), lm.tokenizer.decode(prompts[0])
