"""A judge for `cutaway arena`: the answer with fewer repeated words is the better one."""


def judge(prompt: str, first: str, second: str) -> float:
    """1 where the first answer repeats itself less, 0 where the second does, 0.5 where both do alike."""

    def repeated(text: str) -> float:
        words = text.lower().split()
        return 1 - len(set(words)) / max(len(words), 1)

    one, other = repeated(first), repeated(second)
    return 0.5 if one == other else float(one < other)
