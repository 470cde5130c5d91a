"""Finished stages on disk: each runs once, and is read back wherever it is needed.

runs/<study>/stages/<stage id>/arrays      what it made, through Orbax
runs/<study>/stages/<stage id>/stage.json  what it noted; its existence means finished
"""

import functools
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxprune import checkpoint, data
from jaxprune.study import records, work, workbench
from jaxprune.study.records import RunsError
from jaxprune.study.stages import Stage

# tell(stage, epoch, history): a stage begins (epoch 0, None) or an epoch of it has
# ended.
Tell: TypeAlias = Callable[[Stage, int, Mapping[str, float] | None], None]

HELD = 12  # stages kept in memory: the initial and the dense weights stay, old cells go


class Store(NamedTuple):
    """Where stages are kept, and the arrays of the latest ones in memory.

    folder: `runs/<study>`; found: where the data set lies; held: all arrays up to a
    stage, by its id, on the host, so that the device holds those of one stage only.
    """

    folder: Path
    found: data.Found
    held: OrderedDict[str, dict[str, Any]]


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


def run_stage(stage: Stage, inputs: dict[str, Any], store: Store, tell: Tell) -> Ran:
    """Run a stage, or read it if it is finished.

    Args:
        stage: which one.
        inputs: arrays of the stages before it.
        store: where it is kept.
        tell: told of its progress.

    Returns:
        Its arrays and facts; call `finish` before the stage counts as finished.

    Raises:
        RunsError: if what is on disk was made with other settings.
    """
    path = _path(store.folder, stage.id)
    identity = {"kind": stage.kind, "settings": dict(stage.own), "parent": stage.parent}
    if path.exists():
        return _read(stage, path, identity, inputs, store)
    tell(stage, 0, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    epoch = 0

    def on_epoch(history: Mapping[str, float]) -> None:
        nonlocal epoch
        epoch += 1
        tell(stage, epoch, history)

    began = time.perf_counter()
    on_device = jax.tree.map(jnp.asarray, inputs)
    made = work.run(stage, on_device, workbench.Bench(store.found, on_epoch))
    jax.block_until_ready(made.arrays)
    spent = time.perf_counter() - began
    stored = path.parent / "arrays"
    if stored.exists():  # of a run that was killed before the stage was finished
        shutil.rmtree(stored)
    if made.arrays:
        checkpoint.save(stored, made.arrays)

    def finish() -> Mapping[str, Any]:
        late = {} if made.late is None else made.late()
        facts = {**made.facts, **late}
        names = sorted(made.arrays)
        noted = {**identity, "arrays": names, "facts": facts, "seconds": spent}
        records.write_json(path, noted)
        return noted

    if made.late is None:
        noted = finish()
        finish = lambda: noted
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
    noted = records.read_json(path, repair)
    if not isinstance(noted, dict) or {n: noted.get(n) for n in identity} != identity:
        raise RunsError(
            f"{path} belongs to other settings than its name says. {repair}"
        )
    if not {"arrays", "facts", "seconds"} <= set(noted) or not _is_told(stage, noted):
        raise RunsError(f"{path} is not whole. {repair}")
    arrays = store.held.get(stage.id)
    if arrays is None:
        stored = path.parent / "arrays"
        try:
            arrays = {**inputs, **(checkpoint.load(stored) if noted["arrays"] else {})}
        except (ValueError, FileNotFoundError) as error:
            raise RunsError(f"{stored} can't be read. {repair}") from error
    return Ran(_hold(stage, arrays, store), noted["facts"], lambda: noted)


def _is_told(stage: Stage, noted: Mapping[str, Any]) -> bool:
    facts = noted["facts"]
    return isinstance(facts, dict) and (
        bool(facts.get("diverged")) or work.FACTS.get(stage.kind, set()) <= set(facts)
    )


def _hold(stage: Stage, arrays: dict[str, Any], store: Store) -> dict[str, Any]:
    held = store.held[stage.id] = jax.device_get(arrays)
    store.held.move_to_end(stage.id)
    while len(store.held) > HELD:
        store.held.popitem(last=False)
    return held
