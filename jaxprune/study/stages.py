"""The kinds of stages, and the stages of a cell, named by content.

A stage depends on its settings and on the arrays of the stage before it, and on nothing else;
its id hashes just these. So cells with the same first stages share them, and no result is
taken for another.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

from jaxprune import train
from jaxprune.study import config, measure, methods, pruning, settings, work
from jaxprune.study.code import Code
from jaxprune.study.config import Cell
from jaxprune.train import Training


class Kind(NamedTuple):
    """A kind of stage.

    Attributes:
        run: `run(settings, arrays, bench) -> workbench.Output`.
        reads: names of the arrays that it reads, if the stages before it made them.
        facts: names of the facts of a finished stage, unless the network diverged.
        makes_arrays: whether other stages can start from it.
        is_timed: whether it runs alone on the machine, after all training.
        uses_mesh: whether several devices can share its work.
    """

    run: Callable[..., Any]
    reads: tuple[str, ...] = ("params", "state", "mask")
    facts: frozenset[str] = frozenset()
    makes_arrays: bool = True
    is_timed: bool = False
    uses_mesh: bool = True


_WITH_REWIND = ("params", "state", "mask", "rewind_point")

KINDS: Mapping[str, Kind] = {
    "initialize": Kind(work.initialize, reads=(), uses_mesh=False),
    "train": Kind(work.train_stage, facts=frozenset({"history", "training_memory"})),
    "score": Kind(pruning.score),
    "select": Kind(pruning.select, reads=("scores", "params", "state")),
    "shuffle": Kind(pruning.shuffle, uses_mesh=False),
    "reinitialize": Kind(work.reinitialize, reads=("mask",), uses_mesh=False),
    "reconstruct": Kind(pruning.reconstruct_stage, uses_mesh=False),
    "prune": Kind(pruning.prune_rounds, facts=frozenset({"densities"})),
    "level": Kind(work.level, reads=_WITH_REWIND),
    "inspect": Kind(
        measure.inspect,
        facts=frozenset(
            {"density", "effective_density", "layers", "macs_dense", "macs_kept"}
        ),
        makes_arrays=False,
        uses_mesh=False,
    ),
    "evaluate": Kind(
        measure.evaluate,
        facts=frozenset({"metric", "metric_name", "loss", "histograms"}),
        makes_arrays=False,
    ),
    "connect": Kind(
        work.connect,
        reads=_WITH_REWIND,
        facts=frozenset({"connectivity"}),
        makes_arrays=False,
    ),
    "measure": Kind(
        measure.measure,
        facts=frozenset({"latency", "compaction"}),
        makes_arrays=False,
        is_timed=True,
        uses_mesh=False,
    ),
    "memory": Kind(
        measure.memory,
        facts=frozenset({"memory"}),
        makes_arrays=False,
        is_timed=True,
        uses_mesh=False,
    ),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a cell.

    Attributes:
        kind: a key of KINDS.
        settings: all that it depends on besides the arrays of `parent`.
        id: the kind and a hash of settings and parent; the name of its folder.
        parent: the stage whose arrays it starts from.
    """

    kind: str
    settings: Any
    id: str
    parent: "Stage | None"


# The settings of a stage, by the name of its kind.
_Step: TypeAlias = tuple[str, Any]


def chain(cell: Cell) -> list[Stage]:
    """List the stages of a cell in order; those that are timed come last.

    Args:
        cell: the cell.

    Returns:
        Its stages; equal beginnings of two cells have equal ids.
    """
    stages: list[Stage] = []
    parent = None
    for kind, own in _steps(cell):
        stage = _stage(kind, own, parent)
        stages.append(stage)
        if KINDS[kind].makes_arrays:
            parent = stage
    if cell.recipe.memory == "network" and not cell.method.points:
        network = _network(cell)
        # Of seed 0 for all seeds: they take the same memory.
        weights = _stage("initialize", settings.Initialize(network, 0), None)
        stages.append(_stage("memory", settings.Memory(network), weights))
    return stages


def _stage(kind: str, own: Any, parent: Stage | None) -> Stage:
    stage = Stage(kind, own, "", parent)
    name = f"{kind}-{config.content_id(identity(stage))}"
    return dataclasses.replace(stage, id=name)


def identity(stage: Stage) -> dict[str, Any]:
    """Return what the id of a stage hashes; `stage.json` repeats it."""
    return {
        "kind": stage.kind,
        "settings": config.as_json(stage.settings),
        "parent": stage.parent and stage.parent.id,
    }


def facts(stage: Stage) -> frozenset[str]:
    """Return the names of the facts of a stage, unless its network diverges."""
    memory = {"memory"} if getattr(stage.settings, "memory", False) else set()
    return KINDS[stage.kind].facts | memory


def _network(cell: Cell) -> settings.Network:
    return settings.Network(
        cell.model,
        cell.input_shape,
        cell.input_dtype,
        cell.num_classes,
        cell.batch_norm,
        cell.width,
    )


