"""Finished stages on disk: each runs once, and is read back wherever it is needed.

runs/<study>/stages/<stage id>/arrays      what it made, through Orbax
runs/<study>/stages/<stage id>/stage.json  what it noted; its existence means finished

A stage's name knows neither the devices that make it nor their number: what one machine
made another one takes up.
"""

import contextlib
import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxprune import checkpoint, data, sharding
from jaxprune.disk import CorruptFileError
from jaxprune.study import files, locks, work, workbench
from jaxprune.study.files import RunsError
from jaxprune.study.stages import Stage

# tell(stage, epoch, history): a stage begins (epoch 0, None) or an epoch of it has
# ended.
Tell: TypeAlias = Callable[[Stage, int, Mapping[str, float] | None], None]

TIMED = ("profile", "compact")  # nothing else may run beside them
ON_ONE_DEVICE = ("initialize", "inspect", *TIMED)

HELD = 12  # stages kept in memory: the initial and the dense weights stay, old cells go


class Store(NamedTuple):
    """Where stages are kept, and the arrays of the latest ones in memory.

    folder: `runs/<study>`; found: where the data set lies; held: all arrays up to a
    stage, by its id, on the host, so that the device holds those of one stage only; mesh:
    devices that share the work of a stage, as (data, model), or None for one.
    """

    folder: Path
    found: data.DatasetFiles
    held: OrderedDict[str, dict[str, Any]]
    mesh: tuple[int, int] | None = None


class Ran(NamedTuple):
    """A stage that ran or was read.

    arrays: all up to it; facts: noted so far; finish: waits until it is whole on disk
    and returns what `stage.json` says.
    """

    arrays: dict[str, Any]
    facts: Mapping[str, Any]
    finish: Callable[[], Mapping[str, Any]]


def _path(folder: Path, stage_id: str) -> Path:
    return folder / "stages" / stage_id / "stage.json"


def is_finished(folder: Path, stage_id: str) -> bool:
    """Tell whether a stage is on disk."""
    return _path(folder, stage_id).exists()


def _identity(stage: Stage) -> dict[str, Any]:
    """Return what has to be on disk under the name of a stage."""
    return {"kind": stage.kind, "settings": dict(stage.own), "parent": stage.parent}


def _is_told(stage: Stage, noted: Mapping[str, Any]) -> bool:
    facts = noted["facts"]
    return isinstance(facts, dict) and (
        bool(facts.get("diverged")) or work.FACTS.get(stage.kind, set()) <= set(facts)
    )


def _hold(stage: Stage, arrays: dict[str, Any], store: Store) -> dict[str, Any]:
    held = store.held[stage.id] = sharding.gather_to_host(arrays)
    store.held.move_to_end(stage.id)
    while len(store.held) > HELD:
        store.held.popitem(last=False)
    return held


def _read(stage: Stage, inputs: dict[str, Any], store: Store) -> Ran | None:
    """Read a stage; None if it is not there, or not whole."""
    path = _path(store.folder, stage.id)
    noted = None
    if sharding.broadcast_from_first(path.exists()):
        with contextlib.suppress(
            CorruptFileError, FileNotFoundError
        ):  # or being quarantined
            noted = files.read_json(path)
    whole = sharding.all_hosts_agree(noted is not None)
    if noted is None or not whole:
        return None
    repair = f"Delete the folder {path.parent} and run again."
    identity = _identity(stage)
    if {name: noted.get(name) for name in identity} != identity:
        raise RunsError(
            f"{path} belongs to other settings than its name says. {repair}"
        )
    if not {"arrays", "facts", "seconds"} <= set(noted) or not _is_told(stage, noted):
        raise RunsError(f"{path} is of another version: it lacks facts. {repair}")
    arrays = store.held.get(stage.id)
    if arrays is None:
        try:
            stored = checkpoint.load(path.parent / "arrays") if noted["arrays"] else {}
        except (CorruptFileError, FileNotFoundError):
            return None
        arrays = {**inputs, **stored}
    return Ran(_hold(stage, arrays, store), noted["facts"], lambda: noted)


def _make(
    stage: Stage,
    inputs: dict[str, Any],
    store: Store,
    tell: Tell,
    release: Callable[[], None],
) -> Ran:
    """Run a stage; its lock is given back when it is whole on disk."""
    tell(stage, 0, None)
    epoch = 0

    def on_epoch(history: Mapping[str, float]) -> None:
        nonlocal epoch
        epoch += 1
        tell(stage, epoch, history)

    began = time.perf_counter()
    mesh = None
    if store.mesh is not None and stage.kind not in ON_ONE_DEVICE:
        mesh = sharding.make_mesh(data=store.mesh[0], model=store.mesh[1])
    on_device = (
        sharding.shard_params(inputs, mesh)
        if mesh
        else jax.tree.map(jnp.asarray, inputs)
    )
    if stage.kind in TIMED and not sharding.is_first_process():
        made = workbench.Output({}, {}, dict)  # the first process measures, undisturbed
    else:
        made = work.run(stage, on_device, workbench.Bench(store.found, on_epoch, mesh))
    jax.block_until_ready(made.arrays)
    spent = time.perf_counter() - began

    path = _path(store.folder, stage.id)

    def write_arrays() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = path.parent / "arrays"
        # Of a run that was killed before the stage was finished.
        checkpoint.remove(stored)
        if made.arrays:
            checkpoint.save(stored, made.arrays)

    def write_note(late: Mapping[str, Any]) -> Mapping[str, Any]:
        noted = {
            **_identity(stage),
            "arrays": sorted(made.arrays),
            "facts": {**made.facts, **late},
            "seconds": spent,
        }
        with sharding.fail_together():
            if sharding.is_first_process():
                files.write_json(path, noted)
            release()
        return noted

    noted = None
    with files.disk_errors(path.parent), files.defer_signals():
        write_arrays()
        if made.late is None:
            noted = write_note({})

    def finish() -> Mapping[str, Any]:
        if noted is not None:
            return noted
        try:
            late = made.late() if made.late is not None else {}
            with files.disk_errors(path.parent), files.defer_signals():
                return write_note(late)
        finally:
            release()

    held = _hold(stage, {**inputs, **made.arrays}, store)
    return Ran(held, made.facts, functools.cache(finish))


def run_stage(
    stage: Stage,
    inputs: dict[str, Any],
    store: Store,
    tell: Tell,
    *,
    wait: bool = True,
) -> Ran:
    """Run a stage, or read it if it is finished; what is corrupt of it is quarantined.

    Args:
        stage: which one.
        inputs: arrays of the stages before it.
        store: where it is kept.
        tell: told of its progress.
        wait: for another process that makes the stage.

    Returns:
        Its arrays and facts; call `finish` before the stage counts as finished.

    Raises:
        BusyError: if another process makes it, and `wait` is not set.
        RunsError: if what is on disk was made with other settings, or there is no room
            on the disk.
    """
    ran = _read(stage, inputs, store)
    if ran is not None:
        return ran
    with files.disk_errors(store.folder), sharding.fail_together():
        release = locks.take(store.folder, stage.id, wait=wait)
    try:
        ran = _read(stage, inputs, store)  # made meanwhile?
        if ran is None:
            path = _path(store.folder, stage.id)
            if sharding.broadcast_from_first(
                path.exists()
            ):  # only who has the lock moves it
                checkpoint.quarantine(path.parent)
            return _make(stage, inputs, store, tell, release)
    except BaseException:
        release()
        raise
    release()
    return ran
