"""`cutaway sae ...`: sparse dictionaries of kept activations: trained, checked, looked into, written anew."""

from cyclopts import App

from cutaway.commands.sae.train import sae as train

VERBS = {
    "check": ("check:check", "Replace activations by what it writes, and see what the model's loss becomes."),
    "features": ("features:features", "Show its features: texts, effects on logits, labels; or search them."),
    "convert": ("convert:convert", "Write it as SAELens's, circuit-tracer's or Cutaway's folder."),
}

sae = App(name="sae", version_flags=())
sae.default(train)
for _name, (_place, _about) in VERBS.items():
    sae.command(f"cutaway.commands.sae.{_place}", name=_name, help=_about)
