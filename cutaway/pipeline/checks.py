"""What can be wrong with a stage's entries is found before the first stage starts."""

from __future__ import annotations

import copy
from typing import Any

from cutaway.errors import UserError, quoted
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
            _finetuning(pipeline, name)
    except UserError as error:
        raise UserError(f"stages.{name}: {error}") from None


def _finetuning(pipeline: Pipeline, name: str) -> None:
    """Read a finetuning run on a model that an earlier stage will make, or on one that there is."""
    from cutaway.train import methods
    from cutaway.train.recipes.finetune import FinetuningConfig
    from cutaway.train.rewards_config import RewardsConfig

    found = copy.deepcopy(pipeline[name].config)
    objective = found.get("objective")
    kind = objective.get("kind") if isinstance(objective, dict) else "next_token"
    known = methods.learned()
    if not isinstance(kind, str) or kind not in known:
        raise UserError(
            f"config.objective.kind: there is no {quoted(kind)}; known: {', '.join(sorted(known))}"
        )
    found["model"] = _model(pipeline, name, str(found.get("base", methods.BASE)))
    from_dict(found, RewardsConfig if known[kind].source == "task" else FinetuningConfig)


def _model(pipeline: Pipeline, name: str, base: str) -> dict[str, Any]:
    """The model that a base is or will be: of an earlier stage, of what that began with, or one there is."""
    from cutaway.train import methods

    while (own := base.partition("/")[0]) in pipeline.names[: pipeline.names.index(name)]:
        name, stage = own, pipeline[own]
        if stage.verb == "pretrain":
            return to_dict(budget.pretraining(pipeline, own, stage.config["model"]).model)
        if stage.verb != "finetune":
            raise UserError(f"config.base: {base}: the stage {own} makes no model that is trained further")
        base = str(stage.config.get("base", methods.BASE))
    if own in pipeline.names:
        raise UserError(f"config.base: {base}: this stage comes later, or is the same: put it before")
    return to_dict(methods.base({"base": base}).config)
