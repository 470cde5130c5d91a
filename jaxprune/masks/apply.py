"""Apply, count and store masks."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxprune import disk, tree
from jaxprune.tree import apply_mask as apply
from jaxprune.types import Mask, Params, Prunable

__all__ = ["apply", "count", "density", "load", "ones_like", "save", "summary"]


def ones_like(params: Params) -> Mask:
    """Make the mask that keeps every weight.

    Args:
        params: parameters.

    Returns:
        A tree of True with the structure and shapes of `params`.

    Raises:
        TypeError: if a leaf is not an array.

    Example:
        >>> ones_like({"w": jnp.zeros(2)})
        {'w': Array([ True,  True], dtype=bool)}
    """
    tree.check_arrays(params)

    def ones(leaf: Array) -> Array:
        if tree.is_key(leaf):
            return jnp.ones(leaf.shape, bool)
        return jnp.ones_like(leaf, bool)  # on the devices of the leaf

    return jax.tree.map(ones, params)


def count(mask: Mask, prunable: Prunable | None = None) -> int:
    """Count the prunable weights that a mask keeps, exactly, as a Python int.

    Args:
        mask: the mask, not traced.
        prunable: which leaves count; by default those of `tree.prunable`.

    Raises:
        TypeError: if a leaf is not a bool array, or is traced.
        ValueError: if `prunable` does not mirror the mask.

    Example:
        >>> count({"bias": jnp.ones(2, bool), "kernel": jnp.eye(3, dtype=bool)})
        3
    """
    tree.check_arrays(mask, "mask")
    tree.check_bool(mask)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(mask)):
        raise TypeError(
            "mask is traced, and its count is a Python number. Count it outside `jit`, or "
            "add up the sums of its leaves."
        )
    counted = [
        leaf
        for leaf, is_prunable in zip(
            jax.tree.leaves(mask),
            jax.tree.leaves(tree.check_prunable(mask, prunable)),
            strict=True,
        )
        if is_prunable
    ]
    # NumPy counts bools in a CPU's memory five times as fast as XLA, and without a program.
    if all(map(tree.is_on_one_cpu, counted)):
        return sum(int(np.count_nonzero(np.asarray(leaf))) for leaf in counted)
    return sum(int(np.asarray(part).sum(dtype=np.int64)) for part in _counts(counted))


@jax.jit
def _counts(leaves: list[Array]) -> list[Array]:
    # Leaves are added as Python ints, since float32 is inexact above 2**24. A leaf of
    # 2**32 entries is counted row by row, since its count does not fit in 32 bits.
    return [
        jnp.sum(leaf, axis=None if leaf.size < 2**32 else -1, dtype=jnp.uint32)
        for leaf in leaves
    ]


def density(mask: Mask, prunable: Prunable | None = None) -> float:
    """Return the fraction of the prunable weights that a mask keeps.

    Args:
        mask: the mask.
        prunable: which leaves count; by default those of `tree.prunable`. A mask does not
            record dtypes: if the parameters hold integer buffers of two or more
            dimensions, pass `tree.prunable(params)`.

    Raises:
        ValueError: if no leaf is prunable.
        TypeError: if a leaf is not bool.

    Example:
        >>> density({"kernel": jnp.eye(4, dtype=bool)})
        0.25
    """
    size = tree.size(mask, prunable)
    if size == 0:
        raise ValueError(
            "the mask has no prunable leaf, so it has no density. Pass "
            'prunable=tree.prunable(params, include="*kernel"), with a pattern that '
            "matches your weights."
        )
    return count(mask, prunable) / size


def summary(mask: Mask, prunable: Prunable | None = None) -> str:
    """Return a table of the prunable leaves of a mask, to print.

    Args:
        mask: the mask.
        prunable: which leaves to list; by default those of `tree.prunable`. Pass the one
            that `select` was given.

    Returns:
        One line per leaf sorted by name, then the total: name, shape, weights kept,
        weights, density.

    Raises:
        TypeError: if a leaf is not bool.

    Example:
        >>> print(summary({"fc": {"kernel": jnp.eye(4, dtype=bool)}}))
        leaf       shape   kept  weights  density
        fc/kernel  (4, 4)     4       16   0.2500
        total                 4       16   0.2500
    """
    tree.check_bool(mask)
    chosen = tree.by_name(tree.check_prunable(mask, prunable))
    rows = [("leaf", "shape", "kept", "weights", "density")]

    def row(
        name: str, shape: str, kept: int, size: int
    ) -> tuple[str, str, str, str, str]:
        return name, shape, f"{kept:,}", f"{size:,}", f"{kept / max(size, 1):.4f}"

    for name, leaf in tree.by_name(mask).items():
        if chosen[name]:
            rows.append(row(name, str(leaf.shape), count([leaf], [True]), leaf.size))
    rows.append(row("total", "", count(mask, prunable), tree.size(mask, prunable)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in rows
    )


def save(path: str | os.PathLike | Any, mask: Mask) -> None:
    """Write a mask as a compressed npz file, one bool array per leaf, by name.

    `numpy.load` alone reads it back.

    Args:
        path: the file to write; its name should end in `.npz`. An existing file is
            replaced.
        mask: the mask.

    Raises:
        TypeError: if a leaf is not bool, or `path` is no path.
        OSError: if it can't be written; then `path` is left as it was.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/mask.npz"
        >>> save(path, {"fc": {"kernel": jnp.eye(2, dtype=bool)}})
        >>> list(np.load(path))
        ['fc/kernel']
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"path is a {type(path).__name__}. Pass masks.save(path, mask)."
        )
    tree.check_bool(mask)
    leaves = {name: np.asarray(leaf) for name, leaf in tree.by_name(mask).items()}
    with (
        disk.atomic_write(Path(path)) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, leaf in leaves.items():  # np.savez can't store a leaf named `file`
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, leaf, allow_pickle=False)


