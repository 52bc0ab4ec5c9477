"""What can be wrong with a stage's entries is found before the first stage starts."""

from __future__ import annotations

import copy
from typing import Any

from cutaway.errors import UserError
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.pipeline import budget
from cutaway.pipeline.config import Pipeline
from cutaway.pipeline.data import DataRecipe


def entries(pipeline: Pipeline, name: str) -> None:
    """UserError for a stage that trains, or makes data, whose entries are wrong; it names the stage."""
    stage = pipeline[name]
    try:
        if stage.verb == "data":
            from_dict(stage.config, DataRecipe)
        elif stage.verb == "pretrain":
            from cutaway.train.config import read_run_config

            read_run_config(stage.config)
        else:
            _finetuning(pipeline, stage.config)
    except UserError as error:
        raise UserError(f"stages.{name}: {error}") from None


def _finetuning(pipeline: Pipeline, config: dict[str, Any]) -> None:
    """Read a finetuning run on a model that an earlier stage will make, or on one that there is."""
    from cutaway.train import methods
    from cutaway.train.recipes.finetune import FinetuningConfig
    from cutaway.train.rewards_config import RewardsConfig

    found = copy.deepcopy(config)
    objective = found.get("objective")
    kind = objective.get("kind") if isinstance(objective, dict) else "next_token"
    known = methods.learned()
    if kind not in known:
        raise UserError(f"config.objective.kind: there is no {kind!r}; known: {', '.join(sorted(known))}")
    found["model"] = _model(pipeline, str(found.get("base", methods.BASE)))
    from_dict(found, RewardsConfig if known[kind].source == "task" else FinetuningConfig)


def _model(pipeline: Pipeline, base: str) -> dict[str, Any]:
    """The model that a base is or will be: of an earlier stage, of what that began with, or one there is."""
    from cutaway.train import methods

    while base in pipeline.names:
        stage = pipeline[base]
        if stage.verb == "pretrain":
            return to_dict(budget.pretraining(pipeline, base, stage.config["model"]).model)
        base = str(stage.config.get("base", methods.BASE))
    return to_dict(methods.base({"base": base}).config)
