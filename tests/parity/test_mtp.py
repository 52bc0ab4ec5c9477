"""Heads that predict further tokens: transformers' own reading of published names, at perturbed weights."""

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cutaway import gguf, native
from cutaway.generate.draft_heads import HeadProposer
from cutaway.generate.sample import History, Sampler
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.speculative import DraftedText
from cutaway.runtime.draft_heads import mtp_heads
from cutaway.runtime.engine import RuntimeEngine
from cutaway.weights import load, save
from cutaway.weights.build import decoder
from tests import llama_cpp
from tests.parity import tiny
from tests.rounding import noise

transformers = pytest.importorskip("transformers")
mtp = pytest.importorskip("transformers.modeling_layers")

FULL = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "full_attention"]}
LOCAL = {"num_hidden_layers": 3, "sliding_window": 8, "mlp_layer_types": ["sparse"] * 3}
LOCAL |= {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # how published folders name the head, and the layers
    "deepseek_v3-1": ("after", {"num_hidden_layers": 3}),
    "deepseek_v3-2": ("after", {"num_hidden_layers": 3, "n_group": 2}),  # YaRN, and all groups chosen
    "deepseek_v32-4": ("after", {"num_hidden_layers": 3}),
    "glm4_moe_lite-1": ("after", {"num_hidden_layers": 3}),
    "sarvam_mla-1": ("after", {"num_hidden_layers": 3}),
    "sarvam_moe-1": ("after", {"num_hidden_layers": 3}),
    "glm4_moe-1": ("after", {"num_hidden_layers": 4, "first_k_dense_replace": 1}),
    "mellum-1": ("apart", LOCAL),
    "qwen3_next-4": ("apart", FULL),
    "qwen3_5-4": ("apart", FULL),
    "qwen3_5_moe-1": ("apart", FULL),
}
HEADS = {"glm4_moe-1": 2}  # where there are more than one
IN_GGUF = ("glm4_moe-1", "qwen3_5-4", "deepseek_v3-1", "deepseek_v3-2", "deepseek_v32-4", "glm4_moe_lite-1")
IN_GGUF += ("sarvam_mla-1", "qwen3_next-4")
NO_LAYERS = ("deepseek_v32-4",)  # of transformers' heads, whose masks lack a kind of layer
AFTER = ("enorm", "hnorm", "eh_proj", "shared_head.norm")
APART = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")


@cache
def made(case: str, root: Path) -> tuple[Any, Any, Path]:
    """Of a model whose last layers have become the blocks of heads: transformers' two, and the folder."""
    layout, more = CASES[case]
    folder, draw = root / case, torch.Generator().manual_seed(7)
    name, own = tiny.CASES[case]
    tiny.perturbed(transformers.AutoModelForCausalLM, name, tiny.SIZES | own | more).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    count = HEADS.get(case, 1)
    width, last = config["hidden_size"], config["num_hidden_layers"] - count
    kind = config["layer_types"][-1] if config.get("layer_types") else None
    weights = load_file(folder / "model.safetensors")
    config["num_hidden_layers"] = last
    for key in ("layer_types", "mlp_layer_types"):
        if config.get(key) is not None:
            config[key] = config[key][:last]
    names = AFTER if layout == "after" else APART
    before = f"model.layers.{last}."
    prefix = before if layout == "after" else "mtp."
    if layout == "apart":
        weights = {
            k.replace(before, "mtp.layers.0.") if k.startswith(before) else k: w for k, w in weights.items()
        }
    for n, name in itertools.product(range(count), names):
        shape = (width, 2 * width) if name in ("eh_proj", "fc") else (width,)
        there = f"{prefix}{name}.weight".replace(before, f"model.layers.{last + n}.")
        weights[there] = torch.rand(shape, generator=draw) - 0.5 + 1.0 * (len(shape) == 1)
    if not case.startswith("qwen3_next"):  # whose published configs have no number
        config["mtp_num_hidden_layers" if "qwen" in case else "num_nextn_predict_layers"] = count
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    main = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    main.config.num_mtp_layers = count
    here = "|".join(str(last + n) for n in range(count))  # where published sizes have theirs elsewhere
    main._keys_to_ignore_on_load_unexpected = [r"^mtp\.", rf"layers\.({here})\."]
    main.config.mtp_layer_types = kind and [kind] * count
    main.config.mtp_mlp_layer_types = ["sparse"] * count
    return main, mtp.MtpModel.from_pretrained(main).float().eval(), folder


def expected(main: Any, head: Any, depth: int = 2) -> list[torch.Tensor]:
    """What transformers' heads give at each position: [b t d] each. The last one goes on by what it gave."""
    ids, found = tiny.IDS, []
    with torch.no_grad():
        hidden = main.model(ids).last_hidden_state
        for k in range(1, depth + 1):  # hidden states of all positions whose k-th next token is there
            hidden = hidden[:, : ids.shape[1] - k]
            pos = torch.arange(hidden.shape[1]).expand(len(ids), -1)
            n = min(k, head.num_mtp_layers) - 1
            hidden = head.forward_layer(n, hidden, pos, None, input_ids=ids[:, k:])
            found.append(hidden)
    return found


