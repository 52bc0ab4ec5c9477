"""`cutaway course ...`: nine chapters with exercises that are checked here."""

from cyclopts import App

VERBS = {
    "list": ("verbs:list_", "The chapters, their exercises, and how far you are."),
    "start": ("verbs:start", "Write the files of a chapter's exercises."),
    "check": ("verbs:check", "Judge your answer to an exercise, with a hint where it is wrong."),
}
HELP = """Learn how a large language model works, by writing its parts: nine chapters, read in docs/course.

An exercise is a function in a file of yours. It is checked on hidden inputs, on this machine, without a
network; where it is wrong a hint names the fault.
"""
EXAMPLES = """**Examples:**

cutaway course list

cutaway course start 6

cutaway course check 6.1
"""

course = App(name="course", help=f"{HELP}\n\n{EXAMPLES}", version_flags=())
for _name, (_place, _about) in VERBS.items():
    course.command(f"cutaway.commands.course.{_place}", name=_name, help=_about)
