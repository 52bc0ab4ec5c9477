"""The legend of every shape in Cutaway: the letters that signatures use, and the types that carry them.

b batch        t query position    s key position     d model width
h query heads  g key-value heads   k key size         v value size (in logits: vocabulary)
f MLP width    n number of rows    ... any leading axes

A signature such as ``Float[Tensor, "b h t k"]`` is checked at run time by the tests (jaxtyping and beartype)
and costs nothing elsewhere.
"""

from jaxtyping import Bool, Float, Int

__all__ = ["Bool", "Float", "Int"]
