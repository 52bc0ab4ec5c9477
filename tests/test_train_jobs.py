"""The job files of deploy/ for training: what they start parses, and continues a run that is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cutaway.train import config

DEPLOY = Path(__file__).parent.parent / "deploy"
FILES = ("train.sbatch", "train.sky.yaml", "train-job.yaml")


def script(name: str) -> str:
    """The shell script that a job runs."""
    text = (DEPLOY / name).read_text()
    if name == "train.sbatch":
        return text
    made = yaml.safe_load(text)
    if name == "train.sky.yaml":
        return made["run"]
    [container] = made["spec"]["template"]["spec"]["containers"]
    return container["args"][0]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("begun", [False, True])
def test_a_job_starts_torchrun_and_continues_a_run_that_is_there(
    name: str, begun: bool, tmp_path: Path
) -> None:
    """With torchrun, srun and scontrol as programs that print what they are given."""
    shell = shutil.which("bash")
    assert shell is not None
    for program, body in {"torchrun": 'echo torchrun "$@"', "srun": '"$@"', "scontrol": "echo first"}.items():
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{shell}\n{body}\n")
        path.chmod(0o755)
    home = tmp_path / "runs"
    (home / "1b").mkdir(parents=True)
    if begun:
        (home / "1b" / "run.yaml").touch()
    given = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "CONFIG": "1b", "DATA": "corpus", "OUTPUT": "1b"}
    given |= {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a"}
    given |= {"SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    text = script(name).replace("/runs/", f"{home}/")
    made = subprocess.run(
        [shell, "-c", text], cwd=home, env=given, capture_output=True, text=True, check=True
    )
    words = made.stdout.split()
    assert words[0] == "torchrun" and words[words.index("-m") + 1 :][:2] == ["cutaway", "pretrain"]
    assert ("--resume" in words) is begun and words[words.index("--nproc-per-node") + 1] == "8"
    assert words[words.index("pretrain") + 1] in config.presets() and "corpus" in words


@pytest.mark.parametrize("name", FILES)
def test_torchrun_lets_a_run_save(name: str) -> None:
    """It kills what has not ended after 30 s, unless it is given longer; the job itself has ten minutes."""
    [seconds] = re.findall(
        r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT\W+(?:value\W+)?(\d+)", (DEPLOY / name).read_text()
    )
    assert 300 <= int(seconds) < 600


def test_slurm_asks_in_time_to_save() -> None:
    asked = re.findall(r"^#SBATCH --(\S+?)=(\S+)", script("train.sbatch"), re.M)
    assert dict(asked)["signal"] == "TERM@600" and dict(asked)["ntasks-per-node"] == "1"
