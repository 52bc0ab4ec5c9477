"""The recorded trace that the server's page shows while its first one is computed (cutaway/page/app/).

    python -m scripts.tables.recording

It is the page of `cutaway explain --lens jacobian` for one sentence and the default model. To be small it
keeps queries, keys and values of the heads of largest contribution alone, as pages of long texts do.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
import zlib
from pathlib import Path
from typing import Any

from cutaway.cli import main as cutaway

TEXT = "The capital of France is"
OUT = Path(__file__).parents[2] / "cutaway" / "page" / "app" / "recording.bin"
BYTES = {"f4": 4, "u4": 4, "u2": 2, "u1": 1, "i1": 1}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        if cutaway(["explain", TEXT, "--lens", "jacobian", "--html", str(page)]):
            raise SystemExit(1)
        block = re.search(r'id="data">([^<]*)</script>', page.read_text("utf-8"))
    assert block is not None
    OUT.write_bytes(zlib.compress(lean(zlib.decompress(base64.b64decode(block[1]))), 9))
    print(f"{OUT.name}: {OUT.stat().st_size:,} bytes")


def group_size(explanation: dict[str, Any], layer: int) -> int:
    return explanation["attention"][layer]["group_size"]


def lean(document: bytes) -> bytes:
    """The document with vectors of the heads of largest contribution alone."""
    size = int.from_bytes(document[:4], "little")
    facts, data = json.loads(document[4 : 4 + size]), document[4 + size :]
    (explanation,) = facts["explanations"]
    layer, head, _ = explanation["chosen"]
    best = {(one["layer"], one["head"]) for one in explanation["attribution"]["heads"]} | {(layer, head)}
    kept = [one for one in explanation["detailed"] if tuple(one) in best]
    projections = explanation["projections"] = {**explanation["projections"], "heads": [[layer, head]]}
    own = {
        f"q.{layer}.{head}",
        *(f"{name}.{layer}.{head // group_size(explanation, layer)}" for name in "kv"),
    }
    projections["scales"] = {name: value for name, value in projections["scales"].items() if name in own}
    groups = {(i, h // group_size(explanation, i)) for i, h in kept}
    explanation["detailed"] = kept
    chunks: list[bytes] = []
    arrays: dict[str, Any] = {}
    for name, (kind, shape, offset) in explanation["arrays"].items():
        vector = re.fullmatch(r"([qkv])\.(\d+)\.(\d+)", name)
        if vector and (int(vector[2]), int(vector[3])) not in (best if vector[1] == "q" else groups):
            continue
        product = re.fullmatch(r"(?:drawn|product\.ids|product\.weights|sums|bias|input)\.(.*)", name)
        if product and product[1] not in {*own, str(layer)} and not name.startswith("bias."):
            continue
        count = BYTES[kind]
        for one in shape:
            count *= one
        arrays[name] = [kind, shape, sum(map(len, chunks))]
        chunks.append(data[offset : offset + count] + bytes(-count % 4))
    explanation["arrays"] = arrays
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    return len(text).to_bytes(4, "little") + text + b"".join(chunks)


if __name__ == "__main__":
    main()
