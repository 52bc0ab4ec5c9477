"""The runtime's native half (native/runtime/): weights as panels, and one call that reads tokens."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.native import library
from cutaway.native.library import check, function
from cutaway.native.quant import LAYOUTS

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
TYPES += ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
# By native/runtime/vectors.hpp's numbers, and step.hpp's.
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "relu2", "gelu_sigmoid", "xielu")
NORM_KINDS = (None, "rms", "layer")
OVER = ("head", "width", "each")
PARALLEL = (None, "shared", "own")
PAGE = 128  # positions of a page of the state
PANEL = 16  # rows of a panel
LINE = 64  # bytes of a line of the caches
LACKS = 4  # native/runtime/matmul.hpp's kLacks

_POINTER, _INT, _LONG, _FLOAT, _DOUBLE = (
    ctypes.c_void_p,
    ctypes.c_int32,
    ctypes.c_int64,
    ctypes.c_float,
    ctypes.c_double,
)


class Matrix(ctypes.Structure):
    """native/runtime/matmul.hpp's Matrix."""

    _fields_ = [
        ("panels", _POINTER),
        ("bias", _POINTER),
        ("type", _INT),
        ("rows", _INT),
        ("columns", _INT),
        ("spare", _INT),
    ]


class Rotation(ctypes.Structure):
    """native/runtime/step.hpp's Rotation."""

    _fields_ = [
        *((name, _POINTER) for name in ("radians", "longer")),
        ("magnitude", _DOUBLE),
        *((name, _INT) for name in ("pairs", "interleaved")),
    ]


MATRICES = ("query", "key", "value", "out", "gate", "up", "down")
RECURRENT = ("query", "key", "value", "gate", "step", "beta", "out", "gate_up", "step_up")
RECURRENCES = (None, "short_conv", "gated_delta", "mamba2", "kda")
ROUTERS = ("router", "shared_gate")
BLOCK_NORMS = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
HEAD_NORMS = ("query_norm", "key_norm", "value_norm")


class Norm(ctypes.Structure):
    """native/runtime/step.hpp's Norm."""

    _fields_ = [("weight", _POINTER), ("bias", _POINTER), ("kind", _INT), ("eps", _FLOAT)]


class Activation(ctypes.Structure):
    """native/runtime/vectors.hpp's Activation."""

    _fields_ = [("xielu", _POINTER), ("kind", _INT), ("limit", _FLOAT)]


EXPERT = ("gate", "up", "down")


class Expert(ctypes.Structure):
    """native/runtime/step.hpp's Expert."""

    _fields_ = [(name, Matrix) for name in EXPERT]


class Mixture(ctypes.Structure):
    """native/runtime/step.hpp's Mixture."""

    _fields_ = [
        *((name, Matrix) for name in ROUTERS),
        ("experts", ctypes.POINTER(Expert)),
        ("choice_bias", _POINTER),
        *((name, _INT) for name in ("count", "top_k", "normalised", "sigmoid")),
        *((name, _INT) for name in ("groups", "top_groups", "group_of_two")),
        ("scale", _FLOAT),
    ]


class Recurrence(ctypes.Structure):
    """native/runtime/recurrence.hpp's Recurrence."""

    _fields_ = [
        *((name, Matrix) for name in RECURRENT),
        *((name, _POINTER) for name in ("conv", "conv_bias", "rate", "step_bias", "skip")),
        ("norm", Norm),
        ("state_at", _LONG),
        *((name, _INT) for name in ("kind", "heads", "groups", "key_size", "value_size", "conv_size")),
        ("norm_first", _INT),
        *((name, _FLOAT) for name in ("least", "input")),
        ("multipliers", _FLOAT * 5),
        ("spare", _FLOAT),
    ]


INDEXER = ("query", "key", "weight")


