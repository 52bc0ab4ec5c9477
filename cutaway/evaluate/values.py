"""Plain values as one line of JSON, types kept: what may pass between code under test and its judge.

    decode(encode((1, [2.0, {"a"}]))) == (1, [2.0, {"a"}])

Values are None, booleans, numbers, texts, bytes, and lists, tuples, sets and dictionaries of them; a subclass
becomes the plain value. Anything else raises TypeError: an object could bring its own ``==``. The module
imports the standard library alone: ``code_eval.py`` puts this source into both processes.
"""

import json

TAGS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: object) -> str:
    """The value as a line. TypeError for one that is not plain."""
    return json.dumps(_tagged(value), ensure_ascii=True)


def decode(line: str | bytes) -> object:
    """The value of a line. ValueError, TypeError or RecursionError for a line that is none."""
    return _value(json.loads(line))


def _tagged(value: object) -> object:
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return ["int", int.__format__(value, "x")]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return [("bytes" if isinstance(value, bytes) else "bytearray"), value.hex()]
    if isinstance(value, dict):
        return ["dict", *([_tagged(key), _tagged(each)] for key, each in dict.items(value))]
    for tag, kind in TAGS.items():
        if isinstance(value, kind):
            return [tag, *(_tagged(each) for each in kind.__iter__(value))]
    raise TypeError(f"{type(value).__name__} is no plain value")


def _value(tagged: object) -> object:
    if tagged is None or tagged is True or tagged is False or isinstance(tagged, str):
        return tagged
    if not isinstance(tagged, list) or not tagged:
        raise ValueError("it is no value")
    tag, *parts = tagged
    match tag, parts:
        case "int", [str(digits)]:
            return int(digits, 16)
        case "float", [str(digits)]:
            return float.fromhex(digits)
        case "complex", [str(real), str(imaginary)]:
            return complex(float.fromhex(real), float.fromhex(imaginary))
        case "bytes", [str(digits)]:
            return bytes.fromhex(digits)
        case "bytearray", [str(digits)]:
            return bytearray.fromhex(digits)
        case "dict", _:
            return {_value(key): _value(each) for key, each in parts}
        case str(), _ if tag in TAGS:
            return TAGS[tag](_value(each) for each in parts)
    raise ValueError("it is no value")
