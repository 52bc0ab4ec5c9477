"""A small table in the question, and one of its values to look up."""

from __future__ import annotations

from random import Random

from cutaway.data.programs.item import Item
from cutaway.data.programs.words import listed

NAMES = listed(
    "Anna Ben Clara David Ella Frank Greta Hugo Ida Jan Kate Leo Mia Noah Olga Paul Rosa Sam Tina Will"
)
TOWNS = listed(
    "Oslo Paris Rome Cairo Lima Delhi Tokyo Quito Dublin Bern Prague Athens Hanoi Ottawa Madrid Riga"
)
JOBS = listed("baker nurse pilot farmer tailor singer lawyer painter teacher miner sailor cook")


def draw(random: Random) -> Item:
    """A table of three or four people, and a question of one of them."""
    people = random.sample(NAMES, random.randint(3, 4))
    columns = {
        "age": [str(age) for age in random.sample(range(18, 90), len(people))],
        "town": random.sample(TOWNS, len(people)),
        "job": random.sample(JOBS, len(people)),
    }
    kept = random.sample(list(columns), 2)
    lines = [" | ".join(["name", *kept])]
    lines += [" | ".join([name, *(columns[c][n] for c in kept)]) for n, name in enumerate(people)]
    at, column = random.randrange(len(people)), random.choice(kept)
    table = "\n".join(lines)
    question = f"{table}\nWhat is the {column} of {people[at]}?"
    wrong = columns[column][(at + 1) % len(people)]
    return Item(question, columns[column][at], f"tables {question}", wrong)


def solve(question: str) -> str:
    """The answer, from the question's own text."""
    *lines, asked = question.split("\n")
    rows = [line.split(" | ") for line in lines]
    column, _, name = asked.removeprefix("What is the ").rstrip("?").partition(" of ")
    place = rows[0].index(column)
    return next(row[place] for row in rows[1:] if row[0] == name)