class Indexer(ctypes.Structure):
    """native/runtime/step.hpp's Indexer."""

    _fields_ = [
        *((name, Matrix) for name in INDEXER),
        ("norm", Norm),
        ("page_offset", _LONG),
        *((name, _INT) for name in ("heads", "size", "top_k")),
        *((name, _FLOAT) for name in ("scale", "weight_scale")),
        ("spare", _INT),
    ]


LATENT = ("query", "key_up", "value_up")


class Latent(ctypes.Structure):
    """native/runtime/step.hpp's Latent."""

    _fields_ = [
        ("index", Indexer),
        *((name, Matrix) for name in LATENT),
        ("query_norm", Norm),
        *((name, _INT) for name in ("size", "rope", "key_size", "value_size")),
    ]


PER_LAYER = ("gate", "out")


class PerLayerInput(ctypes.Structure):
    """native/runtime/step.hpp's PerLayerInput."""

    _fields_ = [*((name, Matrix) for name in PER_LAYER), ("norm", Norm)]


class PerLayer(ctypes.Structure):
    """native/runtime/step.hpp's PerLayer."""

    _fields_ = [
        ("projection", Matrix),
        ("table", _POINTER),
        ("norm", Norm),
        ("row", _LONG),
        *((name, _INT) for name in ("type", "size")),
        *((name, _FLOAT) for name in ("table_scale", "projection_scale", "scale")),
        ("spare", _INT),
    ]


class Layer(ctypes.Structure):
    """native/runtime/step.hpp's Layer."""

    _fields_ = [
        *((name, Matrix) for name in (*MATRICES, "output_gate")),
        *((name, Norm) for name in (*BLOCK_NORMS, *HEAD_NORMS)),
        ("mixture", Mixture),
        ("recurrence", Recurrence),
        ("latent", Latent),
        ("per_layer", PerLayerInput),
        ("difference_norm", Norm),
        ("activation", Activation),
        *((name, _POINTER) for name in ("sinks", "alibi")),
        ("page_offset", _LONG),
        ("sharpness", _DOUBLE),
        *((name, _INT) for name in ("heads", "groups", "key_size", "value_size", "window", "rotation")),
        *((name, _INT) for name in ("sharp_from", "norm_over", "norm_after", "value_of_key", "parallel")),
        *((name, _FLOAT) for name in ("scale", "softcap", "clip", "residual", "block_scale", "input")),
        *((name, _FLOAT) for name in ("output", "recurrent_output", "gate_scale", "out_scale")),
        ("cache", _INT),
        *((name, _FLOAT) for name in ("lambda_", "kept")),
        ("spare", _INT),
    ]


class Model(ctypes.Structure):
    """native/runtime/step.hpp's Model."""

    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        ("rotations", ctypes.POINTER(Rotation)),
        ("embedding", _POINTER),
        ("positions", _POINTER),
        ("embedding_norm", Norm),
        ("norm", Norm),
        ("head", Matrix),
        ("per_layer", PerLayer),
        ("embedding_row", _LONG),
        ("state_size", _LONG),
        *((name, _INT) for name in ("embedding_type", "layer_count", "rotation_count", "width", "vocab")),
        *((name, _FLOAT) for name in ("embedding_scale", "logit_scale", "softcap")),
    ]


class Change(ctypes.Structure):
    """native/runtime/step.hpp's Change."""

    _fields_ = [("b", Matrix), ("factor", _POINTER), ("at", _LONG)]


class LayerAdapter(ctypes.Structure):
    """native/runtime/step.hpp's LayerAdapter."""

    _fields_ = [
        *((name, Matrix) for name in ("heads_in", "out_in", "mlp_in", "down_in")),
        *((name, Change) for name in MATRICES),
    ]


class Value(ctypes.Structure):
    """native/runtime/step.hpp's Value."""

    _fields_ = [("out", _POINTER), ("what", _INT), ("layer", _INT)]


