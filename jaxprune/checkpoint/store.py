"""Trees of arrays on disk, through Orbax; the only module that imports it."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from jaxprune import disk, sharding, tree
from jaxprune.disk import CorruptFileError


def _absolute(path: str | os.PathLike) -> str:
    return os.path.abspath(path)


# Written last: the checksum of every file; and what Orbax can't store: the shapes of
# arrays of size zero, and the kinds of keys.
_CHECKSUMS = "checksums.json"


def exists(path: str | os.PathLike) -> bool:
    """Return whether there is a complete checkpoint at `path`.

    Args:
        path: a folder.

    Returns:
        Whether the file that is written last is there; `load` also compares checksums.

    Example:
        >>> exists("no/such/folder")
        False
    """
    return os.path.exists(os.path.join(path, _CHECKSUMS))


def _checksums(place: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, except the file of checksums."""
    return {
        path.relative_to(place).as_posix(): disk.checksum(path)
        for path in sorted(place.rglob("*"))
        if path.is_file() and _CHECKSUMS not in path.name
    }


def remove(*folders: Path) -> None:
    """Delete folders that may or may not exist; all processes call this.

    Args:
        folders: paths.
    """
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


def _temporary_folders(place: Path) -> list[Path]:
    return list(place.parent.glob(f"{place.name}.orbax-checkpoint-tmp*"))


def _clear_destination(place: Path) -> None:
    """Remove what a killed run left at `place`; refuse to remove anything else."""
    if sharding.broadcast_from_first(exists(place)):
        raise ValueError(
            f"{place} already contains a checkpoint. Delete that "
            "folder to replace it, or pass another one."
        )
    if sharding.broadcast_from_first((place / "_CHECKPOINT_METADATA").exists()):
        quarantine(place)  # killed just before the end, or of an older version
    elif sharding.broadcast_from_first(
        place.exists() and (place.is_file() or any(place.iterdir()))
    ):
        raise ValueError(
            f"{place} exists and is not a checkpoint. Pass a folder that does not exist yet."
        )
    remove(place, *_temporary_folders(place))


def _remove_unfinished(place: Path) -> None:
    """Remove what could not be completed, without waiting for other processes."""
    for folder in (place, *_temporary_folders(place)):
        shutil.rmtree(folder, ignore_errors=True)


def _to_storable(leaf: Any) -> Any:
    """Turn a leaf into what Orbax can write."""
    if isinstance(leaf, bool):
        return np.asarray(leaf)
    if not hasattr(leaf, "dtype"):
        return leaf
    if isinstance(leaf, np.generic):
        leaf = np.asarray(leaf)
    if tree.is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if leaf.size == 0:
        return None
    # With several processes, the first one writes arrays that each has a copy of.
    is_copy = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
    return np.asarray(leaf) if is_copy and jax.process_count() > 1 else leaf


