"""The PyTorch model's KV cache, layer by layer; that of the CPU engine is ``runtime/kv_cache.py``.

    entries, positions = state.append({"k": k, "v": v}, pos)

Entries are named tensors [b g t e], so that every mechanism stores what it needs: mha its keys and values,
mla one latent. ``pos`` Int[b t] are absolute, -1 for padding. ``append`` returns everything that a query of
this call may need, old and new; the visibility masks the rest. A state is for inference: it takes no tensor
that needs a gradient.
"""
