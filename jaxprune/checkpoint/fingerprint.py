"""A digest of a tree of arrays that gathers none of them."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped, UInt32

from jaxprune import tree


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
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
        bits = jnp.uint32
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
    gathers none of them. It detects accidental changes; it is not secure against
    deliberate collisions.

    Args:
        arrays: arrays and keys in any containers.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> fingerprint({"w": jnp.ones(2)}) == fingerprint({"w": np.ones(2, np.float32)})
        True
    """
    arrays = jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if tree.is_key(leaf) else leaf,
        arrays,
    )
    leaves = dict(zip(tree.names(arrays), jax.tree.leaves(arrays), strict=True))
    lines = [
        f"{name} {leaf.dtype} {leaf.shape} {np.asarray(_sums(leaf)).tolist()}"
        for name, leaf in leaves.items()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