def _check_storable(leaves: dict[str, Any]) -> None:
    """Check that every leaf is an array, a number or a string."""
    if not leaves:
        raise ValueError("there is nothing to save: the tree has no leaves.")
    for name, leaf in leaves.items():
        is_too_large = isinstance(leaf, int) and not -(2**63) <= leaf < 2**63
        is_known = hasattr(leaf, "dtype") or isinstance(
            leaf, str | int | float | complex
        )
        if is_too_large or not is_known:
            kind = (
                "integer of more than 64 bits" if is_too_large else type(leaf).__name__
            )
            raise TypeError(
                f"a {kind} at '{name}' can't be saved. Save arrays, numbers and strings "
                "alone; of an Equinox module, eqx.filter(module, eqx.is_array)."
            )


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
        ValueError: if a checkpoint, or something else, is there (to replace it, delete the
            folder first), if the path has a character that Orbax reads as a pattern, if
            there are no leaves, or if two leaves have one name.
        TypeError: if a leaf is not an array, a number or a string.
        OSError: if it can't be written; then there is nothing at `path`.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save(f"{folder}/weights", {"w": jax.numpy.ones(2)})
        >>> load(f"{folder}/weights")
        {'w': Array([1., 1.], dtype=float32)}
    """
    place = Path(_absolute(path))
    if set(str(place)) & set("[]*?\\"):
        raise ValueError(
            f"the path {place} has one of the characters [ ] * ? \\, which Orbax reads as a "
            "pattern, so that it could not be loaded. Pass another path."
        )
    _clear_destination(place)
    # Fail now if nothing can be written there: Orbax would wait for minutes at exit.
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=place.parent):
        pass
    leaves = tree.by_name(arrays)
    _check_storable(leaves)
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
            ocp.save(str(place), jax.tree.map(_to_storable, tree.to_dicts(arrays)))
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
    expected, actual = written["files"], _checksums(place)
    for name in sorted({*expected, *actual}):
        if expected.get(name) != actual.get(name):
            return f"{name} is not what was written"
    return None


def load(path: str | os.PathLike, like: PyTree = None) -> PyTree:
    """Read a tree of arrays back, bit for bit, after checking the files' checksums.

    Args:
        path: a folder that `save` wrote.
        like: a tree with the same leaf names; the result has its structure. An array that
            has a `NamedSharding` in `like` gets the same sharding, each process reading its
            part; all other arrays go to the default device.

    Returns:
        The tree with the structure of `like`; without it, dicts and lists. Arrays of 64
        bits are NumPy arrays unless jax_enable_x64 is set.

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
    loaded = read(path, like)
    return loaded if like is None else restore_structure(loaded, like, path)


def read(path: str | os.PathLike, like: PyTree = None) -> PyTree:
    """Read dicts and lists, after checking the files' checksums.

    Args:
        path: a folder that `save` wrote.
        like: a tree whose leaves give the sharding of the arrays of the same names.

    Returns:
        The arrays, keys and numbers, in dicts and lists.

    Raises:
        FileNotFoundError: if there is no complete checkpoint at `path`.
        CorruptFileError: a ValueError; if a file differs from what was written.

    Example:
        >>> import tempfile
        >>> save(f"{(folder := tempfile.mkdtemp())}/tree", (1, 2))
        >>> read(f"{folder}/tree")
        [1, 2]
    """
    path = _absolute(path)
    if not sharding.broadcast_from_first(exists(path)):
        raise FileNotFoundError(
            f"there is no complete checkpoint at {path}. Check the path, "
            "or rerun the command that writes the checkpoint."
        )
    why = _corruption(Path(path)) if sharding.is_first_process() else None
    if sharding.broadcast_from_first(why is not None):
        raise CorruptFileError(path, why or "detected by the first process")
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
    loaded = jax.tree.map(_on_device, loaded)
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


def _on_device(leaf: Any) -> Any:
    """Place an array, except one of 64 bits that JAX would narrow."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    is_narrowed = jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
    return leaf if is_narrowed else jnp.asarray(leaf)


def _put_leaf(loaded: PyTree, name: str, leaf: Any) -> None:
    """Put a leaf in its place; keys of dicts may contain '/'."""
    children = enumerate(loaded) if isinstance(loaded, list) else list(loaded.items())
    for key, child in children:
        if name == str(key):
            loaded[key] = leaf
        elif name.startswith(f"{key}/") and isinstance(child, dict | list):
            _put_leaf(child, name.removeprefix(f"{key}/"), leaf)


def restore_structure(loaded: PyTree, like: PyTree, path: str | os.PathLike) -> PyTree:
    """Return what was read with the tree structure of `like`.

    Args:
        loaded: dicts and lists from `read`.
        like: a tree with the same leaf names, shapes and dtypes.
        path: where they were read; error messages give it.

    Returns:
        The leaves of `loaded` with the tree structure of `like`.

    Raises:
        ValueError: if the leaf names, a shape or a dtype differ.

    Example:
        >>> restore_structure([1, 2], (0, 0), "folder")
        (1, 2)
    """
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
