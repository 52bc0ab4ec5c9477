"""Folders whose weights are quantised, as transformers and vLLM open them: one file a method.

``of_config`` says how a folder is quantised, from its config alone; ``Method.joined`` is its weights. Each is
read into its exact values, and made when it is asked for, one at a time.
"""
