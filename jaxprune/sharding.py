"""Arrays over several devices: batches by example, parameters by channel.

Every function of the library takes arrays wherever they are, and XLA adds what the devices
have to tell each other; so placing the arrays is all there is to do.

Example:
    >>> mesh = make(data=1)
    >>> params = spread({"w": jax.numpy.ones((4, 4))}, mesh)
    >>> batch = split(jax.numpy.ones((8, 4)), mesh)
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


def make(*, data: int = 1, model: int = 1) -> Mesh:
    """Arrange the first `data * model` devices, of all processes, as a mesh.

    Args:
        data: parts that batches are split into.
        model: parts that parameters are spread over.

    Returns:
        A mesh with these two axes.

    Raises:
        ValueError: if there are not that many devices.

    Example:
        >>> make(data=1).shape["data"]
        1
    """
    if min(data, model) < 1 or data * model > jax.device_count():
        more = "; a CPU counts as 8 with XLA_FLAGS=--xla_force_host_platform_device_count=8"
        raise ValueError(
            f"a mesh of data={data} and model={model} takes {data * model} devices, and "
            f"there are {jax.device_count()}. Pass numbers from 1 whose product is that or "
            f"less{more if jax.default_backend() == 'cpu' else ''}."
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
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _put(jax.random.key_data(leaf), mesh, spec)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    held = np.asarray(leaf)
    return jax.make_array_from_callback(held.shape, sharding, lambda index: held[index])


def copy(arrays: PyTree, mesh: Mesh) -> PyTree:
    """Place arrays whole on every device of a mesh.

    Args:
        arrays: a tree of arrays, the same in every process.
        mesh: of `make`.

    Returns:
        The tree, its arrays replicated.

    Example:
        >>> copy({"x": jax.numpy.ones(2)}, make())["x"].is_fully_replicated
        True
    """
    return jax.tree.map(lambda leaf: _put(leaf, mesh, PartitionSpec()), arrays)


def split(batch: Batch, mesh: Mesh, *, axis: int = 0) -> Batch:
    """Split arrays by their examples over the axis "data" of a mesh.

    Args:
        batch: a tree of arrays, the same in every process.
        mesh: of `make`.
        axis: of the examples.

    Returns:
        The tree, each device with its part of it.

    Raises:
        ValueError: if the examples are no multiple of the parts.

    Example:
        >>> split(jax.numpy.ones((8, 3)), make()).sharding.spec[0]
        'data'
    """
    parts = mesh.shape["data"]
    for leaf in jax.tree.leaves(batch):
        if leaf.shape[axis] % parts:
            raise ValueError(
                f"a batch of {leaf.shape[axis]} examples can't be split into {parts} equal "
                f"parts. Pass a multiple of {parts}, or a mesh with fewer."
            )
    spec = PartitionSpec(*[None] * axis, "data")
    return jax.tree.map(lambda leaf: _put(leaf, mesh, spec), batch)


def spread(params: Params | Mask, mesh: Mesh) -> Params | Mask:
    """Spread parameters, or a mask of them, over the axis "model" of a mesh.

    Each array is cut along the last axis that the parts divide, its output channels as a
    rule; one that they do not divide is whole on every device.

    Args:
        params: a tree of arrays, the same in every process.
        mesh: of `make`.

    Returns:
        The tree, each device with its part of it.

    Example:
        >>> tuple(spread({"w": jax.numpy.ones((3, 4))}, make())["w"].sharding.spec)
        (None, 'model')
    """
    parts = mesh.shape["model"]

    def place(leaf: Array | np.ndarray) -> Array:
        fitting = [i for i, size in enumerate(leaf.shape) if size and size % parts == 0]
        spec = [None] * fitting[-1] + ["model"] if fitting else []
        return _put(leaf, mesh, PartitionSpec(*spec))

    return jax.tree.map(place, params)


def mesh_of(arrays: PyTree) -> Mesh | None:
    """Return the mesh of `make` that arrays lie on, or None.

    Args:
        arrays: a tree of arrays.

    Example:
        >>> mesh_of(jax.numpy.ones(2)) is None
        True
    """
    for leaf in jax.tree.leaves(arrays):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh if "data" in sharding.mesh.shape else None
    return None


def on_host(arrays: PyTree) -> PyTree:
    """Copy arrays to the host whole, also those of which other processes hold parts.

    Args:
        arrays: a tree of arrays; with several processes, all of them call this.

    Returns:
        The tree in NumPy arrays.

    Example:
        >>> on_host({"x": jax.numpy.ones(2)})
        {'x': array([1., 1.], dtype=float32)}
    """

    def fetch(leaf: Array | np.ndarray) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, arrays)


def is_first() -> bool:
    """Tell whether this process is the one that writes what all have in common."""
    return jax.process_index() == 0


def meet(where: str) -> None:
    """Wait until every process is here, where there are several.

    Args:
        where: a name of this place, the same in all.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def agreed(said: bool) -> bool:
    """Return what the first process says, in all of them.

    Args:
        said: by this process.

    Example:
        >>> agreed(True)
        True
    """
    if jax.process_count() == 1:
        return said
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(said)))


def all_agree(said: bool) -> bool:
    """Tell whether every process says so.

    Args:
        said: by this process.

    Example:
        >>> all_agree(True)
        True
    """
    if jax.process_count() == 1:
        return said
    return bool(multihost_utils.process_allgather(np.asarray(said)).all())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Go on when every process has written its part; raise in all where one could not.

    Raises:
        OSError: of this process, or because of another one.

    Example:
        >>> with together():
        ...     pass
    """
    failed = None
    try:
        yield
    except OSError as error:
        failed = error
    if not all_agree(failed is None):
        raise failed or OSError(errno.EIO, "another process could not write")
