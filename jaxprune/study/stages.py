"""The stages of a cell, named by content.

A stage sees its own settings and those of the stages before it, and nothing else; its
id hashes just these. So cells that begin alike share stages, and no result is ever
taken for another's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from jaxprune import scores
from jaxprune.study import config
from jaxprune.study.config import Cell
from jaxprune.train import Training


class Stage(NamedTuple):
    """One step of a cell.

    kind: a key of work.RUN; own: its own settings; settings: those of all stages up to
    it; id: hash of kind, own settings and the parent's id; parent: id of the latest stage
    before that made arrays.
    """

    kind: str
    own: Mapping[str, Any]
    settings: Mapping[str, Any]
    id: str
    parent: str | None


# Stages that make no arrays, so that nothing comes from them: what is trained after
# "inspect" is shared with a chain that goes on without it.
MEASURING = ("inspect", "evaluate", "connect", "profile", "compact")

_Step: TypeAlias = tuple[str, dict[str, Any]]


def chain(cell: Cell) -> list[Stage]:
    """List the stages of a cell in order.

    Args:
        cell: the cell.

    Returns:
        Its stages; equal beginnings of two cells have equal ids.
    """
    recipe, method = cell.recipe, config.METHODS[cell.method]
    rewind = config.REWINDS[config.rewind_of(cell)]
    dataset = {
        "dataset": cell.dataset,
        "data_version": cell.data_version,
        "train_examples": cell.train_examples,
    }
    network = {
        "model": cell.model,
        "input_shape": list(cell.input_shape),
        "num_classes": cell.num_classes,
        "batch_norm": cell.batch_norm,
        "width": cell.width,
        "seed": cell.seed,
    }
    ranking = {"ties": recipe.ties, "density": config.density(cell)}

    def training(epochs: float | None, **own: Any) -> _Step:
        held = recipe.training
        if epochs is not None:
            held = dataclasses.replace(held, epochs=epochs)
        if "start" in own and rewind.constant:
            held = _at_last_rate(held)
        own = {"rewind_epochs": None, "start": 0, **own}
        return "train", {**dataset, **own, "training": config.as_json(held)}

    plan: list[_Step] = [("initialize", network)]
    if method.pretrained:
        # The rewind point is kept for every dense network, so that magnitude and IMP share
        # it.
        rewind_epochs = recipe.rewind_epochs if rewind.continues else None
        epochs = (
            recipe.level_epochs if config.is_iterative(cell) else recipe.dense_epochs
        )
        plan.append(training(epochs, rewind_epochs=rewind_epochs))
    if config.is_iterative(cell):
        start = recipe.rewind_epochs if rewind.continues else 0
        restart = {"rewind": rewind.weights, "regrow": recipe.regrow}
        for level, density in enumerate(config.level_densities(cell)):
            if level:
                plan.append(training(recipe.level_epochs, start=start))
            own = {**ranking, "level": level, "density": density, **restart}
            plan.append(("level", own))
        plan += [("inspect", {}), training(None, start=start)]
    elif method.score:
        scoring = {"score": method.score, **_scoring(cell, method.score, dataset)}
        rounds = recipe.synflow_rounds if method.score == "synflow" else 1
        if rounds == 1:
            plan += [("score", scoring), ("select", ranking)]
        else:
            rounded = {"rounds": rounds, "regrow": recipe.regrow}
            plan.append(("prune", {**scoring, **ranking, **rounded}))
        epochs = recipe.grasp_epochs if method.score == "grasp" else None
        plan += [("inspect", {}), training(epochs)]
    else:
        plan.append(("inspect", {}))
    if method.points:
        _, again = training(None, start=recipe.rewind_epochs)
        plan.append(("connect", {**again, "points": method.points}))
    else:
        plan += [("evaluate", dict(dataset)), ("profile", dict(dataset))]
        plan.append(("compact", {}))

    stages: list[Stage] = []
    settings: dict[str, Any] = {}
    parent = None
    for kind, own in plan:
        settings = {**settings, **own}
        name = config.content_id({"kind": kind, "settings": own, "parent": parent})
        stages.append(Stage(kind, own, settings, f"{kind}-{name}", parent))
        if kind not in MEASURING:
            parent = stages[-1].id
    return stages


def _at_last_rate(training: Training) -> Training:
    """Go on at the learning rate that the schedule ends with."""
    drops = len(training.drop_epochs) if training.schedule == "steps" else 0
    rate = training.learning_rate * training.drop_factor**drops
    return dataclasses.replace(
        training,
        learning_rate=rate,
        schedule="constant",
        drop_epochs=(),
        warmup_epochs=0.0,
    )


def _scoring(cell: Cell, score: str, dataset: dict[str, Any]) -> dict[str, Any]:
    """Name the settings that a score depends on, and no others."""
    recipe = cell.recipe
    needs = scores.SCORERS[score].needs
    if needs == "inputs":
        return {"norm_flow": recipe.norm_flow, "rescale": recipe.synflow_rescale}
    if needs == "batches":
        temperature = recipe.grasp_temperature if score == "grasp" else 1.0
        number = {
            "score_examples": recipe.score_examples,
            "temperature": temperature,
            "train_mode": score in recipe.train_mode_scores,
        }
        return {**dataset, **number}
    return {}


def epochs(stage: Stage) -> float:
    """Count the epochs of training in a stage."""
    if stage.kind not in ("train", "connect"):
        return 0
    return stage.own["training"]["epochs"] - stage.own["start"]
