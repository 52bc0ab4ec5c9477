"""Questions that programs write and answer: the folder is the registry, a file a program.

    programs:arithmetic        a task of `cutaway eval` and of `cutaway finetune grpo`

A program draws an item from random numbers, and solves the question from its text alone (``solve``), so that
each answer is checked by other code than wrote it. What decides an answer, the item's ``facts``, decides by
its hash whether it is held out: no fact of a held-out question is in one to train on, however it is phrased.
"""
