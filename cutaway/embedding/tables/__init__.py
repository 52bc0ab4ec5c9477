"""Other ways to hold a row for each token than one matrix of them all; a file here is a kind.

A kind has a frozen ``Config`` with ``build(vocab, width)`` and ``weights(vocab, width)``. The module that it
builds maps ids [b t] to rows [b t d]. Its ``weight`` [v d] is the whole table, for a tied head and for the
search of neighbours.
"""
