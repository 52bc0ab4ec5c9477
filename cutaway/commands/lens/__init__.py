"""`cutaway lens ...`: Jacobian lenses: fitted to a model, shown, merged, written in other formats."""

from cyclopts import App

VERBS = {
    "fit": ("fit:fit", "Fit a Jacobian lens to a model, from texts."),
    "show": ("show:show", "Say how a lens was fitted, or what it shows of a text."),
    "merge": ("write:merge", "Join fits of other texts into one lens."),
    "convert": ("write:convert", "Write a lens as the published .pt, in half precision, or in 8 bits."),
}
HELP = """Which words a layer moves a model towards: Jacobian lenses, fitted and read."""
EXAMPLES = """**Examples:**

cutaway lens fit smollm2 --texts novels/ --output lens.safetensors

cutaway lens show lens.safetensors "The currency of the country shaped like a boot is the"
"""

lens = App(name="lens", help=f"{HELP}\n\n{EXAMPLES}", version_flags=())
for _name, (_place, _about) in VERBS.items():
    lens.command(f"cutaway.commands.lens.{_place}", name=_name, help=_about)
