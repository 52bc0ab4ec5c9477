"""Families of models: one file each, and the folder is the registry.

A file is named as the ``model_type`` of its configs and holds ``FAMILY`` (``weights/family.py``); it imports
no torch. ``ALIASES``, a tuple of plain words on a line of its own, holds the other names in config.json and
GGUF files. The line is read without importing the file, so that only the family of a model is imported.
"""
