"""What training minimises: one file an objective, its formula in the docstring. The folder is the registry.

An objective is a ``Config`` with ``loss(trainable, batch)``, which returns the weighted sum of the losses
and sums to report, and ``report(sums, weight)``, which turns those sums into figures for the log.
"""
