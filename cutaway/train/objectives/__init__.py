"""The objectives of training: one file each, its formula in the docstring. The folder is the registry.

An objective is a ``Config``, which inherits ``common.objective.Objective``.
"""
