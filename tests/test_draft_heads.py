"""Heads on hidden states: MTP heads are the PyTorch model's, EAGLE-3 heads those of the published equations,
and the text that they draft is the one without them, to the bit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import cutaway
from cutaway import native
from cutaway.errors import UserError
from cutaway.generate.batch.many_prompts import answer_all
from cutaway.generate.batch.request import Request
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.decode import finish, generate
from cutaway.generate.draft_heads import HeadProposer
from cutaway.generate.sample import History, Sampler
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Session
from cutaway.generate.speculative import DraftedText, Drafting, PromptLookup
from cutaway.lm import LanguageModel
from cutaway.model.config import Decoder
from cutaway.runtime.draft_heads import DraftHead, EagleHead, mtp_heads
from cutaway.runtime.engine import RuntimeEngine
from cutaway.weights import eagle3, family_registry, load, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors
from tests import test_runtime as tiny
from tests.small import model_file
from tests.test_serve_engine import Words, some_jobs
from tests.test_speculative import Always, shown

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
CLOSE = 4e-3  # the runtime keeps keys and values as halves (docs/runtime.md)
IDS = tiny.IDS[:70]


def with_head(name: str, layers: int = 3) -> Decoder:
    """A tiny model whose head has the block of its first or second layer, the first that attends."""
    of = tiny.config(name)
    attends = [block for block in of.blocks if not hasattr(block.attention, "conv")]
    return replace(of, mtp=(attends[0],), blocks=(of.blocks * 2)[:layers])


def read_in_parts(head: DraftHead, ids: list[int], hidden: np.ndarray, cuts: list[int]) -> Any:
    state, found = head.new_state(), []
    for first, last in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        found.append(head.read([(ids[first:last], hidden[first:last])], [state]))
    return found


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "qwen3-next", "deepseek-v3", "qwen2"])
def test_an_mtp_head_is_the_definitions(name: str):
    """After any cut, and after its own hidden states in place of the model's."""
    of = with_head(name)
    entries = tiny.tensors(of)
    engine, model = RuntimeEngine(of, entries, 1), tiny.definition(of, entries).model
    _, values = engine.observe([IDS], [engine.new_state()], ["norm"])
    (head,) = mtp_heads(engine, of, entries)
    (ids, hidden), first = (IDS[1:], head.hidden(head.seen(values))[:-1]), None
    for cuts in ([], [1, 7, 69 - 5]):
        logits, last = read_in_parts(head, ids, hidden, cuts)[-1]
        assert first is None or np.array_equal(first, logits), "how pairs are cut changes nothing"
        first = logits
        pos = torch.arange(len(ids))[None]
        with torch.no_grad():
            given = model.ahead(0, torch.tensor([ids]), torch.tensor(hidden)[None], pos)
            scores = model.scored(given)[0, -1].numpy()
        assert np.abs(logits[0] - scores).max() < CLOSE * np.abs(scores).max()
        assert np.abs(last[-1] - given[0, -1].numpy()).max() < CLOSE * float(given.abs().max())
        assert np.abs(scores).max() > 0.1


# ---- several heads -----------------------------------------------------------------------------------------


def of_heads(chained: bool) -> tuple[Decoder, dict[str, np.ndarray]]:
    """A model with three heads that attend alike and have weights of their own, and its weights."""
    of = tiny.config("llama")
    of = replace(of, mtp=of.blocks[:1] * 3, mtp_chained=chained)
    return of, {name: tiny.formats.unpack(tiny.tensors(of)[name]) for name in of.weights()}


