"""The evaluation tasks: one file each, with its data, its prompts, its scorer and its chance level.

The folder is the registry. A task's file has ``task(limit)``, or ``task(name, limit)`` where a name follows
after a colon. Questions have choices, whose likelihood decides; exercises have an answer
that the model writes and a program checks; tool exercises have a right call, or none. Data come from pinned
packages of the package index, fetched once.
"""
