"""Leaf names, made from key paths."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxprune.types import Mask, Params


def names(tree: PyTree) -> list[str]:
    """Name each leaf by its path, in the order of `jax.tree.leaves`.

    NNX keeps each array in a variable, and Linen's partitioning metadata keeps it in a
    box; their `value` is not part of the name.

    Args:
        tree: any pytree.

    Returns:
        One name per leaf, such as `conv1/kernel`.

    Example:
        >>> names({"fc": {"kernel": 1, "bias": 2}})
        ['fc/bias', 'fc/kernel']
    """
    result = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_variable):
        if is_variable(node):
            inner = jax.tree_util.tree_leaves_with_path(node)
            result += [name_of((*path, *rest[1:])) for rest, _ in inner]
        else:
            result.append(name_of(path))
    return result


def is_variable(node: Any, *kinds: str) -> bool:
    """Return whether a node is a Flax variable, without importing flax.

    Args:
        node: a node of a tree.
        kinds: names of classes; by default those of NNX variables and Linen boxes.

    Returns:
        True if its class or a base class is a Flax class with one of these names.

    Example:
        >>> is_variable({"w": 1})
        False
    """
    return any(
        base.__name__ in (kinds or ("Variable", "AxisMetadata"))
        and base.__module__.startswith("flax")
        for base in type(node).__mro__
    )


def name_of(path: Sequence[Any]) -> str:
    """Join a key path into a name.

    Args:
        path: a key path, as from `jax.tree_util.tree_leaves_with_path`.

    Returns:
        The keys, separated by `/`.

    Example:
        >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"fc": [1]})
        >>> name_of(path)
        'fc/0'
    """
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def by_name(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by name, sorted by name, with numbers compared as numbers.

    JAX sorts dict keys as text, so `conv10` comes before `conv2`; here `conv2` comes first.
    The order may differ from the order of the layers, which a tree does not record.

    Args:
        tree: any pytree.

    Returns:
        A dict from name to leaf, in that order.

    Raises:
        ValueError: if two leaves have one name.

    Example:
        >>> list(by_name({"conv10": 1, "conv2": 2}))
        ['conv2', 'conv10']
    """
    leaves = dict(zip(names(tree), jax.tree.leaves(tree), strict=True))
    if len(leaves) < len(jax.tree.leaves(tree)):
        duplicate = next(name for name in leaves if names(tree).count(name) > 1)
        raise ValueError(
            f"two leaves are named '{duplicate}'. Rename one of them; a '/' inside a dict "
            "key can cause this."
        )
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
        The results of `fn`, one per leaf.

    Example:
        >>> map_named(lambda name, x: name == "b", {"a": 1, "b": 2})
        {'a': False, 'b': True}
    """
    structure = jax.tree.structure(tree)
    named = jax.tree.unflatten(structure, names(tree))
    return jax.tree.map(fn, named, tree, *rest)


def align(
    tree: PyTree, params: PyTree, what: str, remedy: str, of: str = "params"
) -> PyTree:
    """Return a tree with the structure of `params`; its leaves must have the same names.

    Args:
        tree: such as a mask that was read from a file into dicts.
        params: the tree whose structure to use, such as an NNX State.
        what: what the error message calls the first tree.
        remedy: the end of the error message.
        of: what the error message calls `params`.

    Returns:
        The leaves of `tree`, with the tree structure of `params`.

    Raises:
        ValueError: naming the first leaf that is missing or unexpected.

    Example:
        >>> align({"0": 1, "1": 2}, [3, 4], "mask", "")
        [1, 2]
    """
    structure = jax.tree.structure(params)
    if jax.tree.structure(tree) == structure:
        return tree
    tree_names, params_names = names(tree), names(params)
    for name in params_names:
        if name not in tree_names:
            raise ValueError(
                f"{what} has no leaf at '{name}', which {of} has. {remedy}"
            )
    for name in tree_names:
        if name not in params_names:
            raise ValueError(
                f"{what} has a leaf at '{name}', which {of} lacks. {remedy}"
            )
    leaves = by_name(tree)
    return jax.tree.unflatten(structure, [leaves[name] for name in params_names])


def check_shapes(
    tree: PyTree, params: PyTree, what: str, remedy: str, of: str = "params"
) -> None:
    """Check that the leaves of a tree have the shapes of those of `params`.

    Args:
        tree: with the tree structure of `params`, as `align` returns it.
        params: the tree whose shapes are expected.
        what: what the error message calls the first tree.
        remedy: the end of the error message.
        of: what the error message calls `params`.

    Raises:
        ValueError: naming the first leaf of another shape.

    Example:
        >>> check_shapes([jnp.ones(2)], [jnp.ones(3)], "the result", "Return one for each.")
        Traceback (most recent call last):
        ValueError: the result has shape (2,) at '0', where params has (3,). Return one ...
    """
    leaves = jax.tree.leaves(tree), jax.tree.leaves(params)
    for name, leaf, expected in zip(names(params), *leaves, strict=True):
        if jnp.shape(leaf) != jnp.shape(expected):
            raise ValueError(
                f"{what} has shape {jnp.shape(leaf)} at '{name}', where {of} has "
                f"{jnp.shape(expected)}. {remedy}"
            )


def to_dicts(tree: PyTree) -> PyTree:
    """Convert containers to dicts with string keys, and tuples to lists; lists stay.

    Args:
        tree: any pytree; NNX variables become their arrays.

    Returns:
        Dicts, lists and leaves, with the same leaf names.

    Example:
        >>> to_dicts({0: (1, None), "b": 2})
        {'0': [1, None], 'b': 2}
    """
    if tree is None or isinstance(tree, dict):
        return tree and {str(key): to_dicts(child) for key, child in tree.items()}
    if type(tree) in (list, tuple):
        return [to_dicts(child) for child in tree]
    children = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: node is not tree
    )
    if [path for path, _ in children] == [()]:
        return tree
    if is_variable(tree) and len(children) == 1:
        return to_dicts(children[0][1])
    return {name_of(path): to_dicts(child) for path, child in children}


def subset(mask: Mask, params: Params) -> Mask:
    """Restrict a mask to the leaves that `params` has, as optax's `masked` does.

    Args:
        mask: a mask whose leaves may include more than those of `params`.
        params: parameters; an `optax.MaskedNode` or None has no leaves.

    Returns:
        The mask with the tree structure of `params`, or `mask` unchanged if `params` has a
        leaf that it lacks.

    Example:
        >>> subset({"a": 1, "b": 2}, {"a": None, "b": 3})
        {'a': None, 'b': 2}
    """
    structure = jax.tree.structure(params)
    params_names = names(params)
    if jax.tree.structure(mask) == structure or not set(params_names) <= set(
        names(mask)
    ):
        return mask
    leaves = by_name(mask)
    return jax.tree.unflatten(structure, [leaves[name] for name in params_names])
