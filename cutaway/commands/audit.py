"""`cutaway audit`: what is wrong with a model's files."""

from __future__ import annotations

from cutaway.commands import console
from cutaway.commands.options import Json, Model
from cutaway.errors import escaped


def audit(model: Model = "smollm2", /, *, trusted: str | None = None, as_json: Json = False) -> None:
    """Look for what is wrong with a model's files: pickles and code, templates, tokenizer, changed weights.

    No weight is run. Every chat template is rendered with neutral conversations and with its own constants as
    messages: text that it writes because of a message's words is shown.

    **Examples:**

    cutaway audit smollm2

    cutaway audit downloaded.gguf --trusted smollm2 --json

    :param trusted: A copy to compare with: templates, tokens, weights by layer.
    """
    from cutaway.security import audit as auditing

    path = console.model_path(model)
    found = auditing.audit(path, None if trusted is None else console.model_path(trusted))
    if as_json:
        console.print_json(auditing.document(model, found))
        return
    for issue in found:
        print(f"{issue.severity:<7}{escaped(issue.where)}: {escaped(issue.what)}")
    console.note(f"{len(found)} findings, {sum(issue.severity == 'high' for issue in found)} of them high.")
