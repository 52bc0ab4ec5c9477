"""NaN in a model's weights is an error that names the layer, for logits and for embeddings."""

from threading import Thread

import numpy as np
import pytest
import torch

from cutaway.errors import OperationalError
from cutaway.model import decoder as models
from cutaway.model.engine import DefinitionEngine
from cutaway.model.nan import nan_error
from cutaway.model.pooling import vectors
from tests.small import decoder


def _broken(name: str) -> models.Decoder:
    model = models.Decoder(decoder("llama").config).eval()
    if name:
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
    engine = DefinitionEngine(_broken(name))
    for read in (
        lambda: engine.logits([1, 2, 3]),
        lambda: engine.prefill([1, 2, 3], engine.new_state()),
        lambda: vectors(engine.model, [[1, 2, 3], [4]], "mean"),
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
    engine = DefinitionEngine(_broken(""))
    assert not np.isnan(engine.logits([1, 2, 3])).any()
