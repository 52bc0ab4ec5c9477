"""Every key of encoders' config.json, changed, against transformers: refused, or with transformers' vectors.

The suite has the families with keys of their own; ``CUTAWAY_ALL_ENCODERS=1`` has the first case of each.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway.errors import UserError
from cutaway.quantization import formats
from cutaway.weights import load, safetensors
from tests.parity.test_config_keys import EXTRA, changes
from tests.parity.test_encoders import CASES, auto, made, ours, theirs

OWN = ("albert-2", "gte-1", "deberta_v2-2")
# ESM's number of heads is also in the shape of a head that is not read.
FIRST = tuple(case for case in CASES if case.endswith("-1") and not case.startswith("esm"))
SAME = ("init", "drop", "label", "use_cache", "classifier", "pooler")  # keys of training and of heads
MORE: list[dict[str, Any]] = [
    {"position_embedding_type": "relative_key"},
    {"position_embedding_type": "rotary"},
    {"embedding_size": 24},
    {"type_vocab_size": 0},
    {"is_decoder": True},
    {"is_causal": True},
    {"layer_norm_eps": 0.1},
    {"hidden_act": "gelu_python"},
    {"rope_theta": 50.0},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"num_hidden_groups": 2},
    {"relative_attention": True, "pos_att_type": "c2p"},
    {"max_relative_positions": 7},
    {"position_buckets": 6},
    {"norm_rel_ebd": "layer_norm"},
    {"share_att_key": True},
    {"talking_head": True},
    {"conv_kernel_size": 3},
    {"conv_groups": 2},
    {"use_task_id": True},
    {"token_dropout": True},
    {"emb_layer_norm_before": True},
    {"rotary_value": True},
    {"q_groups": 1},
    {"pad_token_id": 3},
    {"n_layer": 1},
    {"rotary_emb_base": 50},
]
BUFFERS = ("pooler", "embed_positions", "contact_head", "inv_freq")


def judged(case: str, folder: Path, known: dict[str, Any]) -> Any:
    """Transformers' vectors, or None where it refuses or draws a weight at random."""
    from transformers import AutoConfig

    try:
        read = repr(vars(AutoConfig.from_pretrained(folder)))
        if read not in known:
            model, info = auto(case).from_pretrained(
                folder, attn_implementation="eager", output_loading_info=True
            )
            missing = [key for key in info["missing_keys"] if not any(word in key for word in BUFFERS)]
            known[read] = None if missing else theirs(model.eval())
        return known[read]
    except Exception:  # whatever transformers raises for a config that it does not read
        return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", FIRST if os.environ.get("CUTAWAY_ALL_ENCODERS") else OWN)
def test_each_key_is_that_of_transformers_or_refused(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made(case).save_pretrained(folder)
    base = json.loads((folder / "config.json").read_text())
    plain = load.read_checkpoint(folder)
    expected, read, known = ours(plain), 0, {}
    for change in (*changes(base), *MORE):
        if change in EXTRA or any(word in key for key in change for word in SAME):
            continue
        data = {key: value for key, value in (base | change).items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(data))
        try:
            found = load.read_checkpoint(folder)
            vectors = expected if found.config == plain.config else ours(found)
        except UserError:
            continue
        read += 1
        wanted = judged(case, folder, known)
        if wanted is None:
            same = replace(found.config, context=plain.config.context)  # RoFormer's has a table of its length
            assert same == plain.config, f"{change} is refused by transformers"
        else:
            assert torch.allclose(vectors, wanted, rtol=0, atol=1e-5), f"{change} is read otherwise"
    assert read > 10
    shutil.rmtree(folder)


def test_a_head_size_may_be_stated_where_it_is_the_one_that_it_is(tmp_path: Path) -> None:
    made("deberta_v2-1").save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    size = data["hidden_size"] // data["num_attention_heads"]
    config = load.read_checkpoint(tmp_path).config
    (tmp_path / "config.json").write_text(json.dumps(data | {"attention_head_size": size}))
    assert load.read_checkpoint(tmp_path).config == config
    (tmp_path / "config.json").write_text(json.dumps(data | {"attention_head_size": size + 1}))
    with pytest.raises(UserError, match=f"attention_head_size is {size + 1}: another size of heads than"):
        load.read_checkpoint(tmp_path)


def test_the_file_that_is_read_beside_shards_is_named(tmp_path: Path) -> None:
    made("deberta_v2-1").save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / safetensors.INDEX).exists()
    safetensors.write_safetensors(
        tmp_path / safetensors.SINGLE, {"stale": formats.pack(np.zeros(2, np.float32), "F32")}
    )
    with pytest.raises(
        UserError, match=f"both {safetensors.SINGLE} and {safetensors.INDEX} are there, and the"
    ):
        load.read_checkpoint(tmp_path)
