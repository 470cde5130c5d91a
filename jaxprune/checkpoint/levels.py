"""Resumable levels of iterative magnitude pruning."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxprune import imp, masks, sharding, tree
from jaxprune.checkpoint.fingerprint import fingerprint
from jaxprune.checkpoint.store import (
    exists,
    load,
    quarantine,
    read,
    remove,
    restore_structure,
    save,
)
from jaxprune.disk import CorruptFileError

# step(state, density) -> (State, Info): imp.step with everything else bound.
Step: TypeAlias = Callable[..., tuple[imp.State, imp.Info]]


def _options(step: Step) -> str | None:
    """List the options of a step, defaults included: strings, numbers, bools, prunable."""
    try:
        parameters = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):  # such as a function written in C
        return None
    options = {p.name: p.default for p in parameters if p.default is not p.empty}
    chosen = options.pop("prunable", None)
    if chosen is not None:
        kept = [
            name for name, is_prunable in tree.by_name(chosen).items() if is_prunable
        ]
        options["prunable"] = ", ".join(kept)
    simple = [
        f"{name}={value}"
        for name, value in sorted(options.items())
        if isinstance(value, str | bool | int | float)
    ]
    return "; ".join(simple) or None


def _save_level(
    path: Path, requested: float, state: imp.State, step: Step, started_from: str
) -> None:
    """Run a level; write the tree that it rewinds to only where it changed."""
    next_state, info = step(state, density=requested)
    rewind_point = "as before"
    if next_state.params is not state.params:
        rewind_point = f"rewind_{path.name}"
        folder = path.with_name(rewind_point)
        remove(folder)  # of a run that was killed before the level ended
        save(folder, {"params": next_state.params})
    record = {
        "requested": requested,
        "started_from": started_from,
        "options": _options(step),
        "rewind_point": rewind_point,
        "level": next_state.level,
        "mask": next_state.mask,
        "key": next_state.key,
        "info": info._replace(metrics=None),
        "metrics": info.metrics,
    }
    save(path, {name: part for name, part in record.items() if part is not None})


class OtherStartError(ValueError):
    """A saved level was started from another state."""


def _load_level(
    path: Path, requested: float, state: imp.State, step: Step, started_from: str
) -> tuple[imp.State, imp.Info]:
    """Read a level, with the tree structure and the kind of key of the state before it."""
    info_like = imp.Info(state.params, None, 0.0, 0.0)
    places = {"mask": state.mask, "info": info_like}
    record = read(path, places)
    if record["requested"] != requested:
        raise ValueError(
            f"the level in {path} was pruned to density {record['requested']}, but "
            f"{requested} is requested. Pass the densities of the run that wrote it, or "
            "another folder."
        )
    if record["started_from"] != started_from:
        raise OtherStartError(
            f"the level in {path} started from other weights, another mask or another key. "
            "Pass the state of the run that wrote it, or another folder."
        )
    saved, options = record.get("options"), _options(step)
    if saved and options and saved != options:
        raise ValueError(
            f"the level in {path} was run with the options {saved}, but the step now has "
            f"{options}. Pass those of the run that wrote it, or another folder."
        )
    params = state.params
    if record["rewind_point"] != "as before":
        folder = path.with_name(record["rewind_point"])
        try:
            params = load(folder, {"params": state.params})["params"]
        except FileNotFoundError as error:  # the level is complete, so it was there
            raise CorruptFileError(path, f"{folder.name} is missing") from error
    key = restore_structure({"key": record["key"]}, {"key": state.key}, path)["key"]
    mask = restore_structure(record["mask"], state.mask, path)
    info = record["info"]
    info = imp.Info(
        restore_structure(info["params"], state.params, path),
        record.get("metrics"),
        info["trained_density"],
        info["pruned_density"],
    )
    return imp.State(record["level"], params, mask, key), info


def levels(
    folder: str | os.PathLike,
    state: imp.State,
    step: Step,
    densities: Any,
) -> Iterator[tuple[imp.State, imp.Info]]:
    """Run iterative magnitude pruning, each level saved before the next begins.

    `level_0001` and so on hold the state after a level and its info;
    `rewind_level_0001` holds the tree that all levels rewind to. A run that was killed at
    any moment resumes after its newest complete level. Every level starts from what was
    read back, so on a device that computes deterministically an interrupted run ends with
    the same bits as an uninterrupted one.

    A folder belongs to one run. Resuming checks the state, the densities, and the options in
    the signature of `step`, defaults included: strings, numbers, bools and `prunable`. It
    does not see what a lambda hides, or the code of `train_fn`: use a new folder after
    changing either.

    Args:
        folder: where the levels are saved; one folder per run.
        state: the initial state, `imp.init(params, key)`.
        step: `step(state, density) -> (state, info)`, such as
            `functools.partial(imp.step, train_fn=train_fn, rewind="early")`.
        densities: a list, kept / prunable after each level.

    Yields:
        State and info of every level in turn; finished ones as they were saved, with the
        metrics in dicts and lists.

    Raises:
        TypeError: if `state` is not an `imp.State` or `densities` not a list.
        ValueError: if a density is out of range, or a saved level was started from another
            state, was pruned to another density, or was run with other options.

    Example:
        >>> import functools, jax, tempfile
        >>> import jax.numpy as jnp
        >>> train_fn = lambda params, mask, key, level: imp.TrainResult(params)
        >>> step = functools.partial(imp.step, train_fn=train_fn, rewind="init")
        >>> state = imp.init({"w": jnp.arange(8.0).reshape(2, 4)}, jax.random.key(0))
        >>> for state, info in levels(tempfile.mkdtemp(), state, step, [0.5, 0.25]):
        ...     print(state.level, info.trained_density, info.pruned_density)
        1 1.0 0.5
        2 0.5 0.25
    """
    if not isinstance(state, imp.State):
        raise TypeError(
            f"state is a {type(state).__name__}. Pass imp.init(params, key)."
        )
    if not isinstance(densities, Sequence | np.ndarray):
        raise TypeError(
            f"densities is {densities}. Pass a list, one density per level, such as "
            "masks.densities(0.1, 3)."
        )
    requested_densities = [masks.check_density(density) for density in densities]
    root = Path(folder).absolute()
    if root.is_file():
        raise FileExistsError(f"{folder} is a file. Pass a folder.")
    regenerated = False
    for number, requested in enumerate(requested_densities, start=1):
        path = root / f"level_{number:04d}"
        # Everything a level starts from, so that no run resumes another run's levels.
        started_from = fingerprint((state.params, state.mask, state.key))
        level = None
        if sharding.broadcast_from_first(exists(path)):
            try:
                level = _load_level(path, requested, state, step, started_from)
            except CorruptFileError as error:
                regenerated = True
                # If what the level rewinds to is corrupt, both are regenerated.
                for corrupt in sorted({path, error.path}):
                    quarantine(corrupt)
            except OtherStartError:
                if not regenerated:
                    raise
                # The regenerated level before it has other bits: not every device sums
                # in the same order each time.
                quarantine(path)
        if level is None:
            _save_level(path, requested, state, step, started_from)
            level = _load_level(path, requested, state, step, started_from)
        state, _ = level
        yield level
