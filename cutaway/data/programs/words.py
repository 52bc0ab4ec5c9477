"""Words to spell, sort and look up: common nouns, and words that no dictionary has, made of syllables."""

from __future__ import annotations

from random import Random


def listed(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


NOUNS = listed("""
apple bridge candle desert engine feather garden hammer island jacket kettle ladder mirror needle orange
pencil quarry ribbon saddle tunnel umbrella valley window yellow zipper anchor basket castle dragon elbow
forest guitar harbor insect jungle kitchen lantern magnet napkin oyster pepper quilt rocket shadow
uncle violin wagon almond button carpet dinner eagle finger glacier honey igloo juice kitten lemon marble
nickel otter planet queen river silver turtle urchin velvet winter acorn beacon cactus donkey emerald flower
goblet hazel iris jewel koala linen meadow nettle olive parrot raven salmon thunder vessel walnut badger
cherry dolphin engineer falcon grape hedge ink jelly knight lilac mango north oven pigeon rabbit spoon
table trumpet village whistle brick cloud dust earth flame grass horse iron joke knee leaf moon nest owl
paper road snow tree voice water bell coat gate egg farm gold hill king lamp milk nose pond rope sand tail
""")
ONSETS = listed("b br c ch d dr f fl g gr h j k l m n p pl pr qu r s sh sl st t th tr v w z")
VOWELS = listed("a e i o u ai ea oo")
CODAS = ["", "", "b", "ck", "d", "l", "m", "n", "nd", "p", "r", "rk", "s", "sh", "st", "t", "x"]


def made(random: Random, syllables: int) -> str:
    """A word of so many syllables that means nothing."""
    return "".join(
        random.choice(ONSETS) + random.choice(VOWELS) + random.choice(CODAS) for _ in range(syllables)
    )


def word(random: Random) -> str:
    """A noun, or a made word as often."""
    return random.choice(NOUNS) if random.random() < 0.5 else made(random, random.choice((1, 2, 2)))


def several(random: Random, count: int) -> list[str]:
    """So many different words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(word(random))
    return list(found)