def load(path: str | os.PathLike, like: Params | None = None) -> Mask:
    """Read a mask that `save` wrote.

    Args:
        path: the file.
        like: parameters, or a mask, whose containers the result gets; without it, the
            result is a dict from leaf name to array.

    Returns:
        The mask.

    Raises:
        FileNotFoundError: if there is no such file.
        CorruptFileError: a ValueError; if it can't be read.
        ValueError: if it is not a mask file, or the mask does not mirror `like`.
        TypeError: if `path` is not a path, or an array is not bool.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/mask.npz"
        >>> save(path, {"fc": {"kernel": jnp.eye(2, dtype=bool)}})
        >>> load(path, like={"fc": {"kernel": jnp.zeros((2, 2))}})["fc"]["kernel"].sum()
        Array(2, dtype=int32)
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"path is a {type(path).__name__}. Pass masks.load(path, like=params)."
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no file {path}. Pass a file that masks.save wrote."
        )
    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            leaves: Mapping[str, Array] = {
                name: jnp.asarray(file[name]) for name in file
            }
    except (
        ValueError,
        EOFError,
        TypeError,
        AttributeError,
        NotImplementedError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        if not zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} is not a mask file. Pass a file that masks.save wrote."
            ) from error
        raise disk.CorruptFileError(path, "it is a damaged npz file") from error
    tree.check_bool(leaves)
    if like is None:
        return leaves
    wanted = tree.names(like)
    if set(wanted) != set(leaves):
        different = sorted(set(wanted) ^ set(leaves))[0]
        where = "the file" if different in leaves else "`like`"
        raise ValueError(
            f"{path} does not hold a mask of this network: only {where} has a leaf at "
            f"'{different}'. Pass the parameters that the mask was made for."
        )
    mask = jax.tree.unflatten(
        jax.tree.structure(like), [leaves[name] for name in wanted]
    )
    remedy = "Pass the parameters that the mask was made for."
    tree.check_shapes(mask, like, str(path), remedy, "`like`")
    return mask
