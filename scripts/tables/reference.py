"""Write the pages of docs/reference from the code: verbs, Python objects, configs, HTTP, names, files.

python -m scripts.tables.reference            # after a verb, option, config, route or docstring changed
python -m scripts.tables.reference --check    # exits 1 where a page says otherwise
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from scripts.lib.reference import cli, config, formats, http, python, traces
from scripts.tables import contributing

FOLDER = contributing.ROOT / "docs" / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli.page,
    "python.md": python.page,
    "config.md": config.page,
    "http.md": http.page,
    "traces.md": traces.page,
    "files.md": formats.page,
}


def main() -> int:
    """Write the pages, or name those that say otherwise."""
    late = 0
    for name, page in PAGES.items():
        path = FOLDER / name
        made = page()
        if path.exists() and path.read_text("utf-8") == made:
            continue
        late += 1
        if "--check" in sys.argv:
            print(f"docs/reference/{name} says otherwise: run python -m scripts.tables.reference")
        else:
            path.write_text(made, "utf-8")
    return int("--check" in sys.argv and late > 0)


if __name__ == "__main__":
    sys.exit(main())
