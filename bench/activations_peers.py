"""A peer that writes one layer's residual stream, in its own process: for bench/activations.py.

    python bench/activations_peers.py transformers|transformer_lens MODEL THREADS

Loads the folder MODEL (Hugging Face's layout), prints its version, and for each line of standard input, a
JSON object of ``pieces`` (ids) and a ``folder``, writes the rows of every piece as float16 and prints the
seconds on the clock and of processors. Each does the least that it can: pieces of like length in batches, no
layer after the one that is kept, no logits. "transformers bfloat16" computes in bfloat16.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

LAYER, BATCH = 15, 4
Read = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids and mask [b t]: residual stream [b t d]


def transformers(folder: Path, dtype: torch.dtype) -> tuple[str, Read]:
    """A forward hook on the layer, in a model whose later layers are taken out."""
    import transformers as peer

    model: Any = peer.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).model.eval()
    del model.layers[LAYER + 1 :]
    kept: list[torch.Tensor] = []
    model.layers[LAYER].register_forward_hook(
        lambda _module, _inputs, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )

    def read(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        kept.clear()
        model(ids, attention_mask=mask, use_cache=False)
        return kept[0]

    return f"transformers {peer.__version__}, {dtype}", read


def transformer_lens(folder: Path, dtype: torch.dtype) -> tuple[str, Read]:
    """``run_with_cache`` of one name, which stops after its layer."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model, name = lens_model(hf, dtype), f"blocks.{LAYER}.hook_resid_post"

    def read(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        _, cache = model.run_with_cache(
            ids, attention_mask=mask, names_filter=name, stop_at_layer=LAYER + 1, return_type=None
        )
        return cache[name]

    return f"transformer-lens {version('transformer-lens')}, {dtype}", read


def lens_model(hf: Any, dtype: torch.dtype) -> Any:
    """TransformerLens's model of a Llama of transformers, the norms' weights folded as it folds them."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights

    of = hf.config
    config = HookedTransformerConfig(
        n_layers=of.num_hidden_layers,
        d_model=of.hidden_size,
        n_ctx=of.max_position_embeddings,
        d_head=of.hidden_size // of.num_attention_heads,
        n_heads=of.num_attention_heads,
        n_key_value_heads=of.num_key_value_heads,
        d_mlp=of.intermediate_size,
        d_vocab=of.vocab_size,
        act_fn=of.hidden_act,
        eps=of.rms_norm_eps,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=of.hidden_size // of.num_attention_heads,
        rotary_base=int(of.rope_parameters["rope_theta"]),
        rotary_adjacent_pairs=False,
        final_rms=True,
        gated_mlp=True,
        original_architecture="LlamaForCausalLM",
        dtype=dtype,
        device="cpu",
    )
    model = HookedTransformer(config)
    weights = convert_llama_weights(hf.to(dtype), config)
    model.load_and_process_state_dict(weights, center_writing_weights=False, center_unembed=False)
    return model.eval()


@torch.no_grad()
def written(read: Read, pieces: Sequence[Sequence[int]], folder: Path) -> None:
    """Writes every piece's rows, of like lengths together, padded at their ends."""
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
    rows: dict[int, np.ndarray] = {}
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        longest = len(pieces[some[-1]])
        ids, mask = torch.zeros(len(some), longest, dtype=torch.long), torch.zeros(len(some), longest)
        for row, i in enumerate(some):
            ids[row, : len(pieces[i])] = torch.tensor(pieces[i])
            mask[row, : len(pieces[i])] = 1
        values = read(ids, mask.long())
        for row, i in enumerate(some):
            rows[i] = values[row, : len(pieces[i])].half().numpy()
    folder.mkdir(exist_ok=True)
    np.save(folder / "rows.npy", np.concatenate([rows[i] for i in range(len(pieces))]))


def main() -> None:
    name, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    peer, _, dtype = name.partition(" ")
    makers = {"transformers": transformers, "transformer_lens": transformer_lens}
    version, read = makers[peer](Path(folder), getattr(torch, dtype or "float32"))
    written(read, [list(range(100, 100 + 64))] * BATCH, Path(folder) / "warm")
    print(version, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        begun = time.perf_counter(), time.process_time()
        written(read, asked["pieces"], Path(asked["folder"]))
        print(time.perf_counter() - begun[0], time.process_time() - begun[1], flush=True)


if __name__ == "__main__":
    main()
