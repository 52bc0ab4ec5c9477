"""The legend of every shape in Cutaway: the letters that signatures use, and the types that carry them.

b batch        t query position    s key position     d model width
h query heads  g key-value heads   k key size         v value size (in logits: vocabulary)
f MLP width    n number of rows    ... any leading axes

A signature such as ``Float[Tensor, "b h t k"]`` is checked at run time by the tests (jaxtyping and beartype)
and costs nothing elsewhere: without jaxtyping, which only the tests install, it is ``Tensor``.
"""

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING or importlib.util.find_spec("jaxtyping"):
    from jaxtyping import Bool, Float, Int
else:

    class Float:
        """The type of an array in a signature, without its shape."""

        def __class_getitem__(cls, of: tuple[type, str]) -> type:
            return of[0]

    Bool = Int = Float

__all__ = ["Bool", "Float", "Int"]
