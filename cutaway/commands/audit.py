"""`cutaway audit`: what is wrong with a model's files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cutaway.commands import console
from cutaway.commands.options import Json, Model
from cutaway.errors import OperationalError, UserError, escaped

FailOn = Literal["high", "medium", "low", "never"]


def audit(
    model: Model = "smollm2",
    /,
    *,
    trusted: str | None = None,
    public_key: Path | None = None,
    fail_on: FailOn = "high",
    as_json: Json = False,
) -> None:
    """Look for what is wrong with a model's files: pickles and code, templates, tokens, signature, weights.

    Exit code 0 says that no finding is high (--fail-on), 1 that one is. No weight is run. Every chat template
    is rendered with neutral conversations and with its own constants as messages: text that it writes because
    of a message's words is shown.

    **Examples:**

    cutaway audit smollm2

    cutaway audit downloaded.gguf --trusted smollm2 --json

    cutaway audit folder --public-key author.pub

    cutaway audit folder --fail-on medium

    :param trusted: A copy to compare with: templates, tokens, weights by layer.
    :param public_key: A PEM file: verify the signed manifest (model.sig, or NAME.sig beside the model). Exit
        code 1 where it does not hold, or does not name every file.
    :param fail_on: Exit code 1 where a finding is of this severity or above; "never" looks for none.
    """
    from cutaway.security import audit as auditing

    path = console.model_path(model)
    if public_key is not None and not public_key.is_file():
        raise UserError(f"{public_key}: does not exist: --public-key is a PEM file")
    found = auditing.audit(path, None if trusted is None else console.model_path(trusted), public_key)
    if as_json:
        console.print_json(auditing.document(model, found))
    else:
        for issue in found:
            print(f"{issue.severity:<7}{escaped(issue.where)}: {escaped(issue.what)}")
        console.note(
            f"{len(found)} findings, {sum(issue.severity == 'high' for issue in found)} of them high."
        )
    if public_key is not None and auditing.refused(found):
        raise OperationalError(f"{model} is not what the owner of {public_key} signed: see the findings")
    grave = [] if fail_on == "never" else auditing.from_severity(found, fail_on)
    if grave:
        raise OperationalError(
            f"{model}: {len(grave)} of its findings {'is' if len(grave) == 1 else 'are'} {fail_on}"
            + ("" if fail_on == "high" else " or above")
            + " (--fail-on says which ones count)"
        )
