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
from jaxprune.disk import CorruptFileError as CorruptFileError
from jaxprune.types import Fraction

# step(state, density) -> (State, Info): imp.step with everything else bound.
Step: TypeAlias = Callable[..., tuple[imp.State, imp.Info]]


def _absolute(path: str | os.PathLike) -> str:
    return os.path.abspath(path)


# Written last: the checksum of every file; and what Orbax can't store: the shapes of
# arrays of size zero, and the kinds of keys.
_CHECKSUMS = "checksums.json"


def exists(path: str | os.PathLike) -> bool:
    """Return whether there is a complete checkpoint at `path`."""
    return os.path.exists(os.path.join(path, _CHECKSUMS))


def _checksums(place: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, except the file of checksums."""
    return {
        path.relative_to(place).as_posix(): disk.checksum(path)
        for path in sorted(place.rglob("*"))
        if path.is_file() and _CHECKSUMS not in path.name
    }


def remove(*folders: Path) -> None:
    """Delete folders that may or may not exist; all processes call this."""
    if sharding.is_first_process():
        for folder in folders:
            if folder.is_symlink():
                folder.unlink()
            shutil.rmtree(folder, ignore_errors=True)
    sharding.barrier("removed")


def quarantine(path: str | os.PathLike) -> None:
    """Rename a corrupt file or folder, so that it can be regenerated; warn.

    Args:
        path: the file or folder; all processes call this.
    """
    sharding.barrier("found corrupt")
    if sharding.is_first_process():
        disk.quarantine(Path(path))
    sharding.barrier("quarantined")


def _unfinished(place: Path) -> list[Path]:
    return list(place.parent.glob(f"{place.name}.orbax-checkpoint-tmp*"))


def _make_way(place: Path) -> None:
    """Remove the remains of a killed run; refuse to remove anything else."""
    if sharding.broadcast_from_first(exists(place)):
        raise ValueError(f"{place} already holds a checkpoint. Pass another folder.")
    if sharding.broadcast_from_first((place / "_CHECKPOINT_METADATA").exists()):
        quarantine(place)  # killed just before the end, or of an older version
    elif sharding.broadcast_from_first(
        place.exists() and (place.is_file() or any(place.iterdir()))
    ):
        raise ValueError(
            f"{place} exists and is not a checkpoint. Pass a folder that does not exist yet."
        )
    remove(place, *_unfinished(place))


def _remove_unfinished(place: Path) -> None:
    """Remove what could not be completed, without waiting for other processes."""
    for folder in (place, *_unfinished(place)):
        shutil.rmtree(folder, ignore_errors=True)


def _storable(leaf: Any) -> Any:
    """Turn a leaf into what Orbax can write."""
    if not hasattr(leaf, "dtype"):
        return leaf
    if tree.is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if leaf.size == 0:
        return None
    # With several processes, the first one writes arrays that each has a copy of.
    is_copy = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
    return np.asarray(leaf) if is_copy and jax.process_count() > 1 else leaf


def save(path: str | os.PathLike, arrays: PyTree) -> None:
    """Write a tree of arrays as one folder, completely or not at all.

    Orbax writes to a temporary folder and renames it. The checksums of all its files are
    written last, and a folder that has them is complete. With several processes, all of
    them call this, each with its part of the arrays, and share one file system.

    Args:
        path: a folder that does not exist yet, or is empty.
        arrays: arrays, keys and numbers in any containers: dicts, lists, NamedTuples, an
            NNX State, an Equinox module (its arrays alone, by `eqx.partition`).

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
    leaves = dict(zip(tree.names(arrays), jax.tree.leaves(arrays), strict=True))
    written: dict[str, Any] = {
        "empty": {
            name: [list(leaf.shape), str(leaf.dtype)]
            for name, leaf in leaves.items()
            if getattr(leaf, "size", 1) == 0
        },
        "keys": {
            name: str(jax.random.key_impl(leaf))
            for name, leaf in leaves.items()
            if tree.is_key(leaf)
        },
    }
    with sharding.fail_together():
        try:
            ocp.save(str(place), jax.tree.map(_storable, tree.to_dicts(arrays)))
            if sharding.is_first_process():
                written["files"] = _checksums(place)
                with disk.atomic_write(place / _CHECKSUMS) as file:
                    file.write(json.dumps(written, indent=1).encode())
        except OSError:
            _remove_unfinished(place)
            raise
        except ValueError as error:
            # TensorStore raises ValueErrors for errors of the operating system.
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            _remove_unfinished(place)
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(place)) from error


def _read_checksums(place: Path) -> dict[str, Any] | None:
    try:
        written = json.loads((place / _CHECKSUMS).read_bytes())
    except ValueError:
        return None
    is_whole = isinstance(written, dict) and set(written) == {"files", "empty", "keys"}
    return written if is_whole else None


