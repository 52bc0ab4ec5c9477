"""How the answers of `cutaway chat` end, with its defaults and without their repetition penalty.

    python -m scripts.study.chat_endings

20 questions to SmolLM2, once each. An answer ends by itself or at the cap; it loops if some 12 tokens in a
row come four times or more. 10 minutes on two cores.
"""

from collections import Counter
from typing import Any

import cutaway
from cutaway.commands.chat import defaults

QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Explain photosynthesis to a child.",
    "List ten fruits.",
    "Tell me a story about a dragon.",
    "What is 17 times 23?",
    "Write a Python function that reverses a string.",
    "Who wrote Pride and Prejudice?",
    "Give me tips for sleeping better.",
    "Translate 'good morning' into Spanish.",
    "What are the planets of the solar system?",
    "Summarize the plot of Romeo and Juliet.",
    "How do I boil an egg?",
    "Write an essay about freedom.",
    "What is the meaning of life?",
    "Count from 1 to 30.",
    "Write a poem about the sea.",
    "Compare cats and dogs.",
    "Explain how a computer works, in detail.",
    "hi",
)
GRAM, TIMES = 12, 4


def loops(ids: tuple[int, ...]) -> bool:
    """Whether some GRAM ids in a row come TIMES times or more."""
    grams = Counter(ids[i : i + GRAM] for i in range(len(ids) - GRAM + 1))
    return max(grams.values(), default=0) >= TIMES


def main() -> None:
    """Print one line for each of both settings."""
    lm: Any = cutaway.load("smollm2")
    usual: dict[str, Any] = defaults(lm)
    for settings in (usual | {"repetition_penalty": 1.0}, usual):
        ended, looped = 0, 0
        for seed, question in enumerate(QUESTIONS):
            answer = lm.chat([{"role": "user", "content": question}], seed=seed, **settings)
            ended += answer.finish_reason == "stop"
            looped += loops(tuple(answer.ids))
        rest = len(QUESTIONS) - ended
        print(f"{settings}: {ended} end by themselves, {rest} at the cap; {looped} loop", flush=True)


if __name__ == "__main__":
    main()
