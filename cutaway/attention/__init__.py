"""Attention: one file a mechanism, and the folder is the registry: ``attention/local.py`` is ``kind: local``.

A mechanism's ``Config`` is a frozen dataclass that imports no torch, so that the CPU engine can read it too.
It has

``build(width)``        the torch module whose forward is the mechanism's equation
``weights(width)``      the shape of each weight by name, so that a file is checked before anything is made
``state()``             an empty memory for one sequence or batch, see ``parts/state.py``
``bytes_per_token(n)``  what that memory costs a token, for entries of n bytes

The file opens with the mechanism's story, whose first paragraph is told by ``cutaway attention``, and states
its ``COST`` (``parts/cost.py``) and, where it has options that must be chosen, what is ``USUAL``.
"""
