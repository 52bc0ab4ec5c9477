"""NaN in a model's weights is an error that names the layer, for logits and for embeddings."""

from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from cutaway.errors import OperationalError, UserError
from cutaway.lm import LanguageModel
from cutaway.model import decoder as models
from cutaway.model.engine import PyTorchEngine
from cutaway.model.nan import nan_error
from cutaway.model.token_vectors import TokenVectors
from cutaway.quantization import formats
from cutaway.weights import load
from cutaway.weights.named_tensors import Tensors
from tests.small import decoder, model_file


def _broken(name: str) -> models.Decoder:
    return _break(models.Decoder(decoder("llama").config).eval(), name)


def _break(model: models.Decoder, name: str) -> models.Decoder:
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("blocks.1.mlp.down.weight", "from layer 1 on"),
        ("blocks.0.attention.value.weight", "from layer 0 on"),
        ("norm.weight", "from the output head on"),
    ],
)
def test_the_first_layer_with_nan_is_named(name: str, where: str) -> None:
    engine = PyTorchEngine(decoder("llama"))
    _break(engine.model, name)
    for read in (
        lambda: engine.logits([1, 2, 3]),
        lambda: engine.prefill([1, 2, 3], engine.new_state()),
        lambda: TokenVectors(engine.model).encode([[1, 2, 3], [4]]),
    ):
        with pytest.raises(OperationalError, match=where):
            read()
    assert not any(module._forward_hooks for module in engine.model.modules())


def test_a_pass_of_another_thread_is_not_listened_to() -> None:
    model = _broken("blocks.1.mlp.down.weight")
    ids = torch.tensor([[1, 2, 3]])

    def elsewhere() -> None:
        thread = Thread(target=lambda: model(ids, torch.arange(3)[None]))
        thread.start()
        thread.join()

    assert "from the output head on" in str(nan_error(model, elsewhere))


def test_a_sound_model_has_no_nan() -> None:
    engine = PyTorchEngine(decoder("llama"))
    assert not np.isnan(engine.logits([1, 2, 3])).any()


def test_a_query_weight_with_nan_is_found_though_its_logits_are_finite() -> None:
    with pytest.raises(OperationalError, match=r"blocks.2.attention.query.weight holds an infinity or NaN"):
        PyTorchEngine(_broken("blocks.2.attention.query.weight"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["embedding", "blocks.1.attention.query", "blocks.0.mlp.down", "norm"])
def test_both_engines_and_embed_name_a_weight_of_a_file_that_is_not_finite(
    tmp_path: Path, name: str, value: float
) -> None:
    path = model_file(tmp_path / "m.gguf")
    checkpoint = load.read_checkpoint(path)
    tensors = {each: checkpoint.tensors[each] for each in checkpoint.tensors}
    array = formats.unpack(tensors[f"{name}.weight"])
    array.reshape(-1)[-1] = value
    tensors[f"{name}.weight"] = formats.pack(array, "F32")
    broken = replace(checkpoint, tensors=Tensors(tensors))
    for read in (
        lambda: LanguageModel(broken, engine="runtime").logits([1]),
        lambda: LanguageModel(broken, engine="pytorch").logits([1]),
        lambda: LanguageModel(broken, engine="pytorch", dtype="packed").logits([1]),
        lambda: LanguageModel(broken).embed(["a"], pooling="mean"),
    ):
        with pytest.raises(UserError, match=f"{'head|' * (name == 'embedding')}{name}.weight"):
            read()
