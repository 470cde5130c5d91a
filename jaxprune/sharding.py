"""Shard batches by example and parameters by channel over several devices.

All functions of the library accept sharded arrays, and XLA inserts the communication. You
only have to place the arrays.

Example:
    >>> mesh = make_mesh(data=1)
    >>> params = shard_params({"w": jax.numpy.ones((4, 4))}, mesh)
    >>> batch = shard_batch(jax.numpy.ones((8, 4)), mesh)
    >>> (batch @ params["w"]).shape
    (8, 4)
"""

import contextlib
import errno
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jaxprune.types import Batch, Mask, Params


def make_mesh(*, data: int = 1, model: int = 1) -> Mesh:
    """Arrange the first `data * model` devices, of all processes, as a mesh.

    Args:
        data: number of parts that batches are sharded into.
        model: number of parts that parameters are sharded into.

    Returns:
        A mesh with the axes "data" and "model".

    Raises:
        ValueError: if there are not that many devices.

    Example:
        >>> make_mesh(data=1).shape["data"]
        1
    """
    if min(data, model) < 1:
        raise ValueError(
            f"a mesh has sizes of 1 or more; got data={data} and model={model}."
        )
    if data * model > jax.device_count():
        more = (
            "; to simulate 8 devices, set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8"
        )
        raise ValueError(
            f"a mesh with data={data} and model={model} needs {data * model} devices, but "
            f"JAX has {jax.device_count()}. Pass positive sizes with a product of at most "
            f"{jax.device_count()}{more if jax.default_backend() == 'cpu' else ''}."
        )
    kinds = (AxisType.Auto, AxisType.Auto)
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), kinds, devices=devices)


def _put(leaf: Array | np.ndarray, mesh: Mesh, spec: PartitionSpec) -> Array:
    """Place an array; with several processes each takes its part from its own copy."""
    sharding = NamedSharding(mesh, spec)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if _is_key(leaf):
        words = _put(jax.random.key_data(leaf), mesh, spec)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(
        whole.shape, sharding, lambda index: whole[index]
    )


def _is_key(leaf: Array | np.ndarray) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def replicate(arrays: PyTree, mesh: Mesh) -> PyTree:
    """Place whole arrays on every device of a mesh.

    Args:
        arrays: a tree of arrays, the same in every process.
        mesh: a mesh of `make_mesh`.

    Returns:
        The tree, its arrays replicated.

    Example:
        >>> replicate({"x": jax.numpy.ones(2)}, make_mesh())["x"].is_fully_replicated
        True
    """
    return jax.tree.map(lambda leaf: _put(leaf, mesh, PartitionSpec()), arrays)


def check_divides(mesh: Mesh, examples: int) -> None:
    """Check that a mesh shards a batch into equal parts.

    Args:
        mesh: a mesh of `make_mesh`.
        examples: number of examples in the batch.

    Raises:
        ValueError: if the number of examples is not a multiple of the parts.

    Example:
        >>> check_divides(make_mesh(data=1), 7)
    """
    parts = mesh.shape["data"]
    if examples % parts:
        raise ValueError(
            f"a batch of {examples} examples can't be split into {parts} equal "
            f"parts. Pass a multiple of {parts}, or a mesh with a smaller `data` axis."
        )


def shard_batch(batch: Batch, mesh: Mesh, *, axis: int = 0) -> Batch:
    """Shard arrays by their examples over the axis "data" of a mesh.

    Args:
        batch: a tree of arrays, the same in every process.
        mesh: a mesh of `make_mesh`.
        axis: the axis of the examples.

    Returns:
        The tree, each device with its part of it.

    Raises:
        ValueError: if the number of examples is not a multiple of the parts.

    Example:
        >>> shard_batch(jax.numpy.ones((8, 3)), make_mesh()).sharding.spec[0]
        'data'
    """
    for leaf in jax.tree.leaves(batch):
        check_divides(mesh, leaf.shape[axis])
    spec = PartitionSpec(*[None] * axis, "data")
    return jax.tree.map(lambda leaf: _put(leaf, mesh, spec), batch)


def shard_params(params: Params | Mask, mesh: Mesh) -> Params | Mask:
    """Shard parameters, or a mask of them, over the axis "model" of a mesh.

    Each array is cut along the last axis that the parts divide, usually its output
    channels; an array without such an axis is replicated.

    Args:
        params: a tree of arrays, the same in every process.
        mesh: a mesh of `make_mesh`.

    Returns:
        The tree, each device with its part of it.

    Example:
        >>> tuple(shard_params({"w": jax.numpy.ones((3, 4))}, make_mesh())["w"].sharding.spec)
        (None, 'model')
    """
    parts = mesh.shape["model"]

    def place(leaf: Array | np.ndarray) -> Array:
        fitting = [i for i, size in enumerate(leaf.shape) if size and size % parts == 0]
        spec = [None] * fitting[-1] + ["model"] if fitting else []
        return _put(leaf, mesh, PartitionSpec(*spec))

    return jax.tree.map(place, params)


def mesh_of(arrays: PyTree) -> Mesh | None:
    """Return the mesh of `make_mesh` that arrays lie on, or None.

    Args:
        arrays: a tree of arrays.

    Returns:
        The mesh of the first array that lies on one.

    Example:
        >>> mesh_of(jax.numpy.ones(2)) is None
        True
    """
    for leaf in jax.tree.leaves(arrays):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh if "data" in sharding.mesh.shape else None
    return None


def gather_to_host(arrays: PyTree) -> PyTree:
    """Copy whole arrays to the host, including parts that other processes hold.

    Args:
        arrays: a tree of arrays; with several processes, all of them call this.

    Returns:
        The tree in NumPy arrays; keys stay JAX arrays.

    Example:
        >>> gather_to_host({"x": jax.numpy.ones(2)})
        {'x': array([1., 1.], dtype=float32)}
    """

    def fetch(leaf: Array | np.ndarray) -> Array | np.ndarray:
        if _is_key(leaf):  # NumPy has no keys
            words = jax.numpy.asarray(fetch(jax.random.key_data(leaf)))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, arrays)


def is_first_process() -> bool:
    """Return whether this process is the one that writes shared files.

    Returns:
        True in the process with index 0 of `jax.distributed`, and without it.

    Example:
        >>> is_first_process()
        True
    """
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes reach this barrier; with one process, do nothing.

    Args:
        name: a name of this barrier, the same in all processes.

    Example:
        >>> barrier("written")
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_first(value: bool) -> bool:
    """Return the value of the first process in all processes.

    Args:
        value: this process's value.

    Returns:
        The first process's value.

    Example:
        >>> broadcast_from_first(True)
        True
    """
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def all_hosts_agree(value: bool) -> bool:
    """Return whether the value is True in every process.

    Args:
        value: this process's value.

    Returns:
        The same in every process.

    Example:
        >>> all_hosts_agree(True)
        True
    """
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.asarray(value)).all())


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Continue once every process has written its part; raise in all if one could not.

    Raises:
        OSError: this process's own, or one that stands for another process's.

    Example:
        >>> with fail_together():
        ...     pass
    """
    failed = None
    try:
        yield
    except OSError as error:
        failed = error
    if not all_hosts_agree(failed is None):
        raise failed or OSError(errno.EIO, "another process could not write")