def ours(model: Any, depth: int = 2) -> list[torch.Tensor]:
    ids, found = tiny.IDS, []
    pos = torch.arange(ids.shape[1]).expand(len(ids), -1)
    with torch.no_grad():
        hidden = model.normed(model.routed(ids, pos)[0])
        for k in range(1, depth + 1):
            n, there = min(k, len(model.mtp)) - 1, ids.shape[1] - k
            hidden = model.ahead(n, ids[:, k:], hidden[:, :there], pos[:, :there])
            found.append(hidden)
    return found


@pytest.mark.parametrize("case", sorted(CASES.keys() - set(NO_LAYERS)))
def test_a_head_is_transformers(case: str, tmp_path: Path) -> None:
    main, head, folder = made(case, tmp_path)
    checkpoint = load.read_checkpoint(folder)
    assert len(checkpoint.config.mtp) == HEADS.get(case, 1)
    model = decoder(checkpoint)
    found, wanted = ours(model), expected(main, head)
    allowed = max(1e-5, 4 * noise(model, lambda: model.scored(ours(model)[-1])))
    for one, other in zip(found, wanted, strict=True):
        scores = main.lm_head(other)
        assert float((model.scored(one) - scores).detach().abs().max()) < allowed
        assert float(scores.detach().std()) > 0.1
    save.write_checkpoint(tmp_path / "saved", checkpoint)
    first, second = (load_file(at / "model.safetensors") for at in (folder, tmp_path / "saved"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert load.read_checkpoint(tmp_path / "saved").config == checkpoint.config


@pytest.mark.parametrize("case", [*IN_GGUF, "sarvam_moe-1"])
def test_heads_stay_in_gguf(case: str, tmp_path: Path) -> None:
    """As layers after the last, which llama.cpp opens; a folder of the file has them too. Where llama.cpp has
    no names, they are left out, with a note.
    """
    main, _, folder = made(case, tmp_path)
    checkpoint, path = load.read_checkpoint(folder), tmp_path / "saved.gguf"
    saved, kept = save.write_checkpoint(path, tiny.worded(checkpoint), type="F32"), case in IN_GGUF
    assert any("MTP" in note for note in saved.notes) is not kept
    back, file = load.read_checkpoint(path), gguf.read(path)
    first: Any = checkpoint.config
    layers, further = len(first.blocks), len(first.mtp) if kept else 0
    architecture = file.metadata["general.architecture"]
    assert file.metadata.get(f"{architecture}.nextn_predict_layers", 0) == further
    assert file.metadata[f"{architecture}.block_count"] == layers + further
    assert (f"blk.{layers}.nextn.eh_proj.weight" in file.tensors) is kept
    again: Any = back.config
    assert len(again.mtp) == further
    with torch.no_grad():
        expected = torch.log_softmax(main(tiny.IDS[:1]).logits[0, -1].double(), dim=-1).numpy()
    with llama_cpp.opened(path, tiny.VOCAB) as scores:
        assert np.abs(scores(tiny.IDS[0].tolist()) - expected).max() < 1e-4
    if kept:
        save.write_checkpoint(tmp_path / "again", back)
        wanted = ours(decoder(checkpoint))
        for other in (back, load.read_checkpoint(tmp_path / "again")):
            found = ours(decoder(other))
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True))


# ---- what a head reads while a text is written -----------------------------------------------------------

CLOSE = 4e-3  # the runtime keeps keys and values as halves (docs/runtime.md)
ASSISTED = (
    "deepseek_v3-1",
    "deepseek_v3-2",
    "glm4_moe-1",
    "glm4_moe_lite-1",
    "mellum-1",
)  # none of them recurrent


def transformers_drafts(main: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int], Any]]:
    """Each draft of transformers' own decoding with heads (``use_mtp``): the text, the drafted tokens, and
    their logits [k v].
    """
    found, forward = [], mtp.MtpModel.forward

    def noted(self: Any, *args: Any, **more: Any) -> Any:
        tokens, logits, loss = forward(self, *args, **more)
        found.append((more["full_input_ids"][0].tolist(), tokens[0].tolist(), logits[0].numpy()))
        return tokens, logits, loss

    monkeypatch.setattr(mtp.MtpModel, "forward", noted)
    main.generate(tiny.IDS[:1], use_mtp=True, do_sample=False, max_new_tokens=12, eos_token_id=None)
    return found


@pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))
@pytest.mark.parametrize("case", ASSISTED)
def test_a_head_drafts_from_the_state_that_transformers_gives_it(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits of every draft: so the first head reads the state after the model's last norm, and a further
    head the one after the norm of the head before it.
    """
    main, _, folder = made(case, tmp_path)
    drafts = transformers_drafts(main, monkeypatch)
    assert len(drafts) > 3
    checkpoint = load.read_checkpoint(folder)
    config: Any = checkpoint.config
    engine = RuntimeEngine(config, checkpoint.tensors, 1)
    heads = HeadProposer(mtp_heads(engine, config, checkpoint.tensors), config.vocab)
    for ids, tokens, logits in drafts:
        text = DraftedText(History(ids), Sampler(SamplingParams(temperature=0)))
        _, values = engine.observe([ids[:-1]], [engine.new_state()], heads.watches)
        heads.see(text, 0, values)
        assert heads.kind(text) is not None
        for round, wanted in enumerate(logits):
            ahead = np.array([*ids, *tokens[:round]])
            assert np.abs(heads.read([text], [ahead], round)[0] - wanted).max() < CLOSE * np.abs(wanted).max()
