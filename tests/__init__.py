"""Cutaway's tests, and what checks signatures in them: beartype, to which an int is a float (PEP 484)."""

import importlib.util

if importlib.util.find_spec("beartype") is not None:
    from beartype import BeartypeConf, beartype

    checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
