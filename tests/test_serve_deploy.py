"""The examples of deploy/ and the text about serving name options, variables and paths that there are."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from cutaway.commands.serve_options import GROUPS, Operation

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
OPTIONS = {f"--{one.name.replace('_', '-')}" for group in GROUPS for one in dataclasses.fields(group)}
OPTIONS |= {"--config", "--print-config"}


@pytest.mark.parametrize("name", ["cutaway.service", "Dockerfile", "compose.yaml"])
def test_options_and_variables_are_there(name: str) -> None:
    text = (DEPLOY / name).read_text()
    begun = re.findall(r"cutaway serve[^\n]*|cutaway\", \"serve\"[^\n]*|CUTAWAY_OPTIONS=\S*[^\n]*", text)
    assert name == "compose.yaml" or begun
    assert {option for line in begun for option in re.findall(r"--[a-z-]+", line)} <= OPTIONS
    code = "".join(path.read_text() for path in (ROOT / "cutaway").rglob("*.py"))
    used = set(re.findall(r"\bCUTAWAY_[A-Z_]+", text)) - {
        "CUTAWAY_OPTIONS",
        "CUTAWAY_MEMORY",
    }  # deploy/'s own
    assert used and all(variable in code for variable in used)


@pytest.mark.parametrize("page", ["serving.md", "operations.md"])
def test_the_text_names_options_that_there_are(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    named = set(re.findall(r"`[^`\n]*?(--[a-z-]+)[^`\n]*`", text))
    assert "--drain" in named and named <= OPTIONS
    for block in re.findall(r"```yaml\n# cutaway serve.*?\n(.*?)```", text, re.S):
        assert {f"--{name}" for name in yaml.safe_load(block)} <= OPTIONS | {"--models"}


def test_what_the_image_is_built_of_is_there_and_enough() -> None:
    listed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in listed if line.startswith("!")}
    assert "*" in listed and all((ROOT / name).exists() for name in kept)
    project = (ROOT / "pyproject.toml").read_text()
    assert {"pyproject.toml", "CMakeLists.txt", "native", "cutaway"} <= kept
    assert all(
        name in kept for name in re.findall(r'^(?:readme = |license-files = \[)"([^"]+)"', project, re.M)
    )


def test_the_composition_fits_together() -> None:
    made = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services, server = made["services"], made["services"]["cutaway"]
    docker = DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]
    assert docker.samefile(DEPLOY / "Dockerfile")
    port = re.search(r"^EXPOSE (\d+)", docker.read_text(), re.M)
    assert port is not None and services["webui"]["environment"]["OPENAI_API_BASE_URL"].endswith(
        f":{port[1]}/v1"
    )
    drain = Operation().drain
    assert int(server["stop_grace_period"].removesuffix("s")) > drain
    unit = re.search(r"^TimeoutStopSec=(\d+)", (DEPLOY / "cutaway.service").read_text(), re.M)
    assert unit is not None and int(unit[1]) > drain
    mounted = {volume.partition(":")[0] for one in services.values() for volume in one["volumes"]}
    assert mounted == set(made["volumes"])


def test_memory_processes_and_images_can_be_limited_and_pinned() -> None:
    made = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    assert all({"mem_limit", "pids_limit"} <= set(service) for service in made)
    unit = (DEPLOY / "cutaway.service").read_text()
    assert re.search(r"^MemoryMax=", unit, re.M) and re.search(r"^TasksMax=", unit, re.M)
    pinned = r"\$\{[A-Z]+_IMAGE(:-[^}]+)?\}"
    images = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.M)
    images += [service["image"] for service in made if "image" in service]
    assert len(images) == 3 and all(re.fullmatch(pinned, image) for image in images)
