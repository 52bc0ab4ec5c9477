"""Every encoder-decoder against transformers: tiny, random, every weight perturbed, both ways, decoded in
chunks behind padded sources, and greedily through the verb.
"""

import json
import random
import re
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import cutaway
from cutaway import cli, gguf
from cutaway.errors import UserError
from cutaway.model.config import EncoderDecoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.weights import build, load, save
from cutaway.weights.families import t5
from tests import llama_cpp
from tests.parity import tiny_encoders
from tests.parity.test_config_keys import changes
from tests.parity.tiny import VOCAB, perturbed, transformers
from tests.parity.words import WORDS

EXACT = 1e-5
SUMS, TABLE = 1e-4, 1e-2  # of llama.cpp's logits; its GELU is a table of half-precision numbers
T5 = {"vocab_size": VOCAB, "d_model": 48, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_heads": 3}
T5 |= {"initializer_factor": 0.2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
BART = {"vocab_size": VOCAB, "d_model": 48, "max_position_embeddings": 64, "encoder_layers": 2}
BART |= {"decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 6}
BART |= {"encoder_ffn_dim": 40, "decoder_ffn_dim": 56}
BART |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
MARIAN = BART | {"scale_embedding": True, "activation_function": "swish", "decoder_start_token_id": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5-1": ("T5Config", T5 | {"num_layers": 3, "num_decoder_layers": 2}),
    "t5-2": ("T5Config", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5-3": (
        "T5Config",
        T5
        | {"feed_forward_proj": "gated-silu", "d_kv": 20, "num_layers": 3, "num_decoder_layers": 1}
        | {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 20}
        | {"layer_norm_epsilon": 1e-3, "scale_decoder_outputs": False},
    ),
    "bart-1": ("BartConfig", BART),
    "bart-2": ("BartConfig", BART | {"scale_embedding": True, "activation_function": "relu"}),
    "bart-3": ("BartConfig", BART | {"tie_word_embeddings": False, "encoder_layers": 3, "decoder_layers": 1}),
    "marian-1": ("MarianConfig", MARIAN),
    "marian-2": (
        "MarianConfig",
        MARIAN | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": VOCAB - 6},
    ),
    "marian-3": (
        "MarianConfig",
        MARIAN | {"scale_embedding": False, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
}
CASES |= tiny_encoders.PAIRS
GENERATOR = torch.Generator().manual_seed(1)
SOURCE = torch.randint(3, VOCAB - 6, (2, 40), generator=GENERATOR)
IDS = torch.randint(3, VOCAB - 6, (2, 23), generator=GENERATOR)
POS, TARGET_POS = (torch.arange(ids.shape[1]).expand(ids.shape) for ids in (SOURCE, IDS))


@lru_cache(maxsize=2)
def made(case: str) -> Any:
    """The case's model, in transformers, to be read only."""
    return perturbed(transformers.AutoModelForSeq2SeqLM, *CASES[case])


@torch.no_grad()
def theirs(model: Any) -> torch.Tensor:
    return model(input_ids=SOURCE, decoder_input_ids=IDS).logits


@torch.no_grad()
def ours(checkpoint: load.Checkpoint) -> torch.Tensor:
    return build.encoder_decoder(checkpoint)(SOURCE, POS, IDS, TARGET_POS)


def unread(config: Any) -> set[str]:
    """The weights that transformers' model has and does not use."""
    return set() if config.tie_word_embeddings else {"model.shared.weight"}


def reopened(folder: Path) -> torch.Tensor:
    """What transformers makes of a folder, where every weight must be."""
    opened, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    missing = {key for key in info["missing_keys"] if "embed_positions" not in key}  # computed sinusoids
    assert not missing - unread(opened.config) and not info["unexpected_keys"]
    return theirs(opened.eval())


def rebuilt(folder: Path) -> torch.Tensor:
    """The same of its config and weights, without the time that ``from_pretrained`` takes for files."""
    from safetensors.torch import load_file

    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict(weights, strict=False)  # RuntimeError for another shape
    own = model.state_dict(keep_vars=True)
    there = {id(one) for name, one in own.items() if name in weights}
    missing = {name for name, one in own.items() if id(one) not in there and one.requires_grad}
    assert weights.keys() <= own.keys() and not missing - unread(config)
    return theirs(model)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def test_both_directions(case: str, saved: Path, tmp_path: Path) -> None:
    checkpoint, expected = load.read_checkpoint(saved), theirs(made(case))
    assert checkpoint.family == case.rpartition("-")[0]
    assert (ours(checkpoint) - expected).abs().max() < EXACT
    written = save.write_checkpoint(tmp_path / "ours", checkpoint)
    assert written.family == checkpoint.family, written.notes
    assert (reopened(tmp_path / "ours") - expected).abs().max() < EXACT
    again = load.read_checkpoint(tmp_path / "ours")
    assert again.config == checkpoint.config and again.target == checkpoint.target
    assert all(
        np.array_equal(again.tensors[name].data, checkpoint.tensors[name].data) for name in again.tensors
    )


@torch.no_grad()
def test_chunks_and_padding_change_nothing_and_the_config_knows_every_weight(case: str, saved: Path) -> None:
    checkpoint, expected = load.read_checkpoint(saved), theirs(made(case))
    model = build.encoder_decoder(checkpoint)
    for before, after in ((5, 0), (0, 3)):
        source = F.pad(SOURCE, (before, after)), F.pad(POS, (before, after), value=-1)
        cuts = [0, *sorted(random.Random(case).sample(range(1, IDS.shape[1]), 4)), IDS.shape[1]]
        state = model.start(*source)
        parts = [model.read(IDS[:, a:b], TARGET_POS[:, a:b], state) for a, b in pairwise(cuts)]
        assert (torch.cat(parts, dim=1) - expected).abs().max() < EXACT
        padded = model(*source, F.pad(IDS, (4, 0)), F.pad(TARGET_POS, (4, 0), value=-1))
        assert (padded[:, 4:] - expected).abs().max() < EXACT
    state = model.start(SOURCE, POS)
    model.read(IDS[:, :9], TARGET_POS[:, :9], state)
    if "t5gemma" in case:  # whose local layers no longer hold what is before their window
        state = model.start(SOURCE, POS)
        model.read(IDS[:, :4], TARGET_POS[:, :4], state)
    state.truncate(4)
    again = model.read(IDS[:, 4:], TARGET_POS[:, 4:], state)
    assert (again - expected[:, 4:]).abs().max() < EXACT
    assert from_dict(to_dict(checkpoint.config), EncoderDecoder) == checkpoint.config
    named = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert checkpoint.config.weights() == named


def test_no_weight_is_where_it_starts(case: str) -> None:
    for name, weight in made(case).named_parameters():
        assert weight.std() > 0.05, name


@pytest.mark.filterwarnings("ignore::cutaway.weights.fields.UnreadKeys")
@pytest.mark.parametrize("name", ["t5-1", "bart-1", "marian-2", "m2m_100-1"])
def test_each_key_is_that_of_transformers_or_refused(name: str, tmp_path: Path) -> None:
    """Every key dropped, nulled and edited, and keys of other families: refused, or transformers' logits."""
    model = tmp_path / "model"
    made(name).save_pretrained(model)
    base, plain = json.loads((model / "config.json").read_text()), load.read_checkpoint(model)
    expected, read = ours(plain), 0
    same = ("init", "drop", "label", "token_id", "use_cache")  # keys of training, labels and generation
    base_changes = (one for one in changes(base) if not any(word in key for key in one for word in same))
    more: list[dict[str, Any]] = [{"twisted": 2}, {"normalize_before": True}, {"hidden_size": 24}]
    more += [{"add_cross_attention": True}, {"is_decoder": True}, {"num_hidden_layers": 1}]
    more += [{"feed_forward_proj": "gated-relu"}, {"static_position_embeddings": name == "bart-1"}]
    for change in [*base_changes, *more]:
        data = {key: value for key, value in (base | change).items() if value is not ...}
        (model / "config.json").write_text(json.dumps(data))
        try:
            found = load.read_checkpoint(model)
            logits = expected if found.config == plain.config else ours(found)
        except UserError:
            continue
        read += 1
        try:
            wanted = rebuilt(model)
        except Exception:
            assert found.config == plain.config, f"{change} is refused by transformers"
            continue
        assert (logits - wanted).abs().max() < EXACT, f"{change} is read otherwise"
    assert read > 10
    for key in ("twisted", "normalize_before" if name == "bart-1" else "is_encoder_decoder"):
        (model / "config.json").write_text(json.dumps(base | {key: key == "normalize_before" or "no"}))
        with pytest.raises(UserError, match=key):
            load.read_checkpoint(model, strict=True)


def test_weights_that_repeat_the_table_or_are_left_out(tmp_path: Path) -> None:
    """Copies of the shared table are read if they are copies; a missing bias of the logits is zero."""
    from safetensors.torch import load_file, save_file

    made("bart-1").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights, expected = load_file(file), theirs(made("bart-1"))
    table, bias = weights["model.shared.weight"], weights.pop("final_logits_bias")
    copies = {f"model.{half}.embed_tokens.weight": table.clone() for half in ("encoder", "decoder")}
    save_file(weights | copies, file, {"format": "pt"})
    assert (ours(load.read_checkpoint(tmp_path)) - (expected - bias)).abs().max() < EXACT
    save_file(weights | {"model.encoder.embed_tokens.weight": table.flip(0)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"embed_tokens.weight' should repeat 'model.shared.weight'"):
        load.read_checkpoint(tmp_path)
    gone = "model.encoder.layers.0.fc1.bias"
    save_file({name: one for name, one in weights.items() if name != gone}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"fc1.bias' is missing"):
        load.read_checkpoint(tmp_path)


def test_positions_that_are_no_sinusoids_are_refused(tmp_path: Path) -> None:
    """Where they are computed, a folder's own table is checked."""
    from safetensors.torch import load_file, save_file

    made("pegasus-1").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.decoder.embed_positions.weight"
    half = weights | {name: weights[name].half()}
    save_file(half, tmp_path / "model.safetensors", {"format": "pt"})
    load.read_checkpoint(tmp_path)
    save_file(weights | {name: weights[name].roll(1, 0)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"decoder.embed_positions.weight' should hold sinusoids"):
        load.read_checkpoint(tmp_path)


def test_what_no_family_can_say_is_a_cutaway_folder(tmp_path: Path) -> None:
    made("t5-1").save_pretrained(tmp_path / "theirs")
    checkpoint = load.read_checkpoint(tmp_path / "theirs")
    config = replace(checkpoint.config, decoder=replace(checkpoint.config.decoder, softcap=3.0))
    written = save.write_checkpoint(tmp_path / "ours", replace(checkpoint, config=config))
    assert written.format == "cutaway" and "softcap" in " ".join(written.notes)
    again = load.read_checkpoint(tmp_path / "ours")
    assert again.config == config
    assert torch.equal(ours(again), 3 * torch.tanh(ours(checkpoint) / 3))


# ---- text to text ------------------------------------------------------------------------------------------


def worded(folder: Path) -> None:
    """A tokenizer beside a model: letters behind SentencePiece's mark, and an end token after each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *(chr(33 + n) for n in range(VOCAB - 4))]
    unigram = models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 2, False)
    tokenizer = Tokenizer(unigram)
    tokenizer.add_special_tokens(pieces[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"unk_token": "<unk>"}))


def greedy(folder: Path, **options: Any) -> list[list[int]]:
    """Transformers' greedy targets of ``SOURCE``'s rows, without the id before the first."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()
    settings = {"max_new_tokens": 12, "do_sample": False, "num_beams": 1, "forced_eos_token_id": None}
    rows = [model.generate(row[None], **(settings | options))[0, 1:].tolist() for row in SOURCE]
    return [row[: row.index(1)] if 1 in row else row for row in rows]


@pytest.mark.parametrize("name", ["t5-2", "bart-3", "marian-3"])
def test_greedy_targets_are_transformers(name: str, tmp_path: Path) -> None:
    """Also where a config forces the first id or excludes ids. Their heads are their own: others repeat."""
    made(name).save_pretrained(tmp_path)
    worded(tmp_path)
    changed: dict[str, Any] = {}
    for step in ("plain", "forced", "without"):
        for file in ("config.json", "generation_config.json"):
            data = json.loads((tmp_path / file).read_text()) | {"eos_token_id": 1}
            data = {key: value for key, value in data.items() if key != "forced_bos_token_id"}
            (tmp_path / file).write_text(json.dumps(data | changed))
        expected, lm = greedy(tmp_path), cutaway.load(tmp_path)
        assert [list(one.ids) for one in lm.generate_batch(SOURCE.tolist(), max_tokens=12)] == expected
        if step == "plain":
            assert len({id for row in expected for id in row}) > 2
            bad, changed = expected[0][0], {"forced_bos_token_id": 7}
        elif step == "forced":
            assert all(row[0] == 7 for row in expected) and any(set(row) != {7} for row in expected)
            changed = {"bad_words_ids": [[9], [bad]]}
    save.write_checkpoint(tmp_path / "again", load.read_checkpoint(tmp_path))
    found = cutaway.load(tmp_path / "again").generate(SOURCE[0].tolist(), max_tokens=12)
    assert list(found.ids) == expected[0]


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    made("t5-2").save_pretrained(folder)
    worded(folder)
    return folder


def test_the_verb_writes_the_target_of_a_text(translator: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = transformers.AutoTokenizer.from_pretrained(translator)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(translator).eval()
    source = words("a source text", return_tensors="pt")
    assert source.input_ids[0, -1] == 1
    expected = model.generate(source.input_ids, max_new_tokens=9, do_sample=False)[0, 1:].tolist()
    command = ["generate", "a source text", "--model", str(translator), "--max-tokens", "9", "--json"]
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ids"] == [id for id in expected if id != 1]
    assert found["text"] == words.decode(found["ids"])
    assert cli.main(["info", str(translator)]) == 0
    card = capsys.readouterr().out
    assert "encoder-decoder, 2 and 2 layers of width 48" in card and "t5" in card
    assert cli.main(["info", str(translator), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["kv_cache_bytes_per_token"] == card["kv_cache_bytes_per_source_token"] == 2 * 2 * 36 * 4


def test_a_context_is_held_to(tmp_path: Path) -> None:
    """A source longer than the table of positions is refused; a target ends where the context does."""
    made("bart-1").save_pretrained(tmp_path)
    worded(tmp_path)
    lm = cutaway.load(tmp_path, context=5)
    found = lm.generate([4, 5, 6], ignore_eos=True)
    assert len(found.ids) == 4 and found.finish_reason == "context"
    with pytest.raises(UserError, match="65 ids long and the model reads at most 64"):
        lm.generate([4] * 65)
    for source, problem in (([VOCAB], "go from 0 to 95"), ([], "no tokens")):
        with pytest.raises(UserError, match=problem):
            lm.generate(source)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's, of transformers
@torch.no_grad()
def test_an_adapter_of_peft_is_applied(translator: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    own = transformers.AutoModelForSeq2SeqLM.from_pretrained(translator, attn_implementation="eager")
    targets = ["q", "v", "wo", "wi_1"]
    model = peft.get_peft_model(own, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets)).eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(tmp_path)
    expected = model(input_ids=SOURCE, decoder_input_ids=IDS).logits
    plain, changed = cutaway.load(translator), cutaway.load(translator, adapter=tmp_path)
    texts = (SOURCE, POS, IDS, TARGET_POS)
    assert (changed.model(*texts) - expected).abs().max() < EXACT
    assert (plain.model(*texts) - expected).abs().max() > 0.1


@pytest.fixture(scope="module", params=["t5-1", "t5-2"])
def in_gguf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A case, and the GGUF file that is written of it."""
    folder = tmp_path_factory.mktemp("gguf")
    made(request.param).save_pretrained(folder / "model")
    checkpoint = replace(load.read_checkpoint(folder / "model"), metadata=WORDS)
    saved = save.write_checkpoint(folder / "model.gguf", checkpoint)
    assert ("head is a matrix of its own" in " ".join(saved.notes)) is (request.param == "t5-1")
    return request.param, folder / "model.gguf"


def test_t5_through_gguf_and_back(in_gguf: tuple[str, Path], tmp_path: Path) -> None:
    (name, path), expected = in_gguf, theirs(made(in_gguf[0]))
    again = load.read_checkpoint(path)
    assert again.family == "t5" and again.target and again.target.start == 0
    assert (ours(again) - expected).abs().max() < EXACT
    save.write_checkpoint(tmp_path / "back", replace(again, read_tokenizer=None))
    assert (reopened(tmp_path / "back") - expected).abs().max() < EXACT
    if name == "t5-2":
        save.write_checkpoint(tmp_path / "small.gguf", replace(again, metadata=WORDS), type="Q8_0")
        types = {name: one.type for name, one in gguf.read(tmp_path / "small.gguf").tensors.items()}
        assert (
            types["enc.blk.0.attn_rel_b.weight"] == "F32" and types["dec.blk.1.cross_attn_q.weight"] == "F16"
        )


def test_llama_cpp_translates_alike(in_gguf: tuple[str, Path]) -> None:
    name, path = in_gguf
    found = llama_cpp.translated(path, SOURCE[0].tolist(), IDS[0].tolist(), VOCAB)
    assert np.abs(found - theirs(made(name))[0].numpy()).max() < (SUMS if name == "t5-1" else TABLE)


def deeper(config: EncoderDecoder) -> EncoderDecoder:
    """The same with a decoder of four layers."""
    blocks = config.decoder.blocks[:1] * 4
    return replace(config, decoder=replace(config.decoder, blocks=blocks))


def test_a_t5_that_llama_cpp_cannot_compute_is_refused(tmp_path: Path) -> None:
    """Its distances end at 128, a gated MLP has GELU, and the decoder is not the deeper half."""
    made("t5-3").save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"cannot be written as GGUF: llama\.cpp's t5 "):
        save.write_checkpoint(tmp_path / "model.gguf", load.read_checkpoint(tmp_path / "model"))
    with pytest.raises(UserError, match="a decoder of more layers than the encoder is not supported in GGUF"):
        t5.FAMILY.write(deeper(load.read_checkpoint(tmp_path / "model").config), gguf=True)


OTHERS = """
    explain a --model MODEL | explain a --parallel --model MODEL | bench MODEL | serve MODEL | verify MODEL
    attack MODEL --probe forgery | embed text a --model MODEL
    quantize MODEL --type Q8_0 --output OUT.gguf | convert MODEL OUT --attention mla
    generate a --chat --model MODEL | generate a --think vote-2 --model MODEL
    generate a --engine runtime --model MODEL | generate a --draft lookup --model MODEL
    finetune sft --model MODEL --data DATA --output OUT
    activations DATA --model MODEL --names blocks.0.out --output OUT
"""


@pytest.mark.parametrize("command", [line.strip() for line in re.split(r"[|\n]", OTHERS) if line.strip()])
def test_other_verbs_refuse_it(
    command: str, translator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "a b"}) + "\n")
    places = {"MODEL": str(translator), "DATA": str(data), "OUT": str(tmp_path / "out")}
    line = [places.get(word, word) for word in command.replace("OUT.gguf", f"{tmp_path}/out.gguf").split()]
    code, printed = cli.main(line), capsys.readouterr()
    assert code == 2, printed
    last = printed.err.splitlines()[-1]
    assert last.startswith("cutaway: ") and re.search("encoder-decoder|is not a decoder", last)
