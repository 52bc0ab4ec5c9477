"""The security laboratory: attacks on a user's own model that end in numbers, and the defences measured.

A probe is a file of ``probes/`` and its name is the file's. It has one function,

    run(lm, *, seed, budget, progress) -> list[Finding]

where ``seed`` decides every random choice, ``budget`` says how much the attacker may try (``Budget``), and
``progress(done, total)`` reports how far it is. A probe that trains models says ``TRAINS = True``: it runs
when it is named, and keeps its runs in ``budget.folder``, so that one that was stopped goes on. Canaries are
invented words; success is an exact match, no judge. A finding states what it measured beside its control,
with 95% intervals: what did not separate is a finding too.
"""
