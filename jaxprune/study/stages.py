"""The stages of a cell, named by content.

A stage sees its own settings and those of the stages before it, and nothing else; its
id hashes just these. So cells that begin alike share stages, and no result is ever
taken for another's.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxprune import masks, scores
from jaxprune.study import config
from jaxprune.study.config import Cell


class Stage(NamedTuple):
    """One step of a cell.

    kind: a key of work.RUN; own: its own settings; settings: those of all stages up to
    it; id: hash of kind, own settings and the parent's id; parent: id of the stage
    before.
    """

    kind: str
    own: Mapping[str, Any]
    settings: Mapping[str, Any]
    id: str
    parent: str | None


def chain(cell: Cell) -> list[Stage]:
    """List the stages of a cell in order.

    Args:
        cell: the cell.

    Returns:
        Its stages; equal beginnings of two cells have equal ids.
    """
    recipe = cell.recipe
    method = config.METHODS[cell.method]
    training = config.as_json(recipe.training)
    pictures = {
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
    plan: list[tuple[str, dict[str, Any]]] = [("initialise", network)]
    if method.pretrained:
        # The early iteration is kept for every dense network, so that Mag and IMP share
        # it.
        dense = {**pictures, "training": training, "start": 0}
        plan.append(("train", {**dense, "early": recipe.rewind_epochs}))
    asked = config.density(cell)
    ranking = {"density": asked, "ties": recipe.ties}
    start: float = 0
    if method.levels:
        late = recipe.rewind == "early"
        start = recipe.rewind_epochs if late else 0
        levels = {
            "densities": masks.densities(asked, method.levels),
            "rewind": recipe.rewind,
            "regrow": recipe.regrow,
        }
        plan.append(("imp", {**pictures, **ranking, **levels, "training": training}))
    else:
        scoring = {"score": method.score, **_scoring(cell, method.score, pictures)}
        rounds = recipe.synflow_rounds if method.score == "synflow" else 1
        if rounds == 1:
            plan += [("score", scoring), ("select", ranking)]
        else:
            rounded = {"rounds": rounds, "regrow": recipe.regrow}
            plan.append(("prune", {**scoring, **ranking, **rounded}))
    final = {**pictures, "training": training, "start": start, "early": None}
    plan += [("inspect", {}), ("train", final)]
    plan += [("evaluate", dict(pictures)), ("profile", dict(pictures))]

    stages: list[Stage] = []
    settings: dict[str, Any] = {}
    for kind, own in plan:
        parent = stages[-1].id if stages else None
        settings = {**settings, **own}
        name = config.content_id({"kind": kind, "settings": own, "parent": parent})
        stages.append(Stage(kind, own, settings, f"{kind}-{name}", parent))
    return stages


def _scoring(cell: Cell, score: str, pictures: dict[str, Any]) -> dict[str, Any]:
    """Name the settings that a score depends on, and no others."""
    recipe = cell.recipe
    needs = scores.SCORERS[score].needs
    if needs == "inputs":
        return {"norm_flow": recipe.norm_flow, "rescale": recipe.synflow_rescale}
    if needs == "batches":
        temperature = recipe.grasp_temperature if score == "grasp" else 1.0
        number = {"score_examples": recipe.score_examples, "temperature": temperature}
        return {**pictures, **number}
    return {}


def epochs(stage: Stage) -> float:
    """Count the epochs of training in a stage."""
    settings = stage.settings
    if stage.kind == "train":
        return settings["training"]["epochs"] - settings["start"]
    if stage.kind == "imp":  # the first level is the dense network, trained already
        start = settings["early"] if settings["rewind"] == "early" else 0
        levels = len(settings["densities"]) - 1
        return levels * (settings["training"]["epochs"] - start)
    return 0
