"""The check of the files around the package: they are there, and a validator that fails is not silent."""

import shlex

from scripts.check import release_files


def test_every_file_is_there_and_every_kind_is_checked() -> None:
    named = {word for command in release_files.COMMANDS for word in shlex.split(command) if "/" in word}
    files = {word for word in named if not word.startswith("@")} | {"CITATION.cff", ".pre-commit-config.yaml"}
    assert len(files) > 8 and not [name for name in files if not (release_files.ROOT / name).exists()]
    forms = {path.name for path in (release_files.ROOT / ".github" / "ISSUE_TEMPLATE").iterdir()}
    assert forms == {name.rpartition("/")[2] for name in files if "ISSUE_TEMPLATE" in name}


def test_a_validator_that_fails_or_is_absent_is_reported() -> None:
    assert release_files.wrong("true") == ""
    assert release_files.wrong("false") == "exit code 1"
    assert release_files.wrong("sh -c 'echo line 3 >&2; exit 2'") == "line 3"
    assert "no-such-validator" in release_files.wrong("no-such-validator deploy/Dockerfile")