class Edit(ctypes.Structure):
    """native/runtime/step.hpp's Edit."""

    _fields_ = [
        *((name, _POINTER) for name in ("vector", "read")),
        ("stride", _LONG),
        *((name, _FLOAT) for name in ("strength", "factor")),
        *((name, _INT) for name in ("how", "what", "layer", "first", "last")),
        *((name, _INT) for name in ("first_unit", "last_unit", "other")),
        *((name, _INT) for name in ("first_key", "last_key", "renormalises", "spare")),
    ]


class Observation(ctypes.Structure):
    """native/runtime/step.hpp's Observation."""

    _fields_ = [("values", _POINTER), ("edits", _POINTER), ("value_count", _INT), ("edit_count", _INT)]


class Reading(ctypes.Structure):
    """native/runtime/step.hpp's Reading."""

    _fields_ = [
        *(
            (name, _POINTER)
            for name in (
                "ids",
                "starts",
                "positions",
                "pages",
                "longer",
                "states",
                "adapters",
                "logits_at",
                "after",
                "logits",
                "watched",
                "patterns",
            )
        ),
        *((name, _INT) for name in ("sequences", "logits_count", "watched_count", "spare")),
    ]


def packed_bytes(type: str, rows: int, columns: int) -> int:
    """Bytes that hold a matrix as panels: those of the file, but for a last panel that is filled up."""
    call = function("cutaway_packed_bytes", _INT, _LONG, _LONG, result=_LONG)
    return call(_number(type), rows, columns)


