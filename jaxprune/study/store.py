"""Stages on disk: each runs once, and is read wherever it is needed.

runs/<study>/stages/<stage id>/arrays      what it made, through Orbax
runs/<study>/stages/<stage id>/stage.json  its facts; its existence means finished

The id of a stage does not depend on the devices that make it: another machine can continue.
"""

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxprune import checkpoint, sharding
from jaxprune.disk import CorruptFileError
from jaxprune.study import files, locks, provenance, stages, workbench
from jaxprune.study.files import RunsError
from jaxprune.study.stages import KINDS, Stage

# on_progress(stage, epoch, history): a stage starts (epoch 0, None), or an epoch has ended.
OnProgress: TypeAlias = Callable[[Stage, int, Mapping[str, float] | None], None]

# Bytes of arrays that stay in memory; those that were used last.
IN_MEMORY = 2_000_000_000


class Store(NamedTuple):
    """The stages of a study, on disk and in memory.

    Attributes:
        folder: `runs/<study>`.
        source: the data set.
        on_progress: called when a stage starts and after each epoch.
        mesh: devices that share the work of a stage, as (data, model), or None for one.
        arrays: of the stages that were used last, with all before each, by id; on the host,
            so that the device holds those of one stage only.
    """

    folder: Path
    source: workbench.Source
    on_progress: OnProgress
    mesh: tuple[int, int] | None
    arrays: OrderedDict[str, dict[str, Any]]


class Result(NamedTuple):
    """A finished stage, as `stage.json` has it.

    Attributes:
        arrays: names of the trees of arrays that it made.
        facts: JSON values for the record.
        seconds: that it took.
        made: versions, device, mesh, commit and time.
    """

    arrays: tuple[str, ...]
    facts: Mapping[str, Any]
    seconds: float
    made: Mapping[str, Any]


def _path(folder: Path, stage: Stage) -> Path:
    return folder / "stages" / stage.id / "stage.json"


def is_finished(folder: Path, stage: Stage) -> bool:
    """Return whether a stage is on disk."""
    return _path(folder, stage).exists()


def read(folder: Path, stage: Stage) -> Result | None:
    """Read a stage.

    Args:
        folder: `runs/<study>`.
        stage: one of its stages.

    Returns:
        Its result; None if it is not finished, or corrupt.

    Raises:
        RunsError: if it was made with other settings, or by another version.
    """
    path = _path(folder, stage)
    try:
        saved = files.read_json(path)
    except (CorruptFileError, FileNotFoundError):
        return None
    repair = f"Delete the folder {path.parent} and run again."
    identity = stages.identity(stage)
    if {name: saved.get(name) for name in identity} != identity:
        raise RunsError(
            f"{path} belongs to other settings than its name says. {repair}"
        )
    facts = saved.get("facts") or {}
    is_complete = facts.get("diverged") or stages.facts(stage) <= set(facts)
    if not is_complete or not set(Result._fields) <= set(saved):
        raise RunsError(f"{path} is of another version: it lacks facts. {repair}")
    return Result(tuple(saved["arrays"]), facts, saved["seconds"], saved["made"])


def result(store: Store, stage: Stage) -> Result:
    """Return the result of a stage; it is run if it is not on disk.

    Args:
        store: the stages of a study.
        stage: the stage.

    Returns:
        Its result.

    Raises:
        BusyError: if another process runs it, or a stage before it.
        RunsError: if the folder can't be used, or the disk is full.
    """
    finished = read(store.folder, stage)
    if finished is not None:
        return finished
    inputs = {} if stage.parent is None else arrays(store, stage.parent)
    with _locked(store, stage) as path:
        finished = read(store.folder, stage)  # another process may have run it
        if finished is None:
            if path.exists():  # only the process with the lock moves it
                checkpoint.quarantine(path.parent)
            finished = _run(store, stage, inputs)
    return finished


def arrays(store: Store, stage: Stage) -> dict[str, Any]:
    """Return the arrays of a stage and of all before it, the newest of each name.

    Args:
        store: the stages of a study.
        stage: the stage.

    Returns:
        Trees of arrays; a stage whose arrays are corrupt is run again.

    Raises:
        BusyError: if another process runs a stage that is missing.
        RunsError: if the folder can't be used, or the disk is full.
    """
    if stage.id not in store.arrays:
        finished = result(store, stage)
    if stage.id not in store.arrays:  # it was on disk
        before = {} if stage.parent is None else arrays(store, stage.parent)
        try:
            own = _load(store, stage, finished)
        except (CorruptFileError, FileNotFoundError):
            with _locked(store, stage) as path:
                try:
                    own = _load(store, stage, finished)  # another process ran it again
                except (CorruptFileError, FileNotFoundError):
                    if path.parent.exists():
                        checkpoint.quarantine(path.parent)
                    _run(store, stage, before)
                    return store.arrays[stage.id]
        _remember(store, stage, {**before, **own})
    store.arrays.move_to_end(stage.id)
    return store.arrays[stage.id]


@contextlib.contextmanager
def _locked(store: Store, stage: Stage) -> Iterator[Path]:
    path = _path(store.folder, stage)
    with contextlib.ExitStack() as stack:
        with files.disk_errors(path.parent):
            stack.enter_context(locks.lock(store.folder, stage.id, wait=False))
        yield path


def _load(store: Store, stage: Stage, finished: Result) -> dict[str, Any]:
    folder = _path(store.folder, stage).parent / "arrays"
    return checkpoint.load(folder) if finished.arrays else {}


def _remember(store: Store, stage: Stage, trees: dict[str, Any]) -> None:
    store.arrays[stage.id] = sharding.gather_to_host(trees)
    while len(store.arrays) > 1 and _size(store.arrays) > IN_MEMORY:
        store.arrays.popitem(last=False)


def _size(trees: Any) -> int:
    """Return the bytes of all arrays; stages share those of the stages before them."""
    arrays = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(dict(trees))}
    return sum(arrays.values())


def _run(store: Store, stage: Stage, inputs: dict[str, Any]) -> Result:
    """Run a stage, and write it to disk: `stage.json` last."""
    store.on_progress(stage, 0, None)
    epochs: list[Mapping[str, float]] = []

    def on_epoch(history: Mapping[str, float]) -> None:
        epochs.append(history)
        store.on_progress(stage, len(epochs), history)

    kind, mesh = KINDS[stage.kind], None
    read_arrays = {name: inputs[name] for name in kind.reads if name in inputs}
    start = time.perf_counter()
    if store.mesh is not None and kind.uses_mesh:
        mesh = sharding.make_mesh(data=store.mesh[0], model=store.mesh[1])
        on_device = sharding.shard_params(read_arrays, mesh)
    else:
        on_device = jax.tree.map(jnp.asarray, read_arrays)
    bench = workbench.Bench(store.source, on_epoch, mesh)
    new, facts = kind.run(stage.settings, on_device, bench)
    jax.block_until_ready(new)
    seconds = time.perf_counter() - start
    made = {**provenance.describe(), "mesh": store.mesh and list(store.mesh)}
    finished = Result(tuple(sorted(new)), facts, seconds, made)
    path = _path(store.folder, stage)
    with files.disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.remove(path.parent / "arrays")  # of a run that was killed
        if new:
            checkpoint.save(path.parent / "arrays", new)
        files.write_json(path, {**stages.identity(stage), **finished._asdict()})
    if kind.makes_arrays:
        _remember(store, stage, {**inputs, **new})
    return finished
