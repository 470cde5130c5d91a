"""Leaf names. No other module handles key paths."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
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
    """Return whether a node is a variable of Flax; by name, since flax is not imported.

    Args:
        node: a node of a tree.
        kinds: names of classes; by default those of NNX variables and Linen boxes.
    """
    return any(
        base.__name__ in (kinds or ("Variable", "AxisMetadata"))
        and base.__module__.startswith("flax")
        for base in type(node).__mro__
    )


def name_of(path: Sequence[Any]) -> str:
    """Join a key path into a name."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def by_name(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by name, in network order.

    JAX sorts the keys of a dict as text, so `conv10` comes before `conv2`; here numbers
    sort as numbers. Other names stay sorted as text, since a tree does not record the
    order of the network.

    Args:
        tree: any pytree.

    Returns:
        A dict from name to leaf, in network order.

    Raises:
        ValueError: if two leaves have one name.

    Example:
        >>> list(by_name({"conv10": 1, "conv2": 2}))
        ['conv2', 'conv10']
    """
    leaves = dict(zip(names(tree), jax.tree.leaves(tree), strict=True))
    if len(leaves) < len(jax.tree.leaves(tree)):
        twice = next(name for name in leaves if names(tree).count(name) > 1)
        raise ValueError(
            f"two leaves are named '{twice}'. Rename one of them; '/' separates the levels "
            "of a name."
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
    """Return a tree in the containers of `params`; its leaves must have the same names.

    Args:
        tree: such as a mask that was read from a file into dicts.
        params: the tree whose containers to use, such as an NNX State.
        what: what the error message calls the first tree.
        remedy: the end of the error message.
        of: what the error message calls `params`.

    Raises:
        ValueError: naming the first leaf that is missing or superfluous.

    Example:
        >>> align({"0": 1, "1": 2}, [3, 4], "mask", "")
        [1, 2]
    """
    structure = jax.tree.structure(params)
    if jax.tree.structure(tree) == structure:
        return tree
    got, wanted = names(tree), names(params)
    for name in wanted:
        if name not in got:
            raise ValueError(
                f"{what} has no leaf at '{name}', which {of} has. {remedy}"
            )
    for name in got:
        if name not in wanted:
            raise ValueError(
                f"{what} has a leaf at '{name}', which {of} lacks. {remedy}"
            )
    leaves = dict(zip(got, jax.tree.leaves(tree), strict=True))
    return jax.tree.unflatten(structure, [leaves[name] for name in wanted])


def to_dicts(tree: PyTree) -> PyTree:
    """Turn every container into a dict with text keys, but keep plain lists as lists.

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
    """Return a mask without the leaves that `params` lacks, as optax's `masked` does.

    Args:
        mask: a mask of a tree that `params` may be a part of.
        params: parameters; an `optax.MaskedNode` or None has no leaves.

    Returns:
        The mask in the containers of `params`, or `mask` itself where `params` has leaves
        that it lacks.

    Example:
        >>> subset({"a": 1, "b": 2}, {"a": None, "b": 3})
        {'a': None, 'b': 2}
    """
    leaves = dict(zip(names(mask), jax.tree.leaves(mask), strict=True))
    wanted = names(params)
    if not set(wanted) <= set(leaves):
        return mask
    structure = jax.tree.structure(params)
    return jax.tree.unflatten(structure, [leaves[name] for name in wanted])
