"""The job files of deploy/ for training by what would start them: Slurm's sbatch, SkyPilot's loader,
kubernetes-validate. A faulty copy of each must be refused.

    pip install uv && python -m scripts.check.job_files        # a minute or two; uvx fetches the last two

sbatch is the installed one, or that of Debian's packages (apt-get download), and stops where it would ask a
controller: every option is parsed and checked by then. Exit code 1 if a file is wrong or a validator absent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"
PACKAGES = ("slurm-client", "slurm-wlm-basic-plugins", "libmunge2", "liblua5.1-0")
CONFIG = """ClusterName=c
SlurmctldHost=localhost
AuthType=auth/none
GresTypes=gpu
NodeName=localhost
PartitionName=p Nodes=ALL Default=YES
PluginDir={plugins}
"""
ACCEPTED = "Unable to contact slurm controller"
LOAD = "import sky, sys; print('accepted:', sky.Task.from_yaml(sys.argv[1]).name)"


def main() -> int:
    """Print what each validator says of its file, and of a faulty copy."""
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, (check, old, new) in FILES.items():
            text, faulty = (DEPLOY / name).read_text("utf-8"), Path(scratch) / name
            assert old in text, f"{name}: {old} is to be spoilt, and is not there"
            faulty.write_text(text.replace(old, new))
            right, wrong = check(DEPLOY / name, Path(scratch)), check(faulty, Path(scratch))
            failed += bool(right) or not wrong
            print(f"{'WRONG' if right else 'ok   '}  {name}", *right.splitlines()[-3:], sep="\n       ")
            print(f"       {new}: {(wrong or 'NOT REFUSED').strip().splitlines()[-1][:150]}", flush=True)
    return int(failed > 0)


def slurm(file: Path, home: Path) -> str:
    """What sbatch has against a script."""
    own, env = shutil.which("sbatch"), dict(os.environ, DATA="corpus", OUTPUT="runs/1b")
    plugins = "/usr/lib/x86_64-linux-gnu/slurm-wlm"
    if own is None:
        root = home / "slurm"
        if not root.exists():
            root.mkdir()
            printed = _printed(["apt-get", "download", *PACKAGES], root)
            for package in root.glob("*.deb"):
                _printed(["dpkg", "-x", package.name, "."], root)
            if not (root / "usr/bin/sbatch").exists():
                return f"there is no sbatch: {printed}"
        [library] = root.rglob("libslurmfull.so")
        own, plugins = str(root / "usr/bin/sbatch"), str(library.parent)
        env["LD_LIBRARY_PATH"] = f"{library.parent.parent}:{library.parent}"
    (home / "slurm.conf").write_text(CONFIG.format(plugins=plugins))
    printed = _printed([own, "--test-only", str(file)], home, env | {"SLURM_CONF": str(home / "slurm.conf")})
    return "" if ACCEPTED in printed else printed


def skypilot(file: Path, home: Path) -> str:
    """What SkyPilot has against a task."""
    printed = _printed(["uvx", "--from", "skypilot", "python", "-c", LOAD, str(file)], home)
    return "" if "accepted:" in printed else printed


def kubernetes(file: Path, home: Path) -> str:
    """What kubernetes-validate has against a job."""
    printed = _printed(["uvx", "kubernetes-validate", "--strict", str(file)], home)
    return "" if printed.startswith("0\n") else printed


def _printed(command: list[str], folder: Path, env: dict[str, str] | None = None) -> str:
    """A command's exit code on a line, then what it prints."""
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


FILES: dict[str, tuple[Callable[[Path, Path], str], str, str]] = {
    "train.sbatch": (slurm, "--signal=TERM@600", "--signal=TERMINATE@600"),
    "train.sky.yaml": (skypilot, "num_nodes: 1", "nodes: 1"),
    "train-job.yaml": (kubernetes, "backoffLimit: 20", "backOffLimit: 20"),
}


if __name__ == "__main__":
    sys.exit(main())
