"""The grids of GGUF's IQ types, written into the package out of the gguf package's constants: seconds.

    python -m scripts.tables.codebooks            writes cutaway/quantization/codebooks.bin
    python -m scripts.tables.codebooks --check    says whether it is what would be written

Each grid is as ggml's: entries of 8 numbers of 2 bits each (IQ1, IQ2) or 4 of 4 bits (IQ3), lowest first, in
two bytes; quantization/codebooks.py says which numbers they stand for.
"""

import sys
from pathlib import Path

import numpy as np
from gguf import quants

TARGET = Path(__file__).parents[2] / "cutaway" / "quantization" / "codebooks.bin"
GRIDS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S")


def packed(name: str) -> bytes:
    """One grid: two bytes an entry."""
    kind = getattr(quants, name)
    kind.init_grid()
    codes = np.searchsorted(np.array(kind.grid_map), kind.grid.reshape(kind.grid_shape))
    bits = 16 // codes.shape[1]
    return (codes << np.arange(0, 16, bits)).sum(1).astype("<u2").tobytes()


def main() -> int:
    """0 where the file is right."""
    data = b"".join(map(packed, GRIDS))
    if "--check" not in sys.argv:
        TARGET.write_bytes(data)
    same = TARGET.read_bytes() == data
    print(f"{TARGET.name}: {len(data):,} bytes, {'as in' if same else 'NOT as in'} the gguf package")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
