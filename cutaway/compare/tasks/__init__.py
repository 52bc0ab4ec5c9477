"""What compared models learn: one file a task, with its rows, its metric, its chance level and its source.

A task's ``Config`` has ``vocab``, ``context``, ``chance`` and ``row(random)``: ids [context + 1], and which
of the targets ids[1:] are scored [context]. Accuracy and loss are over scored targets alone.
"""