def _corruption(place: Path) -> str | None:
    """Compare the files with their checksums; Orbax's own errors are hard to read."""
    written = _read_checksums(place)
    if written is None:
        return f"{_CHECKSUMS} can't be read"
    files, found = written["files"], _checksums(place)
    for name in sorted({*files, *found}):
        if files.get(name) != found.get(name):
            return f"{name} is not what was written"
    return None


def load(path: str | os.PathLike, like: PyTree = None) -> PyTree:
    """Read a tree of arrays back, bit for bit, after checking the files' checksums.

    Args:
        path: a folder that `save` wrote.
        like: a tree with the same leaf names; the result has its containers. Each process reads its part of arrays that have a `NamedSharding`
            there; all other arrays go to the default device.

    Returns:
        The tree in the containers of `like`; without it in dicts and lists.

    Raises:
        FileNotFoundError: if there is no complete checkpoint at `path`.
        CorruptFileError: a ValueError; if a file differs from what was written.
        ValueError: if a leaf name is in only one of the checkpoint and `like`, or its
            shape or dtype differs.

    Example:
        >>> import tempfile
        >>> tree = (jax.random.key(0), {"w": jax.numpy.ones(2)})
        >>> save(f"{(folder := tempfile.mkdtemp())}/tree", tree)
        >>> load(f"{folder}/tree", like=tree)[1]
        {'w': Array([1., 1.], dtype=float32)}
    """
    loaded = _read(path, like)
    return loaded if like is None else _like(loaded, like, path)


def _read(path: str | os.PathLike, like: PyTree = None) -> PyTree:
    """Read dicts and lists; `like` says where arrays of the same names go."""
    path = _absolute(path)
    if not sharding.broadcast_from_first(exists(path)):
        raise FileNotFoundError(
            f"there is no complete checkpoint at {path}. Delete that folder if it exists, "
            "and rerun the command that writes it."
        )
    why = _corruption(Path(path)) if sharding.is_first_process() else None
    if sharding.broadcast_from_first(why is not None):
        raise CorruptFileError(path, why or "found by the first process")
    places = dict(zip(tree.names(like), jax.tree.leaves(like), strict=True))

    def place(name: str, leaf: Any) -> Any:
        if not hasattr(leaf, "shape"):
            return leaf
        target = getattr(places.get(name), "sharding", None)
        if isinstance(target, NamedSharding):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=target)
        # By way of the host: Orbax would commit arrays to a device, possibly one of
        # another machine, and programs compiled for uncommitted arrays would recompile.
        return np.empty(leaf.shape, leaf.dtype)

    loaded = ocp.load(path, tree.map_named(place, ocp.metadata(path).metadata))
    loaded = jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, loaded
    )
    written = _read_checksums(Path(path)) or {"empty": {}, "keys": {}}
    for name, (shape, dtype) in written["empty"].items():
        _put_leaf(loaded, name, jnp.zeros(shape, dtype))
    return tree.map_named(
        lambda name, leaf: (
            jax.random.wrap_key_data(leaf, impl=written["keys"][name])
            if name in written["keys"]
            else leaf
        ),
        loaded,
    )


def _put_leaf(loaded: PyTree, name: str, leaf: Any) -> None:
    *parents, last = name.split("/")
    node = loaded
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[int(last) if isinstance(node, list) else last] = leaf


def _like(loaded: PyTree, like: PyTree, path: str | os.PathLike) -> PyTree:
    """Return what was read in the containers of `like`."""
    remedy = "Pass a tree like the one that was saved."
    loaded = tree.align(loaded, like, f"{path}", remedy, of="`like`")

    def restore(name: str, leaf: Any, wanted: Any) -> Any:
        if not hasattr(wanted, "dtype"):
            return leaf
        got = (jnp.shape(leaf), getattr(leaf, "dtype", None))
        if got != (jnp.shape(wanted), wanted.dtype):
            raise ValueError(
                f"{path} has {got[1]}{list(got[0])} at '{name}', where `like` has "
                f"{wanted.dtype}{list(jnp.shape(wanted))}. {remedy}"
            )
        return leaf

    return tree.map_named(restore, loaded, like)


