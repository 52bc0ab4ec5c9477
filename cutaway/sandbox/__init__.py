"""Python code of a model, in a process that may do little: the kernel's own layers, no interpreter's tricks.

    outcome = sandbox.run("print(6 * 7)")
    outcome.output, outcome.error, outcome.ended, outcome.layers

Code runs where every layer holds, and is refused elsewhere with what is missing; ``unsafe=True`` runs it with
what is there.

    namespaces    a root of its own, in which the machine's files, processes and network are not there; by
                  bubblewrap where it is installed, else by ``namespaces.py``
    limits        memory, processor time, files, threads, by rlimits (``inside.py``)
    privileges    no capability, nothing gained by a set-uid program (``inside.py``)
    landlock      files: Python's own to read, the working folder to write (``inside.py``)
    seccomp       the system calls that ``policy.py`` lists, with the arguments that it lists
    meter         memory, threads and disk of all its processes, measured from outside (``meter.py``)

``starters.py`` says how the process starts. ``launcher.py`` runs it, reads at most ``output`` bytes, waits at
most ``seconds``, and leaves nothing behind.
"""

from cutaway.sandbox.launcher import LAYERS, OPEN, Bounds, Ended, Outcome, Process, run

__all__ = ["LAYERS", "OPEN", "Bounds", "Ended", "Outcome", "Process", "run"]
