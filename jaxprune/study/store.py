"""Finished stages on disk: each runs once, and is read back wherever it is needed.

runs/<study>/stages/<stage id>/arrays      what it made, through Orbax
runs/<study>/stages/<stage id>/stage.json  what it noted; its existence means finished
runs/<study>/locks/<stage id>.lock         held by the process that makes it
runs/<study>/locks/<stage id>.owner        that process, for people

The system gives up a lock with the process that held it, however that ended, so that no
lock is ever stale.
"""

import contextlib
import functools
import json
import os
import platform
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import filelock
import jax
import jax.numpy as jnp

from jaxprune import checkpoint, data, sharding
from jaxprune.study import files, work, workbench
from jaxprune.study.files import DamagedError, RunsError
from jaxprune.study.stages import Stage

# tell(stage, epoch, history): a stage begins (epoch 0, None) or an epoch of it has
# ended.
Tell: TypeAlias = Callable[[Stage, int, Mapping[str, float] | None], None]

TIMED = ("profile", "compact")  # nothing else may run beside them
ALONE = ("initialise", "inspect", *TIMED)  # on one device

HELD = 12  # stages kept in memory: the initial and the dense weights stay, old cells go


class BusyError(Exception):
    """Another process makes this stage; its text says which."""


class Store(NamedTuple):
    """Where stages are kept, and the arrays of the latest ones in memory.

    folder: `runs/<study>`; found: where the data set lies; held: all arrays up to a
    stage, by its id, on the host, so that the device holds those of one stage only; mesh:
    devices that share the work of a stage, as (data, model), or None for one.
    """

    folder: Path
    found: data.Found
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


def is_finished(folder: Path, stage_id: str) -> bool:
    """Tell whether a stage is on disk."""
    return _path(folder, stage_id).exists()


def _path(folder: Path, stage_id: str) -> Path:
    return folder / "stages" / stage_id / "stage.json"


def run_stage(
    stage: Stage,
    inputs: dict[str, Any],
    store: Store,
    tell: Tell,
    *,
    wait: bool = True,
) -> Ran:
    """Run a stage, or read it if it is finished.

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
    path = _path(store.folder, stage.id)
    identity = {"kind": stage.kind, "settings": dict(stage.own), "parent": stage.parent}
    if sharding.agreed(path.exists()):
        with contextlib.suppress(DamagedError):
            return _read(stage, path, identity, inputs, store)
    release = lambda: None
    if sharding.is_first():
        with files.room(path.parent):
            release = _claim(
                store.folder / "locks", stage.id, wait or jax.process_count() > 1
            )
    try:
        # Made meanwhile; or damaged, and only who has the lock sets it aside.
        if sharding.agreed(path.exists()):
            try:
                ran = _read(stage, path, identity, inputs, store)
                release()
                return ran
            except DamagedError:
                checkpoint.set_aside(path.parent)
        ran = _make(stage, path, identity, inputs, store, tell, release)
    except BaseException:
        release()
        raise
    return ran


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Keep other processes out of what changes a common file of a runs folder."""
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(locks / f"{name}.lock"):
        yield


def _claim(folder: Path, stage_id: str, wait: bool) -> Callable[[], None]:
    """Take the lock of a stage; return what gives it back, however often it is called."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not thread_local: the thread that writes a stage gives its lock back.
    lock = filelock.FileLock(folder / f"{stage_id}.lock", thread_local=False)
    owner = folder / f"{stage_id}.owner"
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout as error:
        raise BusyError(f"{stage_id} is being made by {_owner(owner)}") from error
    me = {"pid": os.getpid(), "host": platform.node()}
    owner.write_text(json.dumps(me))

    def release() -> None:
        if lock.is_locked:
            owner.unlink(missing_ok=True)
            lock.release()

    return release


def _owner(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f"process {held['pid']} on {held['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it came or went just now
        return "another process"


def _make(
    stage: Stage,
    path: Path,
    identity: dict[str, Any],
    inputs: dict[str, Any],
    store: Store,
    tell: Tell,
    release: Callable[[], None],
) -> Ran:
    tell(stage, 0, None)
    epoch = 0

    def on_epoch(history: Mapping[str, float]) -> None:
        nonlocal epoch
        epoch += 1
        tell(stage, epoch, history)

    began = time.perf_counter()
    mesh = None
    if store.mesh is not None and stage.kind not in ALONE:
        mesh = sharding.make(data=store.mesh[0], model=store.mesh[1])
    on_device = (
        sharding.spread(inputs, mesh) if mesh else jax.tree.map(jnp.asarray, inputs)
    )
    if stage.kind in TIMED and not sharding.is_first():
        made = workbench.Output({}, {}, dict)  # the first process measures, undisturbed
    else:
        made = work.run(stage, on_device, workbench.Bench(store.found, on_epoch, mesh))
    jax.block_until_ready(made.arrays)
    spent = time.perf_counter() - began

    def write(late: Mapping[str, Any]) -> Mapping[str, Any]:
        noted = {
            **identity,
            "arrays": sorted(made.arrays),
            "facts": {**made.facts, **late},
            "seconds": spent,
        }
        if sharding.is_first():
            files.write_json(path, noted)
        release()
        sharding.meet(stage.id)
        return noted

    def write_all() -> Mapping[str, Any] | None:
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = path.parent / "arrays"
        # Of a run that was killed before the stage was finished.
        checkpoint.remove(stored)
        if made.arrays:
            checkpoint.save(stored, made.arrays)
        return write({}) if made.late is None else None

    with files.room(path.parent):
        noted = files.finish(write_all)

    def finish() -> Mapping[str, Any]:
        if noted is not None:
            return noted
        late = made.late() if made.late is not None else {}
        with files.room(path.parent):
            return files.finish(lambda: write(late))

    held = _hold(stage, {**inputs, **made.arrays}, store)
    return Ran(held, made.facts, functools.cache(finish))


def _read(
    stage: Stage,
    path: Path,
    identity: Mapping[str, Any],
    inputs: dict[str, Any],
    store: Store,
) -> Ran:
    repair = f"Delete the folder {path.parent} and run again."
    noted = files.read_json(path)
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
        except (checkpoint.DamagedError, FileNotFoundError) as error:
            raise DamagedError(path.parent, f"its arrays: {error}") from error
        arrays = {**inputs, **stored}
    return Ran(_hold(stage, arrays, store), noted["facts"], lambda: noted)


def _is_told(stage: Stage, noted: Mapping[str, Any]) -> bool:
    facts = noted["facts"]
    return isinstance(facts, dict) and (
        bool(facts.get("diverged")) or work.FACTS.get(stage.kind, set()) <= set(facts)
    )


def _hold(stage: Stage, arrays: dict[str, Any], store: Store) -> dict[str, Any]:
    held = store.held[stage.id] = sharding.on_host(arrays)
    store.held.move_to_end(stage.id)
    while len(store.held) > HELD:
        store.held.popitem(last=False)
    return held
