"""Watermarks: a secret key chooses among likely tokens, so that who has the key can tell the text later.

One file a scheme; ``parse("kgw:SECRET")`` finds it. Each token is chosen with one hash for every id of the
vocabulary, keyed by the secret and the ``context`` ids before it:

    hash(id) = mix(BLAKE2b(key, last ids) + id)        uint64; mix is splitmix64's finalizer

A context that was drawn from before is left unmarked, since the same hashes would choose the same token
again and the text would run in circles; detection counts every context once for the same reason. Detection
needs the tokenizer and the key, not the model. Its null hypothesis, "this text has nothing to do with this
key", is sampled exactly: other keys score the same text, each as a fresh seed for every distinct context.
"""

from cutaway.generate.watermark.scheme import Detection, Watermark, detect, parse

__all__ = ["Detection", "Watermark", "detect", "parse"]
