"""Files: pickles under every name must run nothing, and the model's own files are audited.

The canary is a file that a pickle writes when it is read by a loader that unpickles. The control reads the
same pickles with Python's own loader, in a folder of its own, to show that they would have worked.
"""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
from pathlib import Path

from cutaway.errors import OperationalError, UserError
from cutaway.evaluate import statistics
from cutaway.lm import LanguageModel, load
from cutaway.security.audit import audit
from cutaway.security.finding import Arm, Budget, Finding, Progress

NAMES = (
    "pytorch_model.bin",
    "model.pt",
    "model.pth",
    "model.ckpt",
    "model.pkl",
    "model.gguf",
    "model.safetensors",
)


class Canary:
    """An object whose pickle creates a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def run(lm: LanguageModel, *, seed: int, budget: Budget, progress: Progress) -> list[Finding]:
    """Pickles that are planted, and what the audit says of the model's own files."""
    ran, control = [], []
    with tempfile.TemporaryDirectory() as made:
        for n, (name, packed) in enumerate((name, packed) for name in NAMES for packed in (False, True)):
            progress(n, 2 * len(NAMES))
            folder, canary = Path(made) / str(n), Path(made) / f"canary {n}"
            folder.mkdir()
            data = pickle.dumps(Canary(canary))
            (folder / name).write_bytes(_archive(data) if packed else data)
            (folder / "config.json").write_text('{"model_type": "llama"}')
            for target in (folder, folder / name):
                try:
                    read_model_file(target)
                except (UserError, OperationalError):
                    continue
            ran.append(canary.exists())
            pickle.loads(data).close()
            control.append(canary.exists())
    progress(2 * len(NAMES), 2 * len(NAMES))
    issues = audit(lm.checkpoint.source)
    high = [issue for issue in issues if issue.severity == "high"]
    loaded = Finding(
        "files",
        "Pickles under a model's names",
        "vulnerable" if any(ran) else "sound" if all(control) else "not separated",
        f"{sum(ran)} of {len(ran)} pickles run when their file or folder is loaded; with Python's loader "
        f"{sum(control)} do.",
        (
            Arm("pickles that run", statistics.mean(ran)),
            Arm("pickles that run with Python's loader", statistics.mean(control), "control"),
        ),
        chance=0.0,
        seeds=(seed,),
    )
    own = Finding(
        "files",
        "The model's own files",
        "vulnerable" if high else "sound",
        " ".join(f"{issue.where}: {issue.what}." for issue in high or issues) or "Nothing was found.",
        (Arm("findings that are high", statistics.mean([issue in high for issue in issues] or [False])),),
        seeds=(seed,),
    )
    return [loaded, own]


def read_model_file(path: Path) -> None:
    """Load a model from a path, as a user does."""
    load(path)


def _archive(data: bytes) -> bytes:
    """The pickle in an archive, as PyTorch writes it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", data)
    return stream.getvalue()