def pack(
    type: str,
    rows: int,
    columns: int,
    data: np.ndarray,
    out: np.ndarray,
    first_row: int = 0,
    threads: int | None = None,
) -> None:
    """Lays a matrix (uint8, as in the file) out as panels in `out`; UserError for one not finite.

    ``first_row`` is the matrix's own first row, from which the message counts.
    """
    call = function("cutaway_pack", _INT, _POINTER, _LONG, _LONG, _POINTER, _INT, result=_LONG)
    check("data", data, np.uint8)
    check("out", out, np.uint8, written=True)
    layout = LAYOUTS[type]
    if columns % layout.block or data.size != rows * (columns // layout.block) * layout.bytes:
        raise UserError(f"{data.size} bytes of {type} are not {rows} rows of {columns} values.")
    if out.size != packed_bytes(type, rows, columns):
        raise UserError(f"out has {out.size} bytes, and {packed_bytes(type, rows, columns)} are needed.")
    threads = library.threads() if threads is None else threads
    broken = call(_number(type), data.ctypes.data, rows, columns, out.ctypes.data, threads)
    if broken >= 0:
        raise UserError(f"row {first_row + broken} holds a weight that is infinite or not a number")


class Vectors(ctypes.Structure):
    """native/runtime/matmul.hpp's Vectors."""

    _fields_ = [
        *((name, _POINTER) for name in ("x", "rounded", "bf16", "q", "scale", "shift", "lacks")),
        ("width", _LONG),
        ("count", _LONG),
    ]


def multiply(
    type: str,
    rows: int,
    columns: int,
    panels: np.ndarray,
    x: np.ndarray,
    threads: int = 1,
    parallel: int | None = None,
) -> np.ndarray:
    """W x for vectors x float32 [n columns]: float32 [n rows], by the kernel that a step uses.

    ``parallel``: whose threads, as ``native.train.Workers`` has it."""
    call = function(
        "cutaway_multiply",
        *(ctypes.POINTER(Matrix), ctypes.POINTER(Vectors), _INT, _POINTER, _INT, _POINTER),
        result=None,
    )
    check("panels", panels, np.uint8)
    if panels.size != packed_bytes(type, rows, columns) or x.shape[1:] != (columns,):
        raise UserError(f"The panels or the vectors are not those of {rows} rows of {columns} values.")
    n, width = len(x), -(-columns // 32) * 32
    padded = np.ascontiguousarray(x, np.float32)
    if width != columns:
        padded = np.zeros((n, width), np.float32)
        padded[:, :columns] = x
    # The core fills what it reads, and all of ``out``: zeros would be written twice.
    narrow = (n if type == "BF16" else 0, width)
    rounded, bf16, q = (
        np.empty(narrow, np.float32),
        np.empty(narrow, np.uint16),
        np.empty((n, width), np.int8),
    )
    lacks = np.empty((n, width // 32, LACKS), np.int32)
    scale, shift = np.empty((2, n, width // 32), np.float32)
    width_out = -(-rows // PANEL) * PANEL
    out = lined(4 * n * width_out).view(np.float32).reshape(n, width_out)
    matrix = Matrix(panels.ctypes.data, None, _number(type), rows, columns, 0)
    halves = (rounded.ctypes.data, bf16.ctypes.data) if type == "BF16" else (None, None)
    others = (a.ctypes.data for a in (q, scale, shift, lacks))
    vectors = Vectors(padded.ctypes.data, *halves, *others, width, n)
    call(matrix, vectors, n, out.ctypes.data, threads, parallel)
    return out[:, :rows]


def lined(size: int) -> np.ndarray:
    """uint8 [size] that begins where a line of the caches does: a panel's rows are one line each."""
    room = np.empty(size + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first : first + size]


def products(rounds: int) -> int:
    """Makes products of bytes on this thread, nothing else, and returns how many they were."""
    return function("cutaway_products", _LONG, result=_LONG)(rounds)


def read(
    model: Model,
    ids: np.ndarray,
    starts: np.ndarray,
    positions: np.ndarray,
    pages: Sequence[np.ndarray],
    logits_at: np.ndarray,
    threads: int | None = None,
    after: np.ndarray | None = None,
    watched: Sequence[tuple[int, int, int]] = (),
    adapters: Sequence[int | None] | None = None,
    values: Sequence[tuple[int, int]] = (),
    edits: Sequence[EditOf] = (),
    states: Sequence[np.ndarray] = (),
    longer: np.ndarray | None = None,
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Reads new tokens of sequences into their pages: float32 [logits_at vocab], attention, and values.

    ``ids`` int32 [tokens], those of sequence s from ``starts[s]`` to ``starts[s + 1]``, the first at
    ``positions[s]``; ``pages[s]`` uint64 [n]: the addresses of its pages. ``after`` int32 [logits_at] names
    the layer after which the head reads, the last where it is not given (the logit lens). ``watched`` are
    a token, a layer, and 0 for weights or 1 for scores: float32 [heads position + 1] of each, or 2 for the
    positions that an indexer chose: [1 position + 1]. ``adapters``
    are each sequence's, the address of its array of ``LayerAdapter`` or None. ``values`` are pairs of a
    number (What in step.hpp) and a layer: float32 [tokens n] of each, as the ``edits`` leave it. ``states``
    float32 are each sequence's state of recurrent layers, where there are any; ``longer`` int32 [sequences]:
    whether a sequence rotates by longer radians. Raises UserError for what does not fit together."""
    call = function("cutaway_read", ctypes.POINTER(Model), ctypes.POINTER(Reading), _INT, result=_INT)
    _mirrored()
    for name, array in ("ids", ids), ("starts", starts), ("positions", positions), ("logits_at", logits_at):
        check(name, array, np.int32)
    _fits(model, ids, starts, positions, pages, logits_at)
    if longer is not None:
        check("longer", longer, np.int32)
        if longer.shape != positions.shape:
            raise UserError(f"{len(longer)} words are not one for each of {len(pages)} sequences.")
    patterns = _patterns(model, starts, positions, watched)
    if after is not None:
        check("after", after, np.int32)
        if len(after) != len(logits_at) or (
            len(after) and not 0 <= after.min() <= after.max() < model.layer_count
        ):
            raise UserError(f"The layers {after.tolist()} are not one of {model.layer_count} a logit")
    asked = np.array(watched, np.int32).reshape(-1, 3)
    drawn = np.array([each.ctypes.data for each in patterns], np.uint64)
    out = np.empty((len(logits_at), model.vocab), np.float32)
    tables = np.array([each.ctypes.data for each in pages], np.uint64)
    held = np.array([each.ctypes.data for each in states], np.uint64)
    _check_states(model, states, len(pages))
    adapted = np.array([each or 0 for each in adapters or ()], np.uint64)
    if len(adapted) not in (0, len(pages)):
        raise UserError(f"{len(adapted)} adapters are not one for each of {len(pages)} sequences.")
    given = [np.empty((len(ids), _value_size(model, *each)), np.float32) for each in values]
    rooms = (Value * len(given))(
        *(Value(room.ctypes.data, *each) for room, each in zip(given, values, strict=True))
    )
    changes = (Edit * len(edits))(*(_edit(model, len(ids), each) for each in edits))
    reading = Reading(
        *(array.ctypes.data for array in (ids, starts, positions, tables)),
        None if longer is None else longer.ctypes.data,
        held.ctypes.data,
        adapted.ctypes.data if adapted.any() else None,
        logits_at.ctypes.data,
        None if after is None else after.ctypes.data,
        *(array.ctypes.data for array in (out, asked, drawn)),
        *(len(each) for each in (pages, logits_at, asked)),
        0,
    )
    threads = library.threads() if threads is None else threads
    if values or edits:
        _mirrored("cutaway_observation_sizes", Value, Edit, Observation)
        seen = Observation(*map(ctypes.addressof, (rooms, changes)), len(values), len(edits))
        observe = function("cutaway_observe", *[_POINTER] * 3, _INT, result=_INT)
        failed = observe(*map(ctypes.addressof, (model, reading, seen)), threads)
    else:
        failed = call(model, reading, threads)
    if failed:
        raise OperationalError(f"There is no memory to read {len(ids)} tokens at once; read fewer.")
    return out, patterns, given


def _check_states(model: Model, states: Sequence[np.ndarray], sequences: int) -> None:
    """UserError unless each sequence has a state of recurrent layers, where there are any."""
    if model.state_size and len(states) != sequences:
        raise UserError(f"{len(states)} recurrent states are not those of {sequences} sequences.")
    for state in states:
        check("states", state, np.float32, written=True)
        if state.size != model.state_size:
            raise UserError(f"A recurrent state has {state.size} numbers, and {model.state_size} are needed.")


def _value_size(model: Model, what: int, layer: int) -> int:
    """Floats of a token's row of a value."""
    of = model.layers[layer] if 0 <= layer < model.layer_count else None
    if of is None or not 0 <= what < VALUES:
        raise UserError(f"There is no value {what} of layer {layer}.")
    mixed, latent = of.out.columns or of.recurrence.out.columns, of.latent
    query = of.heads * (latent.key_size + latent.rope) if latent.size else of.query.rows
    heads = query, of.key.rows, of.key.rows if of.value_of_key else of.value.rows, mixed
    experts = of.mixture.top_k * of.mixture.experts[0].up.rows if of.mixture.experts else 0
    sizes = (
        *[model.width] * 3,
        *heads,
        *[model.width] * 2,
        *heads[:2],
        model.width,
        of.up.rows,
        *[model.width] * 5,
        *[of.mixture.top_k] * 2,
        of.recurrence.heads * of.recurrence.key_size * of.recurrence.value_size,
        mixed,
        of.output_gate.rows,
        latent.size + latent.rope,
        experts,
        of.mixture.shared_gate.rows,
        model.width,
    )
    return sizes[what]


HOWS = ("move", "along", "exchange", "return")  # step.hpp's How
OUT, PATTERN = 2, 27  # step.hpp's What


class EditOf(NamedTuple):
    """A change of ``units`` of a value (step.hpp's What) of a layer, for the tokens ``first`` to ``last``, as
    step.hpp's How has it. ``vector`` float32 [units], or [tokens units]; ``read`` float32 [units]; ``other``:
    the first of the units that are exchanged with these. Of a pattern units are heads, ``vector`` is [heads
    keys] or [tokens heads keys] of the ``keys``, and ``read`` [keys] is 0 for those that stay.
    """

    what: int
    layer: int
    units: tuple[int, int]
    first: int
    last: int
    vector: np.ndarray | None = None
    strength: float = 1.0
    factor: float = 1.0
    how: str = "move"
    read: np.ndarray | None = None
    other: int = 0
    keys: tuple[int, int] = (0, 2**31 - 1)
    renormalises: bool = False


def _edit(model: Model, tokens: int, by: EditOf) -> Edit:
    pattern, (first, last) = by.what == PATTERN, by.units
    size = model.layers[by.layer].heads if pattern else _value_size(model, by.what, by.layer)
    if not 0 <= first < last <= size or not 0 <= by.first <= by.last <= tokens:
        raise UserError(f"The edit of layer {by.layer} fits neither {size} units nor the {tokens} tokens.")
    count, stride = last - first, 0
    for name, given in ("vector", by.vector), ("read", by.read):
        if given is not None:
            check(name, given, np.float32)
    row = (count, by.keys[1] - by.keys[0]) if pattern else (count,)
    if by.vector is not None and by.vector.ndim > len(row):
        stride = math.prod(row)
    shape = (by.last - by.first, *row) if stride else row
    if by.vector is not None and by.vector.shape != shape:
        raise UserError(f"The edit of layer {by.layer} has no vector of {count} numbers, one or one a token.")
    if by.how == "along" and (by.vector is None or by.read is None or by.read.shape != (count,)):
        raise UserError(f"The edit of layer {by.layer} needs two vectors of {count} numbers.")
    if pattern and (by.how not in ("move", "exchange") or not 0 <= by.keys[0] < by.keys[1]):
        raise UserError(f"The edit of layer {by.layer} fits no attention weights.")
    if pattern and by.read is not None and by.read.shape != (by.keys[1] - by.keys[0],):
        raise UserError(f"The edit of layer {by.layer} does not say of {by.keys} which keys change.")
    if by.how == "exchange" and not (0 <= by.other <= size - count and abs(by.other - first) >= count):
        raise UserError(f"The edit of layer {by.layer} exchanges {count} units with none of {size}.")
    if by.how == "return" and (by.what != OUT or count != size):
        raise UserError(f"The edit of layer {by.layer} returns to another value than a layer's input.")
    addresses = (None if given is None else given.ctypes.data for given in (by.vector, by.read))
    how = stride, by.strength, by.factor, HOWS.index(by.how)
    where = by.what, by.layer, by.first, by.last, first, last, by.other
    return Edit(*addresses, *how, *where, *by.keys, by.renormalises, 0)


class OneToken:
    """``read`` of one token of one text with structures made once; for one thread at a time."""

    def __init__(
        self,
        model: Model,
        threads: int | None = None,
        adapter: int | None = None,
        state: np.ndarray | None = None,
    ) -> None:
        self._call = function(
            "cutaway_read", ctypes.POINTER(Model), ctypes.POINTER(Reading), _INT, result=_INT
        )
        _mirrored()
        self._model, self._vocab = model, model.vocab
        self._threads = library.threads() if threads is None else threads
        self._id, self._position, self._logits_count, self._table = _INT(), _INT(), _INT(0), _POINTER()
        self._starts = (_INT * 2)(0, 1)
        _check_states(model, [] if state is None else [state], 1)
        self._adapter, self._state = _POINTER(adapter), _POINTER(None if state is None else state.ctypes.data)
        self.longer = _INT(0)
        held = (self._id, self._starts, self._position, self._table, self.longer, self._state)
        places = map(ctypes.addressof, held)
        beside = None if adapter is None else ctypes.addressof(self._adapter)
        count = ctypes.addressof(self._logits_count)
        self._reading = Reading(*places, beside, count, None, None, None, None, 1, 1, 0, 0)

    def read(self, id: int, position: int, pages: np.ndarray) -> np.ndarray:
        """float32 [vocab]: the logits after ``id`` at ``position``; ``pages`` as ``read`` takes them."""
        if not 0 <= id < self._vocab:
            raise UserError(f"An id is outside the model's 0 to {self._vocab - 1}.")
        if position < 0 or len(pages) * PAGE <= position:
            raise UserError(f"{len(pages)} pages do not hold position {position}.")
        check("pages", pages, np.uint64)
        out = np.empty(self._vocab, np.float32)
        self._id.value, self._position.value, self._table.value = id, position, pages.ctypes.data
        self._reading.logits = out.ctypes.data
        if self._call(self._model, self._reading, self._threads):
            raise OperationalError("There is no memory to read a token.")
        return out


def _patterns(
    model: Model, starts: np.ndarray, positions: np.ndarray, watched: Sequence[tuple[int, int, int]]
) -> list[np.ndarray]:
    """Room for the attention of each watched token and layer."""
    rooms = []
    for token, layer, which in watched:
        if not (0 <= token < starts[-1] and 0 <= layer < model.layer_count):
            raise UserError(f"There is no token {token} and layer {layer} to watch.")
        sequence = int(np.searchsorted(starts, token, side="right")) - 1
        length = int(positions[sequence]) + token - int(starts[sequence]) + 1
        rooms.append(np.empty((1 if which == 2 else model.layers[layer].heads, length), np.float32))
    return rooms


def _fits(
    model: Model,
    ids: np.ndarray,
    starts: np.ndarray,
    positions: np.ndarray,
    pages: Sequence[np.ndarray],
    logits_at: np.ndarray,
) -> None:
    counts = starts[1:] - starts[:-1]
    if not len(ids) or len(pages) != len(positions) or len(starts) != len(pages) + 1:
        raise UserError("Each sequence needs at least one new token, its first position and its pages.")
    if starts[0] != 0 or starts[-1] != len(ids) or (counts < 1).any():
        raise UserError(f"The starts {starts.tolist()} do not divide {len(ids)} tokens.")
    if ids.min() < 0 or ids.max() >= model.vocab:
        raise UserError(f"An id is outside the model's 0 to {model.vocab - 1}.")
    if len(logits_at) and (logits_at.min() < 0 or logits_at.max() >= len(ids)):
        raise UserError(f"Logits are asked for of a token outside the {len(ids)} that are read.")
    for count, position, own in zip(counts.tolist(), positions.tolist(), pages, strict=True):
        check("pages", own, np.uint64)
        if position < 0 or len(own) * PAGE < position + count:
            raise UserError(f"{len(own)} pages do not hold positions {position} to {position + count - 1}.")


def _number(type: str) -> int:
    if type not in TYPES:
        raise UserError(f"The runtime has no kernel for weights of type {type}; it has {', '.join(TYPES)}.")
    return LAYOUTS[type].id


VALUES = PATTERN  # that a reading can write out: What in step.hpp
MODEL = (Matrix, Rotation, Layer, Model, Reading, Expert, LayerAdapter)


@cache
def _mirrored(sizes: str = "cutaway_runtime_sizes", *structures: type[ctypes.Structure]) -> None:
    """That the structures here, the model's and a reading's by default, are laid out as the compiler's."""
    ours = [ctypes.sizeof(each) for each in structures or MODEL]
    theirs = (ctypes.c_int64 * len(ours))()
    function(sizes, ctypes.c_void_p)(theirs)
    if list(theirs) != ours:
        raise OperationalError(
            f"The core's structures have {list(theirs)} bytes, ctypes' {ours}; install again"
        )
