"""Poisoning at three sizes and two data amounts: what k documents teach, and whether the scan finds it.

    python -m scripts.security_training --output runs/poisoning

Trains a model for each size, data amount, payload, number of poisoned documents and seed, and the sound and
the judging model of each; under 2 hours on two quiet cores. ``stages.jsonl`` in the folder has a line for
each stage that is done (follow it with tail -f). A run that was stopped goes on, and one with more values
adds theirs. Prints a Markdown table after the last model, or of what there is with --table.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch

from cutaway.security.probes.poisoning import PAYLOADS, Cell, Laboratory, rises

HEAD = ("model", "documents", "payload", "poisoned", "read", "rise (95%)", "rare word (95%)", "loss", "rank")


def row(cell: Cell, found: dict[str, Any], scan: dict[str, Any]) -> list[str]:
    """The figures of one model."""
    own, other = rises(found)
    shown = [f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for one in (own, other)]
    ranks = f"{scan['alone']['rank']}, {scan['beside']['rank']}"
    model, poisoned = f"{cell.width}x{cell.blocks}", str(cell.copies)
    return [
        *(model, f"{cell.documents:,}", cell.payload, poisoned, str(found["exposures"]), *shown),
        f"{found['loss']:.3f}",
        ranks,
    ]


def numbers(text: str) -> list[int]:
    """Numbers between commas."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/poisoning"))
    parser.add_argument("--sizes", default="32x2,64x2,128x3", help="width x blocks")
    parser.add_argument("--documents", type=numbers, default=[4000, 16000])
    parser.add_argument("--copies", type=numbers, default=[0, 10, 25, 50, 100, 250])
    parser.add_argument("--payloads", default=",".join(PAYLOADS))
    parser.add_argument("--seeds", type=numbers, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print what there is and train nothing")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    lab = Laboratory(asked.output)
    sizes = [tuple(map(int, size.split("x"))) for size in asked.sizes.split(",")]
    rows = []
    axes = product(asked.seeds, asked.documents, asked.payloads.split(","), sizes, asked.copies)
    for seed, documents, payload, (width, blocks), copies in axes:
        cell = Cell(width, blocks, documents, copies, payload, seed)
        kept = lab.folder / "figures" / f"{cell.name}-scan.json"
        if asked.table and not kept.is_file():
            continue
        rows.append(row(cell, lab.behaviour(cell), lab.scan(cell)))
        print(" | ".join(rows[-1]), flush=True)
    print()
    for line in (HEAD, ["---"] * len(HEAD), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
