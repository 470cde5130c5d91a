"""Saving and resuming through Orbax; the only module that imports it."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, PyTree, Shaped, UInt32
from orbax.checkpoint import v1 as ocp

from jaxprune import disk, imp, sharding, tree
from jaxprune.disk import DamagedError as DamagedError
from jaxprune.types import Fraction

# step(state, density) -> (State, Info): imp.step with all but these bound.
Step: TypeAlias = Callable[..., tuple[imp.State, imp.Info]]


def _absolute(path: str | os.PathLike) -> str:
    return os.path.abspath(path)


_CHECKSUMS = "checksums.json"


def exists(path: str | os.PathLike) -> bool:
    """Tell whether a complete checkpoint lies at `path`."""
    return os.path.exists(os.path.join(path, _CHECKSUMS))


def _checksums(place: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder but those with its checksums."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_file() and _CHECKSUMS not in path.name:
            found[path.relative_to(place).as_posix()] = disk.checksum(path)
    return found


def remove(*folders: Path) -> None:
    """Delete folders, whether they are there or not; all processes call this."""
    if sharding.is_first():
        for folder in folders:
            if folder.is_symlink():
                folder.unlink()
            shutil.rmtree(folder, ignore_errors=True)
    sharding.meet("removed")


def set_aside(path: str | os.PathLike) -> None:
    """Rename what is damaged, so that it can be made anew and nothing is lost; warn.

    Args:
        path: a file or folder; all processes call this.
    """
    sharding.meet("found damaged")
    if sharding.is_first():
        disk.set_aside(Path(path))
    sharding.meet("set aside")


def _unfinished(place: Path) -> list[Path]:
    return list(place.parent.glob(f"{place.name}.orbax-checkpoint-tmp*"))


def _make_way(place: Path) -> None:
    """Remove what a run that was killed has left; refuse what is not ours to remove."""
    if sharding.agreed(exists(place)):
        raise ValueError(f"{place} holds a checkpoint already. Pass another folder.")
    if sharding.agreed((place / "_CHECKPOINT_METADATA").exists()):
        set_aside(place)  # killed at its end, or an older version's
    elif sharding.agreed(place.exists() and (place.is_file() or any(place.iterdir()))):
        raise ValueError(
            f"{place} is there and is no checkpoint. Pass a folder that does not exist yet."
        )
    remove(place, *_unfinished(place))


def _remove_unfinished(place: Path) -> None:
    """Remove what can't be written to its end, without waiting for other processes."""
    for folder in (place, *_unfinished(place)):
        shutil.rmtree(folder, ignore_errors=True)


def _held_by_all(leaf: Any) -> Any:
    """Take an array that each process has of its own to the host; the first writes it."""
    own = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
    return np.asarray(leaf) if own and jax.process_count() > 1 else leaf


def save(path: str | os.PathLike, arrays: PyTree) -> None:
    """Write a tree of arrays as one folder, whole or not at all.

    Orbax writes beside it and renames; the checksums of all its files are written last,
    and a folder that has them is complete. With several processes all of them call this,
    each with its part of the arrays, and see the same disk.

    Args:
        path: a folder that does not exist yet, or is empty.
        arrays: arrays and numbers in dicts and lists; of a key, its
            `jax.random.key_data`.

    Raises:
        ValueError: if a checkpoint, or something else, is there.
        OSError: if it can't be written; nothing is left at `path`.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save(f"{folder}/weights", {"w": jax.numpy.ones(2)})
        >>> load(f"{folder}/weights")
        {'w': Array([1., 1.], dtype=float32)}
    """
    place = Path(_absolute(path))
    _make_way(place)
    with sharding.together():
        try:
            ocp.save(str(place), jax.tree.map(_held_by_all, arrays))
            if sharding.is_first():
                with disk.replacing(place / _CHECKSUMS) as file:
                    file.write(json.dumps(_checksums(place), indent=1).encode())
        except OSError:
            _remove_unfinished(place)
            raise
        except ValueError as error:
            # TensorStore's errors are ValueErrors, whatever the system said.
            said = re.search(r"os_error_code='(\d+)'", str(error))
            if said is None:
                raise
            _remove_unfinished(place)
            number = int(said[1])
            raise OSError(number, os.strerror(number), str(place)) from error


def _damage(place: Path) -> str | None:
    """Compare the files with their checksums: what Orbax says of damage nobody can read."""
    try:
        written = json.loads((place / _CHECKSUMS).read_bytes())
    except ValueError:
        written = None
    if not isinstance(written, dict):
        return f"{_CHECKSUMS} can't be read"
    found = _checksums(place)
    differing = [
        name
        for name in sorted({*written, *found})
        if written.get(name) != found.get(name)
    ]
    return f"{differing[0]} is not what was written" if differing else None


