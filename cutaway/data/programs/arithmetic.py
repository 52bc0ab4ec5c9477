"""Sums, differences and products of two numbers, which the calculator works out."""

from __future__ import annotations

import re
from random import Random

from cutaway.data.programs.item import Item

SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
PHRASES = ("What is {}?", "Calculate {}.", "How much is {}?", "Work out {}.")
STORIES = {
    "+": "Tom has {} stamps and gets {} more. How many stamps has he now?",
    "-": "A box holds {} nails and {} are used. How many nails are left?",
    "*": "There are {} shelves with {} books each. How many books are there?",
}


def draw(random: Random) -> Item:
    """A question of numbers of one to three digits."""
    sign = random.choice("+-*")
    most = 99 if sign == "*" else 999
    a, b = random.randint(2, most), random.randint(2, most)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    expression, value = f"{a} {sign} {b}", SIGNS[sign](a, b)
    if random.random() < 0.25:
        question = STORIES[sign].format(a, b)
    else:
        question = random.choice(PHRASES).format(expression)
    wrong = value + random.choice((-10, -1, 1, 10))
    return Item(question, str(value), f"arithmetic {expression}", str(wrong), expression)


def solve(question: str) -> str:
    """The answer, from the question's own text."""
    numbers = [int(digits) for digits in re.findall(r"\d+", question)]
    signs = re.search(r"\d ([+*-]) \d", question)
    sign = (
        signs[1]
        if signs
        else {"stamps": "+", "nails": "-", "books": "*"}[
            next(word for word in ("stamps", "nails", "books") if word in question)
        ]
    )
    total = numbers[0]
    if sign == "*":  # by adding, so that another operation judges
        return str(sum(numbers[0] for _ in range(numbers[1])))
    return str(total + numbers[1] if sign == "+" else total + -numbers[1])
