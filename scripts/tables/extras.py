"""The table of docs/install.md: what each extra opens, what it brings, and its size on disk.

    python -m scripts.tables.extras            # in an environment that has `all`; seconds
    python -m scripts.tables.extras --check    # exits 1 where the page has other extras or other words

Sizes are those of the files of the packages that this environment has, with all that they need in turn,
beyond what the plain installation brings.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "install.md"
BEGIN, END = "<!-- extras: python -m scripts.tables.extras -->\n", "<!-- end of extras -->"
OPENS = {
    "train": "`pretrain`, `finetune`, `compare`, `scale`, `sae`, `pipeline`; gradients, `lm.model`, models "
    "and devices that the runtime does not run; parquet, data sets of Hugging Face, near-duplicates; "
    "TensorBoard",
    "research": "traces as tables, linear probes, approximate search in many vectors",
    "eval": "`eval --harness`, `--tasks reasoning_gym:NAME`, `finetune grpo` with such tasks; `verify` "
    "against transformers and llama.cpp",
    "agent": "`chat --tools`, `lm.agent`, MCP servers; tools, JSON schemas and grammars in `serve`",
    "serve": "`agent`, and for an operator `serve --otlp-endpoint`, `--prefix-cache-key-file`, "
    "signed bundles, `audit --public-key`",
    "all": "all of these",
    "umap": "`embed map --method umap`",
    "ray": "evaluating, comparing, activations, tokenizing and counting words on several machines",
}


def extras() -> dict[str, list[str]]:
    """The requirements of each extra that the page lists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {name: needs for name, needs in project["optional-dependencies"].items() if name in OPENS}


def plain() -> list[str]:
    """What the plain installation needs."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def closure(needs: list[str]) -> set[str]:
    """The installed packages that these requirements bring, with what those need in turn."""
    found: set[str] = set()
    left = [(Requirement(need), "") for need in needs]
    while left:
        need, extra = left.pop()
        if need.marker is not None and not need.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", need.name).lower()
        if name == "cutaway":
            own = [one for part in need.extras for one in extras()[part]]
            left += [(Requirement(one), "") for one in own]
            continue
        asked = {name} if not need.extras else {f"{name}[{part}]" for part in need.extras} | {name}
        if asked <= found:
            continue
        found |= asked
        for line in importlib.metadata.requires(name) or []:
            left += [(Requirement(line), part) for part in need.extras or {""}]
    return {name for name in found if "[" not in name}


def size(packages: set[str]) -> int:
    """Bytes of the packages' files."""
    files = {path.locate() for name in packages for path in importlib.metadata.files(name) or ()}
    return sum(path.stat().st_size for path in map(Path, files) if path.is_file())


def shown(name: str, needs: list[str], base: set[str]) -> str:
    """The size of an extra, or a dash where this environment lacks a part of it."""
    try:
        bytes = size(closure(needs) - base)
    except importlib.metadata.PackageNotFoundError:
        return ""
    return f"{bytes / 1e9:.1f} GB" if bytes >= 1e9 else f"{bytes / 1e6:.0f} MB"


def table(sizes: bool = True) -> str:
    """The table, without sizes where only its words are compared."""
    base = closure(plain()) if sizes else set()
    rows = ["| extra | on disk | opens |", "|---|---|---|"]
    for name, needs in extras().items():
        rows.append(f"| `{name}` | {shown(name, needs, base) if sizes else ''} | {OPENS[name]} |")
    return "\n".join(rows) + "\n"


def words(text: str) -> list[tuple[str, str]]:
    """Each row's extra and what it opens."""
    return re.findall(r"^\| `(\w+)` \|[^|]*\| (.*) \|$", text, re.M)


def main() -> int:
    page = PAGE.read_text("utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    if "--check" in sys.argv[1:]:
        return int(words(old) != words(table(sizes=False)))
    PAGE.write_text(before + BEGIN + table() + END + after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
