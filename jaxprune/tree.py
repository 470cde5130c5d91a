"""Names, sizes and checks of parameter trees: the only module that reads key paths."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jaxprune.types import Mask, Params, Prunable, Scores

_BUILD_MASK = "Build it with masks.ones_like(params)."


def names(tree: PyTree) -> list[str]:
    """Name each leaf by its path, in the order of `jax.tree.leaves`.

    NNX keeps each array in a variable, whose `value` is left out of the name.

    Args:
        tree: any pytree.

    Returns:
        One name a leaf, such as `conv1/kernel`.

    Example:
        >>> names({"fc": {"kernel": 1, "bias": 2}})
        ['fc/bias', 'fc/kernel']
    """
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def by_name(tree: PyTree) -> dict[str, Any]:
    """List the leaves by name in network order.

    JAX sorts the keys of a dict as text, so `conv10` comes before `conv2`; here numbers
    count as numbers. Layers whose names do not sort in the order of the network
    can't be put right, since a tree knows no other order.

    Args:
        tree: any pytree.

    Returns:
        The leaves by name; the dict is in network order.

    Example:
        >>> list(by_name({"conv10": 1, "conv2": 2}))
        ['conv2', 'conv10']
    """
    leaves = dict(zip(names(tree), jax.tree.leaves(tree), strict=True))
    return {name: leaves[name] for name in sorted(leaves, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def map_named(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Map `fn(name, leaf, ...)` over a tree, and over others of the same structure.

    Args:
        fn: called with the leaf's name and the leaf of each tree.
        tree: any pytree; the result has its structure.
        rest: trees of the same structure.

    Returns:
        What `fn` returned, leaf for leaf.

    Example:
        >>> map_named(lambda name, x: name == "b", {"a": 1, "b": 2})
        {'a': False, 'b': True}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: fn(_name(path), *leaves), tree, *rest
    )


def prunable(params: Params | Mask, chosen: PyTree | None = None) -> Prunable:
    """Tell for each leaf whether its weights may be pruned.

    By default those with two or more dimensions: the kernels of dense and convolution
    layers, first and last included; never a bias or a normalisation.

    Args:
        params: parameters, or a mask of their shapes.
        chosen: where given, it is checked and returned in place of the default.

    Returns:
        A tree of bools.

    Raises:
        ValueError: if `chosen` does not have the structure of `params`.

    Example:
        >>> prunable({"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))})
        {'bias': False, 'kernel': True}
    """
    if chosen is None:
        return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)
    _check_structure(chosen, params, "prunable", "Build it with tree.prunable(params).")
    return chosen


def size(params: Params | Mask, chosen: Prunable | None = None) -> int:
    """Count the prunable weights, as a Python int.

    Args:
        params: parameters, or a mask of their shapes.
        chosen: which leaves count; by default those with ndim >= 2.

    Example:
        >>> size({"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))})
        4
    """
    leaves = jax.tree.leaves(params)
    counts = jax.tree.leaves(prunable(params, chosen))
    return sum(
        math.prod(leaf.shape) for leaf, may in zip(leaves, counts, strict=True) if may
    )


def apply_mask(params: Params, mask: Mask | None) -> Params:
    """Set the pruned weights to zero.

    Args:
        params: parameters.
        mask: True keeps; None keeps all.

    Returns:
        The masked parameters; same tree, shapes and dtypes.

    Raises:
        ValueError: if `mask` does not mirror `params`.

    Example:
        >>> apply_mask({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([True, False])})
        {'w': Array([3., 0.], dtype=float32)}
    """
    if mask is None:
        return params
    check_mirrors(mask, params)
    return jax.tree.map(lambda m, w: jnp.where(m, w, jnp.zeros_like(w)), mask, params)


def check_mirrors(mask: Mask, params: Params | Scores, *, of: str = "params") -> None:
    """Check that a mask has the leaves, shapes and dtype that a mask of `params` has.

    Args:
        mask: the mask to check.
        params: what it should mirror.
        of: what the second tree is called in the sentence.

    Raises:
        ValueError: naming the first leaf that is missing, superfluous or of
            another shape.
        TypeError: if a leaf is not bool.
    """
    _check_structure(mask, params, "mask", _BUILD_MASK, of=of)
    for name, m, w in zip(
        names(params), jax.tree.leaves(mask), jax.tree.leaves(params), strict=True
    ):
        if jnp.shape(m) != jnp.shape(w):
            raise ValueError(
                f"mask has shape {jnp.shape(m)} at '{name}', where the parameter has "
                f"{jnp.shape(w)}. {_BUILD_MASK}"
            )
    check_bool(mask)


def check_bool(mask: Mask) -> None:
    """Check that every leaf of a mask is bool.

    Raises:
        TypeError: naming the first leaf that is not.
    """
    for name, leaf in zip(names(mask), jax.tree.leaves(mask), strict=True):
        if jnp.result_type(leaf) != np.bool_:
            raise TypeError(
                f"mask is {jnp.result_type(leaf)} at '{name}', where True keeps a weight "
                "and False prunes it. Pass bools: jax.tree.map(lambda m: m != 0, mask)."
            )


def _check_structure(
    tree: PyTree, params: PyTree, what: str, repair: str, of: str = "params"
) -> None:
    if jax.tree.structure(tree) == jax.tree.structure(params):
        return
    got, wanted = names(tree), names(params)
    for name in wanted:
        if name not in got:
            raise ValueError(
                f"{what} has no leaf at '{name}', which {of} has. {repair}"
            )
    for name in got:
        if name not in wanted:
            raise ValueError(
                f"{what} has a leaf at '{name}', which {of} lacks. {repair}"
            )
    raise ValueError(
        f"{what} is made of other containers than {of} (a dict where the other has a "
        f"list, say), though the leaves have the same names. {repair}"
    )


@jax.jit
def _all_finite(leaves: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()}


def check_finite(scores: Scores, repair: str, prunable: Prunable | None = None) -> None:
    """Refuse scores that are not finite. Traced scores can't be looked at and pass.

    Args:
        scores: scores of any method.
        repair: the end of the sentence: what to do about it.
        prunable: which leaves to look at; by default all.

    Raises:
        ValueError: naming the first leaf with a score that is nan or infinite.
    """
    looked_at = jax.tree.map(lambda _: True, scores) if prunable is None else prunable
    leaves = {
        name: leaf
        for name, leaf, look in zip(
            names(scores),
            jax.tree.leaves(scores),
            jax.tree.leaves(looked_at),
            strict=True,
        )
        if look
    }
    finite = _all_finite(leaves)
    if any(isinstance(leaf, Tracer) for leaf in finite.values()):
        return
    bad = [name for name, is_finite in finite.items() if not is_finite]
    if bad:
        leaf = np.asarray(leaves[bad[0]])
        wrong = leaf.size - int(np.isfinite(leaf).sum())
        kind = "nan" if np.isnan(leaf).any() else "infinite"
        raise ValueError(
            f"scores are not finite at '{bad[0]}' ({wrong} of {leaf.size} entries "
            f"{kind}): {repair}"
        )


def check_batches(batches: Any) -> None:
    """Refuse what is no list of batches, and an empty one: a sum over nothing.

    Raises:
        ValueError: if it is not a list or tuple with a batch in it.
    """
    if not isinstance(batches, list | tuple):
        raise ValueError(
            f"batches is a {type(batches).__name__}, but several batches may be summed. "
            "Pass a list, of one batch if there is one."
        )
    if len(batches) == 0:
        raise ValueError(
            "batches is empty, so there is no loss to differentiate. Pass a list with "
            "at least one batch."
        )
