"""What training minimises: one file an objective, its formula in the docstring. The folder is the registry.

An objective is a ``Config``, which inherits ``common.objective.Objective``.
"""