def _scrambled(words: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Mix the bits of each word: the finalizer of MurmurHash3, a bijection."""
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
    """Return a digest of a tree of arrays, however the arrays are sharded.

    Only 64 bits per array leave the devices, so that it costs one pass over the arrays and
    gathers none of them. It detects accidents, not an attacker who constructs collisions.

    Args:
        arrays: arrays and keys in any containers.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> fingerprint({"w": jnp.ones(2)}) == fingerprint({"w": np.ones(2, np.float32)})
        True
    """
    arrays = jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf)
            if tree.is_key(leaf)
            else leaf
        ),
        arrays,
    )
    leaves = dict(zip(tree.names(arrays), jax.tree.leaves(arrays), strict=True))
    lines = [
        f"{name} {leaf.dtype} {leaf.shape} {np.asarray(_sums(leaf)).tolist()}"
        for name, leaf in leaves.items()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _save_level(
    path: Path, requested: float, state: imp.State, step: Step, started_from: str
) -> None:
    """Run a level; write the tree that it rewinds to only where it changed."""
    reached, info = step(state, density=requested)
    rewind_point = "as before"
    if reached.params is not state.params:
        rewind_point = f"rewind_{path.name}"
        folder = path.with_name(rewind_point)
        remove(folder)  # of a run that was killed before the level ended
        save(folder, {"params": reached.params})
    record = {
        "requested": requested,
        "started_from": started_from,
        "rewind_point": rewind_point,
        "level": reached.level,
        "mask": reached.mask,
        "key": reached.key,
        "info": info._replace(metrics=None),
        "metrics": info.metrics,
    }
    save(path, {name: part for name, part in record.items() if part is not None})


class _OtherStartError(ValueError):
    """A saved level was started from another state."""


def _load_level(
    path: Path, requested: float, state: imp.State, started_from: str
) -> tuple[imp.State, imp.Info]:
    """Read a level into the containers and the kind of key of the state before it."""
    info_like = imp.Info(state.params, None, 0.0, 0.0)
    places = {"mask": state.mask, "info": info_like}
    record = _read(path, places)
    if record["requested"] != requested:
        raise ValueError(
            f"{path} was pruned to density {record['requested']}, but {requested} is "
            "requested. Pass the densities of the run that wrote it, or another folder."
        )
    if record["started_from"] != started_from:
        raise _OtherStartError(
            f"{path} was started from other weights, another mask or another key, or from "
            "another network than the state passed. Pass another folder."
        )
    params = state.params
    if record["rewind_point"] != "as before":
        folder = path.with_name(record["rewind_point"])
        try:
            params = load(folder, {"params": state.params})["params"]
        except FileNotFoundError as error:  # the level is complete, so it was there
            raise CorruptFileError(path, f"{folder.name} is missing") from error
    key = _like({"key": record["key"]}, {"key": state.key}, path)["key"]
    mask = _like(record["mask"], state.mask, path)
    info = record["info"]
    info = imp.Info(
        _like(info["params"], state.params, path),
        record.get("metrics"),
        info["trained_density"],
        info["pruned_density"],
    )
    return imp.State(record["level"], params, mask, key), info


def levels(
    folder: str | os.PathLike,
    state: imp.State,
    step: Step,
    densities: Sequence[Fraction],
) -> Iterator[tuple[imp.State, imp.Info]]:
    """Run iterative magnitude pruning, each level saved before the next begins.

    `level_0001` and so on hold the state after a level and its info;
    `rewind_level_0001` holds the tree that all levels rewind to. A run that was killed at
    any moment resumes after its newest complete level. Every level starts from what was
    read back, so an interrupted run ends with the same bits as an uninterrupted one.

    Args:
        folder: where the levels are saved; one folder per run.
        state: the initial state, `imp.init(params, key)`.
        step: `step(state, density) -> (state, info)`, such as
            `functools.partial(imp.step, train_fn=train_fn, rewind="early")`.
        densities: kept / prunable after each level.

    Yields:
        State and info of every level in turn; finished ones as they were saved, with the
        metrics in dicts and lists.

    Raises:
        ValueError: if a saved level was started from another state, or reached another
            density than is requested now.

    Example:
        >>> import functools, tempfile
        >>> import jax.numpy as jnp
        >>> train_fn = lambda params, mask, key, level: imp.Trained(params)
        >>> step = functools.partial(imp.step, train_fn=train_fn, rewind="init")
        >>> state = imp.init({"w": jnp.arange(8.0).reshape(2, 4)}, jax.random.key(0))
        >>> for state, info in levels(tempfile.mkdtemp(), state, step, [0.5, 0.25]):
        ...     print(state.level, info.trained_density, info.pruned_density)
        1 1.0 0.5
        2 0.5 0.25
    """
    root = Path(folder).absolute()
    regenerated = False
    for number, density in enumerate(densities, start=1):
        path = root / f"level_{number:04d}"
        # Everything a level starts from, so that no run resumes another run's levels.
        started_from = fingerprint((state.params, state.mask, state.key))
        requested = float(density)
        level = None
        if sharding.broadcast_from_first(exists(path)):
            try:
                level = _load_level(path, requested, state, started_from)
            except CorruptFileError as error:
                regenerated = True
                # If what the level rewinds to is corrupt, both are regenerated.
                for corrupt in sorted({path, error.path}):
                    quarantine(corrupt)
            except _OtherStartError:
                if not regenerated:
                    raise
                # The regenerated level before it has other bits: not every device sums
                # in the same order each time.
                quarantine(path)
        if level is None:
            _save_level(path, requested, state, step, started_from)
            level = _load_level(path, requested, state, started_from)
        state, _ = level
        yield level
