"""The one way into the compiled core (native/, C++): a file here for each of its topics, over `library`."""

from cutaway.native.library import available, isa, threads, unavailable_reason
from cutaway.native.quant import LAYOUTS, fit, unpack

__all__ = ["LAYOUTS", "available", "fit", "isa", "threads", "unpack", "unavailable_reason"]
