"""Saving and resuming through Orbax; the only module that imports it."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from jaxprune import imp, tree
from jaxprune.types import Fraction

# step(state, density) -> (State, Info): imp.step with all but these bound.
Step: TypeAlias = Callable[..., tuple[imp.State, imp.Info]]


def save(path: str | os.PathLike, arrays: PyTree) -> None:
    """Write a tree of arrays as one folder, whole or not at all.

    Orbax writes beside it and renames, so a folder under the final name is complete.

    Args:
        path: a folder that does not exist yet; an incomplete one is replaced.
        arrays: arrays and numbers in dicts and lists; of a key, its
            `jax.random.key_data`.

    Raises:
        ValueError: if a complete checkpoint is there.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save(f"{folder}/weights", {"w": jax.numpy.ones(2)})
        >>> load(f"{folder}/weights")
        {'w': Array([1., 1.], dtype=float32)}
    """
    if os.path.isdir(path) and not exists(path):
        shutil.rmtree(path)  # what a killed run left of it
    ocp.save(_absolute(path), arrays)


def load(path: str | os.PathLike) -> PyTree:
    """Read a tree of arrays back, bit for bit, onto the default device.

    Args:
        path: a folder that `save` wrote.

    Returns:
        The tree, in dicts and lists.

    Raises:
        FileNotFoundError: if there is no complete checkpoint at `path`.
        ValueError: if it can't be read.
    """
    path = _absolute(path)
    if not exists(path):
        raise FileNotFoundError(
            f"{path} is no complete checkpoint. Delete it, if it is there, and run again "
            "what writes it."
        )

    def on_host(leaf: Any) -> Any:
        return np.empty(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf

    # By way of the host: Orbax would commit arrays to a device, maybe to that of
    # another machine, and what was compiled for uncommitted ones would compile once
    # more.
    try:
        held = ocp.load(path, jax.tree.map(on_host, ocp.metadata(path).metadata))
    except Exception as error:  # Orbax and its stores have a class for every damage
        raise ValueError(
            f"the checkpoint {path} is damaged ({type(error).__name__}). Delete that "
            "folder and run again what writes it."
        ) from error
    return jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, held
    )


def exists(path: str | os.PathLike) -> bool:
    """Tell whether a complete checkpoint lies at `path`."""
    # Orbax takes any folder for a checkpoint until it loads it; it renames this file, with
    # all the rest, into place last.
    whole = os.path.exists(os.path.join(path, "_CHECKPOINT_METADATA"))
    return whole and ocp.is_orbax_checkpoint(_absolute(path))


def _absolute(path: str | os.PathLike) -> str:
    return os.path.abspath(path)


def levels(
    folder: str | os.PathLike,
    state: imp.State,
    step: Step,
    densities: Sequence[Fraction],
) -> Iterator[tuple[imp.State, imp.Info]]:
    """Run iterative magnitude pruning, each level saved before the next begins.

    `level_0001` and so on hold the state after a level and what the level observed;
    `rewind_level_0001` the weights of the early iteration that all levels rewind to. A
    run that was killed at any moment resumes after its newest whole level. Every level
    begins from what was read back, so an interrupted run ends with the bits of an
    uninterrupted one.

    Args:
        folder: where the levels are saved; one run each.
        state: the state to begin with, `imp.init(params, key)`.
        step: `step(state, density) -> (state, info)`, such as
            `functools.partial(imp.step, train_fn=train_fn, rewind="early")`.
        densities: kept / prunable after each level.

    Yields:
        State and info of every level in turn; of finished ones as they were saved.

    Raises:
        ValueError: if a saved level was begun from another state, or reached another
            density than is asked for now.

    Example:
        >>> import functools, tempfile
        >>> import jax.numpy as jnp
        >>> train_fn = lambda params, mask, key, level: imp.Trained(params)
        >>> step = functools.partial(imp.step, train_fn=train_fn, rewind="init")
        >>> state = imp.init({"w": jnp.arange(8.0).reshape(2, 4)}, jax.random.key(0))
        >>> for state, info in levels(tempfile.mkdtemp(), state, step, [0.5, 0.25]):
        ...     print(state.level, info.density)
        1 0.5
        2 0.25
    """
    root = Path(folder).absolute()
    for number, density in enumerate(densities, start=1):
        path = root / f"level_{number:04d}"
        if not exists(path):
            _save_level(root, path, float(density), state, step)
        state, info = _load_level(root, path, float(density), state)
        yield state, info


def _save_level(
    root: Path, path: Path, asked: float, state: imp.State, step: Step
) -> None:
    """Run a level; write what it rewinds to only where that changed, as it does once."""
    reached, info = step(state, density=asked)
    rewind = "as before"
    if reached.rewind is not state.rewind:
        rewind = f"rewind_{path.name}"
        if (root / rewind).exists():  # of a run that was killed before the level ended
            shutil.rmtree(root / rewind)
        save(root / rewind, {"params": reached.rewind})
    held = {
        "asked": asked,
        "begun_from": _fingerprint(state),
        "rewind": rewind,
        "level": reached.level,
        "mask": reached.mask,
        "key": jax.random.key_data(reached.key),
        "trained": info.trained,
        "density": info.density,
    }
    save(path, held if info.metrics is None else {**held, "metrics": info.metrics})


def _load_level(
    root: Path, path: Path, asked: float, state: imp.State
) -> tuple[imp.State, imp.Info]:
    """Read a level into the containers and the kind of key of the state before it."""
    held = load(path)
    if held["asked"] != asked:
        raise ValueError(
            f"{path} was pruned to density {held['asked']}, but {asked} is asked for. Pass "
            "the densities of the run that began, or another folder."
        )

    if held["begun_from"] != _fingerprint(state):
        raise ValueError(
            f"{path} was begun from other weights, another mask or another key, or from "
            "another network than the state passed. Pass another folder."
        )

    def params(saved: PyTree) -> PyTree:
        # By name: a list of eleven layers comes back as a dict, where '10' is before
        # '2'.
        found = dict(zip(tree.names(saved), jax.tree.leaves(saved), strict=True))
        leaves = [found[name] for name in tree.names(state.rewind)]
        return jax.tree.unflatten(jax.tree.structure(state.rewind), leaves)

    rewind = state.rewind
    if held["rewind"] != "as before":
        rewind = params(load(root / held["rewind"])["params"])
    key = jax.random.wrap_key_data(held["key"], impl=jax.random.key_impl(state.key))
    mask, trained = params(held["mask"]), params(held["trained"])
    info = imp.Info(trained, held.get("metrics"), held["density"])
    return imp.State(held["level"], rewind, mask, key), info


def _fingerprint(state: imp.State) -> str:
    """Hash all that a level begins from, so that no run takes up another's levels."""
    digest = hashlib.sha256()
    for name, leaf in zip(
        tree.names((state.rewind, state.mask)),
        jax.tree.leaves((state.rewind, state.mask)),
        strict=True,
    ):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    digest.update(np.asarray(jax.random.key_data(state.key)).tobytes())
    return digest.hexdigest()