def published(of: Decoder, w: dict[str, np.ndarray], ids: list[int], h: np.ndarray) -> np.ndarray:
    """The logits of the next token by DeepSeek-V3's equations 21 to 25 (2412.19437), in float64: of ids,
    which are a text and its drafts, and of the model's hidden states h [t - 1 d] of a text of t ids.

    Head k reads at position i what the head before it, or the model, has there and the embedding of token
    i + k. Past the last head, that one reads on: its own hidden state in place of the model's.
    """
    w = {name: value.astype(np.float64) for name, value in w.items()}
    of_head: Any = of.mtp[0].attention
    groups, size = of_head.kv_heads, of_head.key_size

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]

    def rotated(x: np.ndarray) -> np.ndarray:
        angles = np.arange(len(x))[:, None, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate(
            [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
        )

    def block(x: np.ndarray, path: str) -> np.ndarray:
        y, t = norm(x, f"{path}.attention_norm"), len(x)
        q, k, v = (y @ w[f"{path}.attention.{name}.weight"].T for name in ("query", "key", "value"))
        q, k, v = (
            rotated(q.reshape(t, -1, size)),
            rotated(k.reshape(t, groups, size)),
            v.reshape(t, groups, size),
        )
        mixed = np.empty_like(q)
        for n in range(q.shape[1]):
            group = n // (q.shape[1] // groups)
            scores = np.where(np.tri(t) > 0, q[:, n] @ k[:, group].T / np.sqrt(size), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, n] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
        x = x + mixed.reshape(t, -1) @ w[f"{path}.attention.out.weight"].T
        y = norm(x, f"{path}.mlp_norm")
        gate = y @ w[f"{path}.mlp.gate.weight"].T
        up = y @ w[f"{path}.mlp.up.weight"].T
        return x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{path}.mlp.down.weight"].T

    def head(k: int, tokens: list[int], hidden: np.ndarray) -> np.ndarray:
        path, embedded = f"mtp.{k}", w["embedding.weight"][tokens]
        pairs = np.concatenate(
            [norm(embedded, f"{path}.embedding_norm"), norm(hidden, f"{path}.hidden_norm")], 1
        )
        return norm(block(pairs @ w[f"{path}.join.weight"].T, f"{path}.block"), f"{path}.norm")

    given = read = h.astype(np.float64)
    for round in range(len(ids) - len(h)):
        k = min(round, len(of.mtp) - 1)
        if round > k:
            read = np.concatenate([read, given[-1:]])
        else:
            read = given if of.mtp_chained else h.astype(np.float64)
        given = head(k, ids[k + 1 : k + 1 + len(read)], read)
    return w["embedding.weight"] @ given[-1]


@pytest.mark.parametrize("chained", [True, False])
def test_further_heads_are_the_published_equations(chained: bool, monkeypatch: pytest.MonkeyPatch):
    """At every draft of a text that grows by accepted and rejected tokens, however it was caught up with; and
    heads in another order are not.
    """
    monkeypatch.setattr("cutaway.generate.draft_heads.CATCH_UP", 16)
    of, w = of_heads(chained)
    entries = tiny.tensors(of)
    engine = RuntimeEngine(of, entries, 1)
    heads = mtp_heads(engine, of, entries)
    draw, ids = np.random.default_rng(5), list(IDS)
    _, values = engine.observe([ids], [engine.new_state()], ["norm"])
    assert drafted_off(HeadProposer(heads, 101), of, w, ids, values["norm"], draw) < CLOSE
    wrong = HeadProposer([heads[0], heads[2], heads[1]], 101)
    assert drafted_off(wrong, of, w, ids, values["norm"], draw) > 0.1


def drafted_off(
    made: HeadProposer, of: Decoder, w: Any, ids: list[int], hidden: np.ndarray, draw: np.random.Generator
) -> float:
    """How far the logits of all drafts are off those of the equations, at most, as a share of these."""
    history = History(ids[:40])
    text, off, at, drafts = DraftedText(history, Sampler(SamplingParams(temperature=0))), 0.0, 0, 0
    while len(history.ids) < len(ids):
        known = len(history.ids)
        rejected = draw.normal(size=(drafts, of.width)).astype(np.float32)  # hidden states of wrong drafts
        made.see(text, at, {"norm": np.concatenate([hidden[at : known - 1], rejected])})
        at, drafts = known - 1, 0
        for _ in range(10):
            ready = made.kind(text) is not None
        assert ready, "it is caught up with"
        if known % 3:  # in some steps nothing is drafted
            ahead = list(history.ids)
            for round in range(drafts := 1 + known % 5):
                logits = made.read([text], [np.array(ahead)], round)[0]
                wanted = published(of, w, ahead, hidden[: known - 1])
                off = max(off, np.abs(logits - wanted).max() / np.abs(wanted).max())
                ahead.append(int(logits.argmax()))
        for id in ids[known : known + 1 + known % 4]:
            history.append(id)
    return off


MIMO = {"model_type": "mimo_v2_flash", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
MIMO |= {"num_key_value_heads": 2, "intermediate_size": 48, "moe_intermediate_size": 24, "vocab_size": 101}
MIMO |= {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 24,
    "v_head_dim": 16,
    "sliding_window": 8,
}


def test_a_model_has_as_many_heads_as_its_file(tmp_path: Path):
    """MiMo's config.json does not say how many."""
    of: Any = family_registry.get("mimo_v2_flash").read(Fields(dict(MIMO), "config.json"))
    assert len(of.mtp) == 3 and not of.mtp_chained
    checkpoint = Checkpoint(of, tiny.tensors(of), "mimo_v2_flash", tmp_path)
    save.write_checkpoint(tmp_path / "three", checkpoint)
    back = load.read_checkpoint(tmp_path / "three")
    assert back.config == of
    path = tmp_path / "three" / "model.safetensors"
    weights = load_file(path)
    del weights["model.mtp.layers.1.enorm.weight"]
    save_file(weights, path)
    assert load.read_checkpoint(tmp_path / "three").config == replace(of, mtp=of.mtp[:1])


# ---- EAGLE-3 -----------------------------------------------------------------------------------------------

WIDTH, SCORED, HEADS, GROUPS, SIZE, HIDDEN = 50, 60, 6, 2, 10, 40
PLAIN = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": SIZE,
    "num_hidden_layers": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "vocab_size": 101,
    "rope_theta": 500.0,
}


def drawn(prefix: str, own_table: bool, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    shapes = {
        f"{prefix}self_attn.q_proj.weight": (HEADS * SIZE, 2 * WIDTH),
        f"{prefix}self_attn.k_proj.weight": (GROUPS * SIZE, 2 * WIDTH),
        f"{prefix}self_attn.v_proj.weight": (GROUPS * SIZE, 2 * WIDTH),
        f"{prefix}self_attn.o_proj.weight": (WIDTH, HEADS * SIZE),
        f"{prefix}mlp.gate_proj.weight": (HIDDEN, WIDTH),
        f"{prefix}mlp.up_proj.weight": (HIDDEN, WIDTH),
        f"{prefix}mlp.down_proj.weight": (WIDTH, HIDDEN),
        "fc.weight": (WIDTH, 3 * WIDTH),
        "lm_head.weight": (SCORED, WIDTH),
    }
    norms = ("input_layernorm", "hidden_norm", "post_attention_layernorm")
    shapes |= {f"{prefix}{name}.weight": (WIDTH,) for name in norms} | {"norm.weight": (WIDTH,)}
    shapes |= {"embed_tokens.weight": (101, WIDTH)} if own_table else {}
    weights = {
        name: (draw.normal(size=shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.3)).astype(np.float32)
        + np.float32(len(shape) == 1)
        for name, shape in shapes.items()
    }
    chosen = np.sort(draw.choice(101, SCORED, replace=False))
    t2d = np.zeros(101, bool)
    t2d[chosen] = True
    return weights | {"d2t": chosen - np.arange(SCORED), "t2d": t2d}


def folder_of(root: Path, form: str) -> tuple[Path, dict[str, np.ndarray]]:
    """A head in SafeAILab's format, or in that of speculators, whose stream is normed and table its own."""
    folder = root / form
    folder.mkdir()
    if form == "speculators":
        layer = {key: value for key, value in PLAIN.items() if key != "architectures"}
        config = {"architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3"}
        config |= {"draft_vocab_size": SCORED, "norm_before_residual": True, "target_hidden_size": None}
        config |= {"eagle_aux_hidden_state_layer_ids": [0, 2, 4], "transformer_layer_config": layer}
    else:
        config = PLAIN | {"draft_vocab_size": SCORED}
    (folder / "config.json").write_text(json.dumps(config))
    weights = drawn("layers.0." if form == "speculators" else "midlayer.", form == "speculators")
    if form == "pickle":
        tensors = {name: torch.tensor(value) for name, value in weights.items() if name != "t2d"}
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")
    return folder, {name.replace("layers.0.", "midlayer."): value for name, value in weights.items()}


def naive(w: dict[str, np.ndarray], table: np.ndarray, ids: list[int], stream: Any, normed: bool) -> Any:
    """The published equations in float64, token by token: logits and hidden states of each."""
    w = {name.removeprefix("midlayer."): value.astype(np.float64) for name, value in w.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean() + 1e-5) * w[f"{name}.weight"]

    def rotated(x: np.ndarray, at: int) -> np.ndarray:
        angles = at * 500.0 ** (-np.arange(0, SIZE, 2) / SIZE)
        a, b = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    keys, values, logits, hidden = [], [], [], []
    for at, (id, h) in enumerate(zip(ids, stream.astype(np.float64), strict=True)):
        read = np.concatenate([norm(table[id].astype(np.float64), "input_layernorm"), norm(h, "hidden_norm")])
        residual = norm(h, "hidden_norm") if normed else h
        q = rotated((w["self_attn.q_proj.weight"] @ read).reshape(HEADS, SIZE), at)
        keys.append(rotated((w["self_attn.k_proj.weight"] @ read).reshape(GROUPS, SIZE), at))
        values.append((w["self_attn.v_proj.weight"] @ read).reshape(GROUPS, SIZE))
        mixed = []
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            scores = np.array([q[head] @ key[group] for key in keys]) / np.sqrt(SIZE)
            weights = np.exp(scores - scores.max())
            mixed.append(weights / weights.sum() @ np.array([value[group] for value in values]))
        x = residual + w["self_attn.o_proj.weight"] @ np.concatenate(mixed)
        y = norm(x, "post_attention_layernorm")
        gate = w["mlp.gate_proj.weight"] @ y
        x = x + w["mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * (w["mlp.up_proj.weight"] @ y))
        hidden.append(x)
        logits.append(w["lm_head.weight"] @ norm(x, "norm"))
    return np.array(logits), np.array(hidden)


def target(layers: int = 6) -> tuple[Decoder, Any]:
    of = tiny.config("llama")
    of = replace(of, blocks=(of.blocks * 2)[:layers])
    return of, tiny.tensors(of)


@pytest.mark.parametrize("form", ["safeailab", "pickle", "speculators"])
def test_an_eagle3_head_is_the_published_equations(form: str, tmp_path: Path):
    folder, weights = folder_of(tmp_path, form)
    of, entries = target()
    engine = RuntimeEngine(of, entries, 1)
    assert eagle3.is_head(folder)
    head = EagleHead(engine, of, entries, eagle3.read(folder))
    own = form == "speculators"
    layers = ("embed", "blocks.1.out", "blocks.3.out") if own else [f"blocks.{n}.out" for n in (1, 2, 2)]
    assert head.watches == tuple(layers)
    _, values = engine.observe([IDS], [engine.new_state()], head.watches)
    stream = np.concatenate([values[name] for name in head.watches], axis=1).astype(np.float64)
    stream = stream @ weights["fc.weight"].astype(np.float64).T
    hidden = head.hidden(head.seen(values))
    assert np.allclose(hidden, stream, atol=1e-4)
    table = weights["embed_tokens.weight"] if own else tiny.formats.unpack(entries["embedding.weight"])
    logits, given = naive(weights, table, IDS[1:], stream[:-1], own)
    for cuts in ([], [1, 30]):
        found, last = read_in_parts(head, IDS[1:], hidden[:-1], cuts)[-1]
        assert np.abs(found[0] - logits[-1]).max() < CLOSE * np.abs(logits).max()
        assert np.abs(last[-1] - given[-1]).max() < CLOSE * np.abs(given).max()
    assert head.ids is not None and np.array_equal(head.ids, np.arange(SCORED) + weights["d2t"])


# ---- drafting ----------------------------------------------------------------------------------------------


def proposer(kind: str, root: Path) -> tuple[RuntimeEngine, HeadProposer]:
    """A model, and what drafts for it by a head: mostly wrong, as all weights are random."""
    if kind == "eagle3":
        of, entries = target()
        engine = RuntimeEngine(of, entries, 1)
        head: DraftHead = EagleHead(engine, of, entries, eagle3.read(folder_of(root, "speculators")[0]))
    else:
        name, _, more = kind.partition(" ")
        of = with_head(name)
        of = replace(of, mtp=of.mtp * 3, mtp_chained="apart" not in more) if more else of
        entries = tiny.tensors(of)
        engine = RuntimeEngine(of, entries, 1)
        return engine, HeadProposer(mtp_heads(engine, of, entries), 101)
    return engine, HeadProposer([head], 101)


class Knowing(HeadProposer):
    """A head that reads as it must, and that knows two tokens of three."""

    def __init__(self, heads: Any, vocab: int, answers: dict[tuple[int, ...], tuple[int, ...]]) -> None:
        super().__init__(heads, vocab)
        self.answers = answers

    def read(self, texts: Any, ahead: Any, round: int) -> np.ndarray:
        logits = super().read(texts, ahead, round)
        for row, ids in zip(logits, ahead, strict=True):
            for prompt, answer in self.answers.items():
                at = len(ids) - len(prompt)
                if tuple(ids[: len(prompt)]) == prompt and 0 <= at < len(answer) and len(ids) % 3:
                    row[answer[at]] += 1000
        return logits


@pytest.mark.parametrize(
    "kind", ["llama", "llama in a chain", "gpt-oss apart", "qwen3-next", "falcon-h1", "eagle3"]
)
def test_a_heads_drafts_change_no_bit(kind: str, tmp_path: Path):
    """Alone and in a batch, greedy and drawn, pages shared, and a recurrence that comes back."""
    if kind == "falcon-h1":  # without heads: what a recurrence forgets is read again, whatever drafts
        of = tiny.config(kind)
        engine, made = RuntimeEngine(of, tiny.tensors(of), 1), None
    else:
        engine, made = proposer(kind, tmp_path)
    cut = SamplingParams(max_tokens=20, temperature=0.9, min_p=0.05, repetition_penalty=1.3, seed=3)
    cut = replace(cut, logprobs=2)
    jobs = [*some_jobs(6, 2, (0, 120, 129), 12), Request((5, 6, 5, 6), cut, prompt_logprobs=1)]
    jobs += [Request((*[1, 2, 3, 4] * 32, 7), SamplingParams(max_tokens=20)), Request((5, 6, 5, 6), cut)]
    plain = answer_all(engine, Words(), jobs, max_sequences=5)
    same_with(engine, jobs, plain, PromptLookup())
    if made is not None:
        answers = {one.ids: made.ids for one, made in zip(jobs, plain, strict=True)}
        same_with(engine, jobs, plain, made)
        same_with(engine, jobs, plain, Knowing(made.heads, 101, answers), 0.1)


def same_with(engine: Any, jobs: list[Request], plain: Any, made: Any, least: float = 0.0) -> None:
    """The answers drafted so are the plain ones, and at least so many of the drafts were accepted."""
    drafting = Drafting(made, Always(4))
    scheduler = Scheduler(engine, Words(), max_sequences=5, max_queue=10**6, drafting=drafting)
    try:
        ahead = [finish(stream) for stream in [scheduler.submit(one) for one in jobs]]
        figures = scheduler.stats()
    finally:
        scheduler.close()
    assert [shown(one) for one in ahead] == [shown(one) for one in plain]
    assert [one.timings.decode_tokens for one in ahead] == [one.timings.decode_tokens for one in plain]
    assert figures.drafted_tokens > 0 and figures.failed == figures.pages_used == 0
    assert figures.accepted_tokens >= least * figures.drafted_tokens
    for one, wanted in list(zip(jobs, plain, strict=True))[-2:]:
        session = Session(engine)
        for _ in range(2):  # the second time with a session that holds the text
            alone = generate(engine, Words(), one.ids, one.settings, session, Drafting(made, Always(3)))
            assert shown(finish(alone)) == shown(wanted)


def test_a_head_reads_each_pair_of_a_text_once(tmp_path: Path):
    """A long prompt is caught up with, drafts are forgotten, and the head holds as much as the text."""
    engine, made = proposer("llama", tmp_path)
    ids = tuple(np.random.default_rng(0).integers(0, 101, 330).tolist())
    settings, texts = SamplingParams(max_tokens=30, ignore_eos=True), list[Any]()

    class Kept(HeadProposer):
        def see(self, text: Any, start: int, values: Any) -> None:
            super().see(text, start, values)
            texts.append(text)

    finish(generate(engine, Words(), ids, settings, None, Drafting(Kept(made.heads, 101), Always(3))))
    (own,), length = texts[-1].own.heads, len(texts[-1].history.ids)
    assert own.at == own.held and length - 6 <= own.at < length
    assert 0 <= own.state.length - own.held <= 2


def test_a_language_model_drafts_by_its_own_head_and_keeps_it(tmp_path: Path):
    plain = cutaway.load(model_file(tmp_path / "m.gguf"))
    config = replace(plain.config, mtp=plain.config.blocks[:1])
    drawn = tiny.tensors(config)
    own = {name: plain.checkpoint.tensors.later(name) for name in plain.config.weights()}
    own |= {name: drawn.later(name) for name in config.weights() if name not in own}
    checkpoint = replace(plain.checkpoint, config=config, tensors=Tensors(own), family=None)
    LanguageModel(checkpoint).save(tmp_path / "kept")
    lm = cutaway.load(tmp_path / "kept")
    assert lm.config == config
    for settings in ({"temperature": 0}, {"temperature": 1.0, "seed": 3}):
        options: Any = settings | {"max_tokens": 24, "ignore_eos": True}
        ahead = lm.generate("the then the", speculate="mtp", **options)
        assert shown(ahead) == shown(plain.generate("the then the", **options))
    assert lm.engines.draft_heads(None) is lm.engines.draft_heads(None), "they are made once"
    other, _ = folder_of(tmp_path, "safeailab")
    for given, model, why in (
        ("mtp", plain, "m.gguf cannot draft by a head: this model has no heads"),
        (other, plain, f"a head for 101 ids, and the model has {config.vocab}"),
        (tmp_path / "none", plain, "none: has no EAGLE-3 head"),
        ("mtp", cutaway.load(tmp_path / "kept", engine="pytorch"), "because it was asked for"),
    ):
        with pytest.raises(UserError, match=why):
            model.generate("the", speculate=given)


# ---- refusals ----------------------------------------------------------------------------------------------


def test_heads_that_do_not_fit_are_refused(tmp_path: Path):
    of, entries = target()
    engine = RuntimeEngine(of, entries, 1)
    _, made = proposer("llama", tmp_path)
    with pytest.raises(UserError, match="another engine answers"):
        generate(tiny.definition(of, entries), Words(), [1], SamplingParams(), None, Drafting(made))
    with pytest.raises(UserError, match="no heads that predict further tokens"):
        mtp_heads(engine, of, entries)
    folder, weights = folder_of(tmp_path, "safeailab")
    config = json.loads((folder / "config.json").read_text())
    head = eagle3.read(folder)
    short = replace(of, blocks=of.blocks[:3])
    with pytest.raises(UserError, match="three layers that a model of 3 layers"):
        EagleHead(RuntimeEngine(short, entries, 1), short, entries, head)
    for key, value, why in (
        ("vocab_size", 100, "different ids of 100|a head for 100 ids, and the model has 101"),
        ("num_hidden_layers", 2, "2 layers, and EAGLE-3 heads of one"),
        ("norm_before_fc", True, "a norm before the matrix"),
        ("draft_vocab_size", 59, "is needed"),
        ("hidden_size", 48, "is needed"),
        ("target_hidden_size", 64, "is needed"),
        ("eagle_aux_hidden_state_layer_ids", [1, 2], "three numbers"),
        ("rope_theta", "much", "rope_theta"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError, match=why):
            EagleHead(engine, of, entries, eagle3.read(folder))
    (folder / "config.json").write_text(json.dumps(config))
    for name, value, why in (
        ("d2t", np.full(SCORED, 100), "does not name 60 different ids"),
        ("d2t", np.zeros(SCORED, np.float32), "I64"),
        ("fc.weight", np.full((WIDTH, 3 * WIDTH), np.nan, np.float32), "infinite or not a number"),
        ("other.weight", np.zeros(3, np.float32), "has no place in an EAGLE-3 head"),
        ("norm.weight", None, "is missing"),
    ):
        changed = {one: weight for one, weight in weights.items() if one != name}
        changed |= {} if value is None else {name: value}
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(UserError, match=why):
            EagleHead(engine, of, entries, eagle3.read(folder))