def load(path: str | os.PathLike, like: PyTree = None) -> PyTree:
    """Read a tree of arrays back, bit for bit, its files compared with their checksums.

    Args:
        path: a folder that `save` wrote.
        like: arrays of these names go where its arrays are, each process reading its part,
            if those have a `NamedSharding`. All others go to the default device.

    Returns:
        The tree, in dicts and lists.

    Raises:
        FileNotFoundError: if there is no complete checkpoint at `path`.
        DamagedError: a ValueError; if a file of it is not what was written.
    """
    path = _absolute(path)
    if not sharding.agreed(exists(path)):
        raise FileNotFoundError(
            f"{path} is no complete checkpoint. Delete it, if it is there, and run again "
            "what writes it."
        )
    why = _damage(Path(path)) if sharding.is_first() else None
    if sharding.agreed(why is not None):
        raise DamagedError(path, why or "says the first process")
    places = dict(zip(tree.names(like), jax.tree.leaves(like), strict=True))

    def place(name: str, leaf: Any) -> Any:
        if not hasattr(leaf, "shape"):
            return leaf
        where = getattr(places.get(name), "sharding", None)
        if isinstance(where, NamedSharding):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        # By way of the host: Orbax would commit arrays to a device, maybe to that of
        # another machine, and what was compiled for uncommitted ones would compile once
        # more.
        return np.empty(leaf.shape, leaf.dtype)

    held = ocp.load(path, tree.map_named(place, ocp.metadata(path).metadata))
    return jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, held
    )


def _scrambled(words: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Let every bit of a word change every other: the end of MurmurHash3, a bijection."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ (words >> jnp.uint32(shift))) * jnp.uint32(factor)
    return words ^ (words >> jnp.uint32(16))


@jax.jit
def _sums(leaf: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    """Add up the words of an array, each scrambled with its position, in two ways."""
    bits = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = position * jnp.uint32(size) + along
    totals = [
        _scrambled(_scrambled(position + jnp.uint32(seed)) ^ words).sum(
            dtype=jnp.uint32
        )
        for seed in (0x9E3779B9, 0x3C6EF372)
    ]
    return jnp.stack(totals)


def fingerprint(arrays: PyTree) -> str:
    """Name a tree of arrays by its content, however the arrays are sharded.

    Only sums leave the devices, 64 bits an array, so that it costs one reading of the
    arrays and gathers none of them. Made against accidents, not against somebody who looks
    for two trees of one name.

    Args:
        arrays: arrays in any containers; of a key, its `jax.random.key_data`.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> fingerprint({"w": jnp.ones(2)}) == fingerprint({"w": np.ones(2, np.float32)})
        True
    """
    leaves = dict(zip(tree.names(arrays), jax.tree.leaves(arrays), strict=True))
    lines = [
        f"{name} {leaf.dtype} {leaf.shape} {np.asarray(_sums(leaf)).tolist()}"
        for name, leaf in leaves.items()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _fingerprint(state: imp.State) -> str:
    """Name all that a level begins from, so that no run takes up another's levels."""
    return fingerprint((state.rewind, state.mask, jax.random.key_data(state.key)))


def _save_level(
    root: Path,
    path: Path,
    asked: float,
    state: imp.State,
    step: Step,
    begun_from: str,
) -> None:
    """Run a level; write what it rewinds to only where that changed, as it does once."""
    reached, info = step(state, density=asked)
    rewind = "as before"
    if reached.rewind is not state.rewind:
        rewind = f"rewind_{path.name}"
        remove(root / rewind)  # of a run that was killed before the level ended
        save(root / rewind, {"params": reached.rewind})
    held = {
        "asked": asked,
        "begun_from": begun_from,
        "rewind": rewind,
        "level": reached.level,
        "mask": reached.mask,
        "key": jax.random.key_data(reached.key),
        "trained": info.trained,
        "density": info.density,
    }
    save(path, held if info.metrics is None else {**held, "metrics": info.metrics})


class _OtherBeginningError(ValueError):
    """A saved level was begun from another state."""


def _load_level(
    root: Path, path: Path, asked: float, state: imp.State, begun_from: str
) -> tuple[imp.State, imp.Info]:
    """Read a level into the containers and the kind of key of the state before it."""
    held = load(path, {"mask": state.mask, "trained": state.rewind})
    if held["asked"] != asked:
        raise ValueError(
            f"{path} was pruned to density {held['asked']}, but {asked} is asked for. Pass "
            "the densities of the run that began, or another folder."
        )

    if held["begun_from"] != begun_from:
        raise _OtherBeginningError(
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
        try:
            saved = load(root / held["rewind"], {"params": state.rewind})
        except FileNotFoundError as error:  # of a whole level, so it was there
            raise DamagedError(path, f"{held['rewind']} is gone") from error
        rewind = params(saved["params"])
    key = jax.random.wrap_key_data(held["key"], impl=jax.random.key_impl(state.key))
    mask, trained = params(held["mask"]), params(held["trained"])
    info = imp.Info(trained, held.get("metrics"), held["density"])
    return imp.State(held["level"], rewind, mask, key), info


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
    remade = False
    for number, density in enumerate(densities, start=1):
        path = root / f"level_{number:04d}"
        begun_from = _fingerprint(state)
        asked = float(density)
        whole = None
        if sharding.agreed(exists(path)):
            try:
                whole = _load_level(root, path, asked, state, begun_from)
            except DamagedError as damage:
                remade = True
                # Where it is what the level rewinds to, both are made anew.
                for damaged in sorted({path, damage.path}):
                    set_aside(damaged)
            except _OtherBeginningError:
                if not remade:
                    raise
                set_aside(path)  # no device that adds up in another order repeats bits
        if whole is None:
            _save_level(root, path, asked, state, step, begun_from)
            whole = _load_level(root, path, asked, state, begun_from)
        state, _ = whole
        yield whole
