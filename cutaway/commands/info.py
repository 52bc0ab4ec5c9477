"""`cutaway info MODEL`: the model's card, read from its files; no weight is unpacked."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, SupportsIndex

from cutaway import store
from cutaway.commands import plots
from cutaway.commands.console import model_path, print_json, say, size
from cutaway.commands.options import Force, Json, Strict, Svg
from cutaway.commands.options import Model as ModelOption
from cutaway.errors import UserError, escaped
from cutaway.gguf import Packed
from cutaway.model.config import Decoder, Encoder, EncoderDecoder, Model
from cutaway.model.kinds import kind_of
from cutaway.quantization.mixes import MIXES
from cutaway.store.reading import parsed
from cutaway.weights import adapters, described, load, peft_names
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Absorbed
from cutaway.weights.retype import FILE_TYPES

CACHE_ENTRY_BYTES = 2  # the runtime keeps keys and values as halves
BF16_BYTES = 2
FLOAT_BYTES = 4  # the PyTorch model keeps them as floats


def info(
    model: ModelOption = "smollm2",
    *,
    strict: Strict = False,
    svg: Svg = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Print a model's card: family, sizes, parameters, context, weight types, tokenizer, template, memory.

    **Examples:**

    cutaway info

    cutaway info my-model.gguf --json

    cutaway info config.json

    cutaway info smollm2 --svg drawings
    """
    plots.check(None, svg, force)
    path = model_path(model)
    description = described.read_description(path, strict) if described.can(path) else None
    if description is not None and (description.refused or description.stored is None):
        found, config = sketch(model, path, description), description.config
    else:
        folder = path if description is None else description.source
        checkpoint = load.read_checkpoint(folder, strict)
        found, config = card(model, folder, checkpoint) | _packing(description), checkpoint.config
    if svg is not None:
        plots.write_svg(svg, _blocks(model, config))
    if as_json:
        print_json(found)
        return
    for name, text in _lines(found).items():
        say(f"{name:<14}{escaped(text)}", indent=14)


def _blocks(name: str, config: Model | None) -> dict[str, str]:
    """A drawing of each kind of block that the model has, by the first layer that is one."""
    from cutaway.inspect import block_diagram

    kinds = {block: n for n, block in reversed(list(enumerate(getattr(config, "blocks", ()))))}
    layers = sorted(kinds.values()) or [0]
    return {f"block-{n}": block_diagram.drawn(config, f"Block {n} of {name}", n) for n in layers}


