"""The structures of a model and of one step, as ctypes: native/runtime/step.hpp, field by field."""

import ctypes
from functools import cache

from cutaway.errors import OperationalError
from cutaway.native.library import function
from cutaway.native.packed_product import Matrix

# By native/runtime/vectors.hpp's numbers, and step.hpp's.
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "relu2", "gelu_sigmoid", "xielu")
NORM_KINDS = (None, "rms", "layer")
OVER = ("head", "width", "each")
PARALLEL = (None, "shared", "own")
# The names of matrices and norms, in the order of the fields.
MATRICES = ("query", "key", "value", "out", "gate", "up", "down")
EXPERT = ("gate", "up", "down")
ROUTERS = ("router", "shared_gate")
RECURRENT = ("query", "key", "value", "gate", "step", "beta", "out", "gate_up", "step_up")
INDEXER = ("query", "key", "weight")
LATENT = ("query", "key_up", "value_up")
PER_LAYER = ("gate", "out")
RECURRENCES = (None, "short_conv", "gated_delta", "mamba2", "kda")
BLOCK_NORMS = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
HEAD_NORMS = ("query_norm", "key_norm", "value_norm")

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_FLOAT, _DOUBLE = ctypes.c_float, ctypes.c_double


class Rotation(ctypes.Structure):
    """native/runtime/step.hpp's Rotation."""

    _fields_ = [
        *((name, _POINTER) for name in ("radians", "longer")),
        ("magnitude", _DOUBLE),
        *((name, _INT) for name in ("pairs", "interleaved")),
    ]


class Norm(ctypes.Structure):
    """native/runtime/step.hpp's Norm."""

    _fields_ = [("weight", _POINTER), ("bias", _POINTER), ("kind", _INT), ("eps", _FLOAT)]


class Activation(ctypes.Structure):
    """native/runtime/vectors.hpp's Activation."""

    _fields_ = [("xielu", _POINTER), ("kind", _INT), ("limit", _FLOAT)]


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


class Latent(ctypes.Structure):
    """native/runtime/step.hpp's Latent."""

    _fields_ = [
        ("index", Indexer),
        *((name, Matrix) for name in LATENT),
        ("query_norm", Norm),
        *((name, _INT) for name in ("size", "rope", "key_size", "value_size")),
    ]


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


MODEL = (Matrix, Rotation, Layer, Model, Reading, Expert, LayerAdapter)


@cache
def check_sizes(sizes: str = "cutaway_runtime_sizes", *structures: type[ctypes.Structure]) -> None:
    """OperationalError unless structures, a model's and a step's by default, have the compiler's sizes."""
    ours = [ctypes.sizeof(each) for each in structures or MODEL]
    theirs = (ctypes.c_int64 * len(ours))()
    function(sizes, ctypes.c_void_p)(theirs)
    if list(theirs) != ours:
        raise OperationalError(
            f"The core's structures have {list(theirs)} bytes, ctypes' {ours}; install again"
        )
