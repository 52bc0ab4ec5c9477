"""Attention: one file a mechanism, and the folder is the registry: ``attention/local.py`` is ``kind: local``.

A file's docstring explains the mechanism; ``cutaway attention`` prints its summary. The file states its
``COST`` (``common/cost.py``) and, where it has options without a default, what is ``USUAL``. Its ``Config``
is a frozen dataclass with

``module``              where the torch module is whose forward is the equation; ``build`` makes it
``weights(width)``      the shape of each weight by name, known before anything is allocated
``state()``             an empty KV cache or recurrent state for one batch (``state/``)
``bytes_per_token(n)``  the cache bytes of a token, for entries of n bytes

These files import no torch, because the CPU runtime, the weight loader and the commands read them too. A new
mechanism is one new file: the registry, configs, laws and commands find it by its name. Where its forward is
more than softmax attention over heads, its torch module is in ``modules/`` under the same name, which its
``Config`` names (``cutaway/building.py``).

``common/`` has what mechanisms share, ``state/`` what they keep of a text, ``backends/`` the ways to compute
softmax attention.
"""