def _steps(cell: Cell) -> list[_Step]:
    """Return the kinds and settings of the stages of a cell."""
    recipe, method = cell.recipe, cell.method
    rewind = methods.REWINDS[config.rewind_of(cell)]
    network, seed = _network(cell), cell.seed
    dataset = settings.Dataset(cell.dataset, cell.data_version, cell.train_examples)
    start = recipe.rewind_epochs if rewind.continues else 0

    def training(epochs: float | None, **options: Any) -> settings.Train:
        schedule = recipe.training
        if epochs is not None:
            schedule = dataclasses.replace(schedule, epochs=epochs)
        if "start" in options and rewind.constant:
            schedule = _at_last_rate(schedule)
        return settings.Train(network, seed, dataset, schedule, **options)

    steps: list[_Step] = [("initialize", settings.Initialize(network, seed))]
    if method.pretrained:
        # The rewind point is kept for every dense network, so that magnitude and IMP share
        # it.
        rewind_epochs = recipe.rewind_epochs if rewind.continues else None
        is_iterative = config.is_iterative(cell)
        epochs = recipe.level_epochs if is_iterative else recipe.dense_epochs
        steps.append(("train", training(epochs, rewind_epochs=rewind_epochs)))
    options: dict[str, Any] = {}
    last_epochs = recipe.grasp_epochs if method.score == "grasp" else None
    if config.is_iterative(cell):
        options = {"start": start, "keeps_pruned": recipe.regrow}
        for level, density in enumerate(config.level_densities(cell)):
            if level:
                steps.append(("train", training(recipe.level_epochs, **options)))
            level_settings = settings.Level(
                network,
                seed,
                level,
                density,
                recipe.ties,
                rewind.weights,
                recipe.regrow,
                method.scope,
            )
            steps.append(("level", level_settings))
    elif method.score:
        scoring, density = _scoring(cell, dataset), config.density(cell)
        default = recipe.synflow_rounds if method.score == "synflow" else 1
        rounds = method.rounds or default
        selecting = settings.Select(
            network,
            density,
            recipe.ties,
            method.scope,
            method.kinds,
            inverted=method.control == "inverted",
        )
        if rounds == 1:
            steps += [("score", scoring), ("select", selecting)]
        else:
            regrow = recipe.regrow if method.regrow is None else method.regrow
            pruning = settings.Prune(scoring, selecting, rounds, regrow)
            steps.append(("prune", pruning))
        if method.control == "shuffled":
            steps.append(("shuffle", settings.Shuffle(network, seed)))
        if method.control == "reinitialized":
            steps.append(("reinitialize", settings.Initialize(network, seed)))
    elif method.reconstructs:
        reconstructing = settings.Reconstruct(
            network, seed, dataset, config.density(cell), recipe.score_examples
        )
        steps.append(("reconstruct", reconstructing))
    elif method.sparse is not None:
        name = cast(train.SparseName, method.sparse)
        sparse = train.SparseTraining(name, config.density(cell))
        schedule = dataclasses.replace(recipe.training, sparse=sparse)
        steps.append(("train", settings.Train(network, seed, dataset, schedule)))
    steps.append(("inspect", settings.Inspect(network)))
    if method.prunes and method.sparse is None and method.retrains:
        steps.append(("train", training(last_epochs, **options)))
    if method.points:
        again = training(None, start=recipe.rewind_epochs)
        fields = {f.name: getattr(again, f.name) for f in dataclasses.fields(again)}
        return [*steps, ("connect", settings.Connect(**fields, points=method.points))]
    steps.append(("evaluate", settings.Evaluate(network, dataset)))
    if recipe.time:
        measuring = settings.Measure(network, dataset, memory=recipe.memory == "cell")
        steps.append(("measure", measuring))
    return steps


def _at_last_rate(training: Training) -> Training:
    """Return a schedule that continues at the learning rate that another one ends with."""
    drops = len(training.drop_epochs) if training.schedule == "steps" else 0
    rate = training.learning_rate * training.drop_factor**drops
    return dataclasses.replace(
        training,
        learning_rate=rate,
        schedule="constant",
        drop_epochs=(),
        warmup_epochs=0.0,
    )


def _scoring(cell: Cell, dataset: settings.Dataset) -> settings.Score:
    """Return the settings that a score depends on, and no others."""
    recipe, needs = cell.recipe, cell.method.needs
    method = cast(str | Code, cell.method.score)  # other functions have no JSON
    network = _network(cell)
    if needs == "inputs":
        flow = recipe.norm_flow, recipe.synflow_rescale
        return settings.ScoreFlow(network, cell.seed, method, needs, *flow)
    if needs == "key_inputs":
        examples = recipe.score_examples
        return settings.ScoreNoise(network, cell.seed, method, needs, examples)
    if needs not in ("batches", "activations"):
        return settings.Score(network, cell.seed, method, needs)
    return settings.ScoreData(
        network,
        cell.seed,
        method,
        needs,
        dataset,
        examples=recipe.score_examples,
        temperature=recipe.grasp_temperature if method == "grasp" else 1.0,
        # ProsPr trains: with the first BatchNorm statistics, its steps would diverge.
        train_mode=cell.method.name in recipe.train_mode_scores
        or method in ("prospr", *recipe.train_mode_scores),
    )


def epochs(stage: Stage) -> float:
    """Return the number of epochs of training in a stage."""
    return stage.settings.epochs if stage.kind in ("train", "connect") else 0
