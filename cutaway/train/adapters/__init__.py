"""Adapters, trained beside a frozen model: one file each, its formula in the docstring. The folder is the
registry.

An adapter is a ``Config`` with ``attach(model)``, which freezes the model and puts the adapter's modules
around its matrices, and ``changes(model)``, which are the trained changes by our names of weights
(``weights/adapters.py`` reads and writes them).
"""
