"""The course: nine chapters (docs/course/), and exercises that are checked on the reader's own machine.

A chapter is a file here, ``chapter_6.py``, with a ``TITLE``, a ``QUESTION`` and its ``EXERCISES``; its text
is in docs/course. ``exercise.py`` says what an exercise is and judges an answer, ``attempt.py`` runs the
reader's file in a process of its own, ``folder.py`` writes stubs and keeps progress.
"""
