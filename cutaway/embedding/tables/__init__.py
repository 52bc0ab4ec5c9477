"""Other ways to hold a row for each token than one matrix of them all; a file here is a kind.

A kind has a frozen ``Config`` with ``build(vocab, width)`` and ``weights(vocab, width)``; what it builds
maps ids [b t] to rows [b t d], and its ``weight`` [v d] is the table they would make, which a tied head
multiplies by and neighbours are looked for in.
"""