def card(name: str, path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """A model's facts from its files, for people and programs."""
    config, shapes = checkpoint.config, checkpoint.config.weights()
    types, stored, tensors = Counter[str](), 0, checkpoint.tensors
    adapter = None
    while isinstance(tensors, adapters.AdaptedTensors):  # changes beside the base's packed weights
        adapter, tensors = adapter or tensors.adapter, tensors.base
    for weight in shapes:
        entry = tensors.later(weight)
        kept = entry.stored if isinstance(entry, Absorbed) else entry
        types[kept.type] += math.prod(shapes[weight])
        stored += kept.data.nbytes if isinstance(kept, Packed) else kept.nbytes
    named = store.NAMES.get(name)
    found: dict[str, Any] = {
        "model": name,
        "path": str(path),
        "family": checkpoint.family or "none: Cutaway's own config",
        **_shape(config),
        "weight_types": dict(types.most_common()),
        "weight_bytes": stored,
        "mix": _mix(checkpoint),
        "adapter": None if adapter is None else _adapter(checkpoint.source, adapter),
        "tokenizer": None,
        "tokens": None,
        "chat_template": checkpoint.chat_template is not None,
        "licence": named.licence if named else checkpoint.metadata.get("general.license"),
    }
    if checkpoint.read_tokenizer is not None:
        tokenizer = checkpoint.tokenizer
        found |= {"tokenizer": type(tokenizer.plain.model).__name__, "tokens": len(tokenizer)}
    if checkpoint.left_out:
        found["left_out"] = list(checkpoint.left_out)
    if isinstance(config, Decoder):
        from cutaway.runtime.supported import unsupported_reason

        found["pytorch_only"] = unsupported_reason(config, checkpoint.tensors)
    elif isinstance(config, Encoder):
        from cutaway.runtime.encoder import unsupported_reason

        found["pytorch_only"] = unsupported_reason(config, checkpoint.tensors)
    return found | _memory(config, stored)


def sketch(name: str, path: Path, description: described.Description) -> dict[str, Any]:
    """The card of a model whose weights are not here, or that is not loaded: what its config says."""
    found: dict[str, Any] = {
        "model": name,
        "path": str(path),
        "family": description.family or f"none: {description.named}",
    }
    found |= {"kind": None, "layers": None, "width": None, "query_heads": None, "kv_heads": None}
    found |= {"latent": None, "head_dim": None, "mlp_width": None, "vocabulary": None, "context": None}
    found |= {"parameters": None} | dict(description.sizes)
    if description.config is not None:
        found |= _shape(description.config) | _memory(
            description.config, BF16_BYTES * _parameters(description.config)
        )
    found |= {"weight_types": {}, "weight_bytes": description.stored or 0, "mix": None, "adapter": None}
    tokenizer = {"tokenizer": None, "tokens": None}
    if description.read_tokenizer is not None:
        with suppress(UserError):
            read = description.read_tokenizer()
            tokenizer = {"tokenizer": type(read.plain.model).__name__, "tokens": len(read)}
    found |= {**tokenizer, "chat_template": description.chat_template is not None}
    found |= {"licence": description.metadata.get("general.license"), "quantized": description.quantized}
    return found | {"not_loaded": description.refused or _weightless(description.source)}


def _weightless(folder: Path) -> str:
    """Why a folder without safetensors is not loaded."""
    if any(next(folder.glob(pattern), None) for pattern in load.PICKLES):
        return "its weights are pickles, which can run code and are never opened"
    return "there are no weights beside its config"


def _packing(description: described.Description | None) -> dict[str, str]:
    """How a folder's weights are packed in its files."""
    return {"quantized": description.quantized} if description is not None and description.quantized else {}


def _parameters(config: Model) -> int:
    return sum(map(math.prod, config.weights().values()))


def _shape(config: Model) -> dict[str, Any]:
    """The sizes of a model."""
    mixers = [block.attention for block in config.blocks]
    # Where layers differ, the first whose cache grows, as that of attention.
    attention = next((of for of in mixers if of.bytes_per_token(FLOAT_BYTES)), mixers[0])
    found: dict[str, Any] = {
        "kind": _kind(config),
        "layers": len(config.layers if isinstance(config, Encoder) else config.blocks),
        "width": config.width,
        "query_heads": getattr(attention, "heads", None),
        "kv_heads": getattr(attention, "groups", None),
        "latent": attention.latent + attention.rope_dim if kind_of(attention) in ("mla", "dsa") else None,
        "head_dim": getattr(attention, "key_size", None),
        "mlp_width": getattr(config.blocks[0].mlp, "hidden", None),
        "vocabulary": config.vocab,
        "context": config.context,
        "parameters": _parameters(config),
    }
    if isinstance(config, EncoderDecoder):
        found |= {
            "encoder_layers": len(config.encoder.blocks),
            "decoder_layers": len(config.decoder.blocks),
            "source_vocabulary": config.encoder.vocab,
            "pytorch_only": "encoder-decoders have no kernels",
        }
    return found


def _memory(config: Model, weights: int) -> dict[str, Any]:
    """The memory of a text beside weights of so many bytes."""
    if isinstance(config, EncoderDecoder):
        return {
            "kv_cache_bytes_per_token": config.bytes_per_token(FLOAT_BYTES),
            "kv_cache_bytes_per_source_token": config.bytes_per_source_token(FLOAT_BYTES),
        }
    if not isinstance(config, Decoder):
        return {}
    per_token = config.bytes_per_token(CACHE_ENTRY_BYTES)
    state = config.state_bytes(FLOAT_BYTES)  # in the runtime too
    return {
        "kv_cache_bytes_per_token": per_token,
        "recurrent_state_bytes": state,
        "memory_bytes": {
            "empty": weights,
            "2,048 tokens": weights + state + per_token * min(2048, config.context),
            "whole context": weights + state + per_token * config.context,
        },
    }


def _adapter(path: Path, adapter: adapters.Adapter) -> dict[str, Any]:
    """What a run's folder adds to its base."""
    low_rank = [change for change in adapter.values() if isinstance(change, adapters.LowRank)]
    return {
        "kind": "IA3" if not low_rank else "LoRA" if low_rank[0].magnitude is None else "DoRA",
        "ranks": sorted({len(change.a) for change in low_rank}),
        "base": parsed(path / adapters.CONFIG)["base_model_name_or_path"],
        "matrices": len(adapter),
        "bytes": (path / peft_names.WEIGHTS).stat().st_size,
    }


def _kind(config: Model) -> str:
    """The kind of a model in words."""
    if isinstance(config, EncoderDecoder):
        return "encoder-decoder"
    return "decoder" if isinstance(config, Decoder) else "encoder"


def _mix(checkpoint: Checkpoint) -> str | None:
    """llama.cpp's name of a GGUF file's mix of types, or its number where the name is not known."""
    number = checkpoint.metadata.get("general.file_type")
    if not isinstance(number, SupportsIndex):
        return None
    names = {number: name for name, number in FILE_TYPES.items()}
    names |= {mix.file_type: name for name, mix in MIXES.items()}
    return names.get(int(number), f"file type {number}")


def _layers(card: dict[str, Any]) -> str:
    """How many there are, in both halves of an encoder-decoder."""
    if "encoder_layers" in card:
        return f"{card['encoder_layers']} and {card['decoder_layers']}"
    return str(card["layers"])


def _shown(adapter: dict[str, Any]) -> str:
    rank = f" of rank {' and '.join(map(str, adapter['ranks']))}" if adapter["ranks"] else ""
    matrices = f"{adapter['matrices']} matrices, {size(adapter['bytes'])}"
    return f"{adapter['kind']}{rank} on {matrices}, beside {adapter['base']}"


def _lines(card: dict[str, Any]) -> dict[str, str]:
    whole = card["parameters"] or 0
    heads = f", {card['query_heads']} query and {card['kv_heads']} key-value heads"
    if card["kv_heads"] is None:  # a recurrence alone
        heads = f", {card['query_heads']} heads" if card["query_heads"] != 1 else ""
    heads += f" of {card['head_dim']}" if card["head_dim"] else ""
    if card["latent"]:
        heads = f", {card['query_heads']} heads of {card['head_dim']} over latents of {card['latent']}"
    types = ", ".join(f"{type} {100 * n / whole:.1f}%" for type, n in card["weight_types"].items())
    tokenizer = f"{card['tokenizer']}, {card['tokens']:,} tokens" if card["tokenizer"] else "none"
    lines = {"model": f"{card['model']} ({card['path']})", "family": card["family"]}
    if "not_loaded" in card:
        lines["not loaded"] = card["not_loaded"]
    if card["layers"] and card["width"]:
        lines["architecture"] = (
            f"{card['kind'] or 'a model'}, {_layers(card)} layers of width {card['width']}"
            + (heads if card["query_heads"] else "")
            + (f", MLP width {card['mlp_width']}" if card["mlp_width"] else "")
        )
    lines |= {
        "parameters": f"{whole:,}" if whole else "not known",
        "weights": f"{size(card['weight_bytes'])}{f': {types}' if types else ''}"
        if card["weight_bytes"] or "not_loaded" not in card
        else "none here",
        **({"quantized": card["quantized"]} if card.get("quantized") else {}),
        **({"adapter": _shown(card["adapter"])} if card["adapter"] else {}),
        **({"mix": card["mix"]} if card["mix"] else {}),
        "vocabulary": f"{card['vocabulary'] or 0:,} (tokenizer: {tokenizer})",
        "context": f"{card['context'] or 0:,} tokens",
        "chat template": "yes" if card["chat_template"] else "no",
        "licence": card["licence"] or "not stated in its files",
    }
    if "left_out" in card:
        lines["left out"] = ", ".join(card["left_out"])
    if card.get("pytorch_only"):
        lines["engine"] = f"the PyTorch model alone: in the runtime {card['pytorch_only']}"
    if "kv_cache_bytes_per_source_token" in card:
        own, source = card["kv_cache_bytes_per_token"], card["kv_cache_bytes_per_source_token"]
        lines["KV cache"] = f"{size(own)} per token of the target, {size(source)} per token of the source"
    if "memory_bytes" in card:
        memory = card["memory_bytes"]
        per_token, state = card["kv_cache_bytes_per_token"], card["recurrent_state_bytes"]
        if per_token or not state:
            lines["KV cache"] = f"{size(per_token)} per token"
        if state:
            lines["state"] = f"{size(state)} of the recurrent layers, however long the text is"
        lines["memory"] = (
            f"{size(memory['2,048 tokens'])} with 2,048 tokens, "
            f"{size(memory['whole context'])} with the whole context"
            + (", in BF16" if "not_loaded" in card else "")
        )
    return lines
