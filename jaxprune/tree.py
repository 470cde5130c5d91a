"""Names, sizes and checks of parameter trees: the only module that reads key paths."""

import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jaxprune.types import Mask, Params, Prunable, Scores

_BUILD_MASK = "Build it with masks.ones_like(params)."

# Words in a name that mark a leaf as no kernel, by what they mean.
NOT_PRUNED = {
    "bias": {"bias", "biases", "beta", "offset", "shift"},
    "norm": {"norm", "bn", "ln"},
    "scale": {"scale", "gamma", "mean", "var", "variance"},
    "embedding": {"emb", "embed", "embedding", "embeddings", "wte", "wpe"},
    "position": {"pos", "position", "positions", "positional", "pe"},
    "token": {"cls", "token", "tokens"},
}


def names(tree: PyTree) -> list[str]:
    """Name each leaf by its path, in the order of `jax.tree.leaves`.

    NNX keeps each array in a variable; the variable's `value` is not part of the name.

    Args:
        tree: any pytree.

    Returns:
        One name per leaf, such as `conv1/kernel`.

    Example:
        >>> names({"fc": {"kernel": 1, "bias": 2}})
        ['fc/bias', 'fc/kernel']
    """
    found = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable):
        if _is_variable(node):
            inner = jax.tree_util.tree_leaves_with_path(node)
            found += [_name((*path, *rest[1:])) for rest, _ in inner]
        else:
            found.append(_name(path))
    return found


def _is_variable(node: Any, kind: str = "Variable") -> bool:
    """Return whether a node is an NNX variable; by name, since flax is not imported."""
    return any(
        base.__name__ == kind and base.__module__.startswith("flax")
        for base in type(node).__mro__
    )


def _name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def by_name(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by name, in network order.

    JAX sorts the keys of a dict as text, so `conv10` comes before `conv2`; here numbers
    sort as numbers. A tree records no other order: layers whose names do not sort in
    network order stay in the order of their names.

    Args:
        tree: any pytree.

    Returns:
        A dict from name to leaf, in network order.

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
        The results of `fn`, one per leaf.

    Example:
        >>> map_named(lambda name, x: name == "b", {"a": 1, "b": 2})
        {'a': False, 'b': True}
    """
    structure = jax.tree.structure(tree)
    named = jax.tree.unflatten(structure, names(tree))
    return jax.tree.map(fn, named, tree, *rest)


def prunable(
    params: Params | Mask,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
) -> Prunable:
    """Choose the leaves whose weights may be pruned.

    By default these are the floating leaves with two or more dimensions that are not named
    like a bias, a norm, an embedding, a position or a token (`NOT_PRUNED`). A leaf called
    `kernel` is always a kernel, and `b1` is a bias where `w1` is beside it.

    Args:
        params: parameters, or a mask or shapes of the same tree.
        include: name patterns, such as `"*/kernel"`, that replace the default rule: every
            floating leaf that one of them matches. `*` matches any text, `/` included.
        exclude: name patterns of leaves to leave out.

    Returns:
        A tree of bools.

    Raises:
        ValueError: if a pattern matches no leaf.

    Example:
        >>> params = {"bias": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2))}
        >>> prunable(params)
        {'bias': False, 'kernel': True}
        >>> prunable(params, include="*", exclude="kernel")
        {'bias': True, 'kernel': False}
    """
    check_arrays(params)
    every = names(params)
    wanted = None if include is None else set(_matching(include, every, "include"))
    unwanted = set(_matching(exclude, every, "exclude"))

    def choose(name: str, leaf: Any) -> bool:
        if name in unwanted or not _may_be_weight(leaf):
            return False
        if wanted is not None:
            return name in wanted
        return len(jnp.shape(leaf)) >= 2 and _is_kernel(name, every)

    return map_named(choose, params)


def _matching(
    patterns: str | Sequence[str], every: Sequence[str], option: str
) -> Iterator[str]:
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = fnmatch.filter(every, pattern)
        if not matched:
            raise ValueError(
                f"{option} pattern '{pattern}' matches no leaf. Pass a pattern such as "
                f"'*kernel'; the leaves are {', '.join(every[:8])}"
                f"{', ...' if len(every) > 8 else ''}."
            )
        yield from matched


def _is_kernel(name: str, every: Sequence[str]) -> bool:
    """Apply the table of words to a name."""
    *modules, own = name.split("/")
    words = _words(own)
    if "kernel" in words:
        return True
    if any(words & kind for kind in NOT_PRUNED.values()):
        return False
    beside = "/".join([*modules, own.replace("b", "w", 1)])
    if own.startswith("b") and beside in every:
        return False
    module = next((part for part in reversed(modules) if not part.isdigit()), "")
    words = _words(module)
    is_lookup = words & NOT_PRUNED["embedding"] and "patch" not in words
    return not (words & NOT_PRUNED["norm"] or is_lookup)


def _words(part: str) -> set[str]:
    """Split a name into lower-case words; `layernorm` and the like also count as `norm`."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)
    found = {word.lower() for word in words}
    return found | {"norm" for word in found if word.endswith("norm")}


def _may_be_weight(leaf: Any) -> bool:
    """Return whether a leaf is floating, or a mask, which stands for one."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.floating) or dtype == np.bool_


def check_prunable(params: Params | Mask, chosen: Prunable | None) -> Prunable:
    """Return the chosen leaves, checked, or the default where there is no choice.

    Args:
        params: parameters, or a mask or scores of the same tree.
        chosen: one bool per leaf, or None.

    Raises:
        ValueError: if `chosen` does not have the leaves of `params`.
    """
    if chosen is None:
        return prunable(params)
    return align(chosen, params, "prunable", "Build it with tree.prunable(params).")


def size(params: Params | Mask, chosen: Prunable | None = None) -> int:
    """Count the prunable weights, as a Python int.

    Args:
        params: parameters, or a mask of their shapes.
        chosen: which leaves count; by default those of `tree.prunable`.

    Example:
        >>> size({"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))})
        4
    """
    counts = jax.tree.leaves(check_prunable(params, chosen))
    return sum(
        math.prod(leaf.shape)
        for leaf, is_prunable in zip(jax.tree.leaves(params), counts, strict=True)
        if is_prunable
    )


def is_floating(leaf: Any) -> bool:
    """Return whether a leaf is a floating array: keys, counters and bools are not.

    Example:
        >>> is_floating(jnp.ones(2)), is_floating(jax.random.key(0))
        (True, False)
    """
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def is_key(leaf: Any) -> bool:
    """Return whether a leaf is an array of `jax.random.key`.

    Example:
        >>> is_key(jax.random.key(0)), is_key(jnp.ones(2))
        (True, False)
    """
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def map_floating(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Map over the floating leaves of a tree; other leaves stay as they are.

    Args:
        fn: called with the leaf of each tree.
        tree: any pytree of arrays.
        rest: trees of the same structure.

    Example:
        >>> map_floating(jnp.negative, {"count": jnp.arange(2), "w": jnp.ones(1)})
        {'count': Array([0, 1], dtype=int32), 'w': Array([-1.], dtype=float32)}
    """
    return jax.tree.map(
        lambda leaf, *others: fn(leaf, *others) if is_floating(leaf) else leaf,
        tree,
        *rest,
    )


def split_floating(
    params: Params,
) -> tuple[list[Array], Callable[[Sequence[Any]], Params]]:
    """Split off the floating leaves, which are what can be differentiated.

    Args:
        params: parameters; they may hold keys and counters.

    Returns:
        The floating leaves, and a function that puts new ones in their place.

    Example:
        >>> weights, merge = split_floating({"count": jnp.int32(3), "w": jnp.ones(2)})
        >>> merge([2 * weights[0]])["w"]
        Array([2., 2.], dtype=float32)
    """
    leaves, structure = jax.tree.flatten(params)
    places = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]

    def merge(weights: Sequence[Any]) -> Params:
        merged = list(leaves)
        for place, weight in zip(places, weights, strict=True):
            merged[place] = weight
        return jax.tree.unflatten(structure, merged)

    return [leaves[place] for place in places], merge


def unscored_to_false(scores: Scores) -> Scores:
    """Replace leaves that are not floating by False: a key or a counter has no score.

    Example:
        >>> unscored_to_false({"count": jnp.int32(3)})
        {'count': Array(False, dtype=bool)}
    """
    return jax.tree.map(
        lambda leaf: leaf if is_floating(leaf) else jnp.zeros(leaf.shape, bool), scores
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
        TypeError: if a leaf of `mask` is not bool.

    Example:
        >>> apply_mask({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([True, False])})
        {'w': Array([3., 0.], dtype=float32)}
    """
    if mask is None:
        return params
    mask = check_mirrors(mask, params)
    return map_floating(lambda w, m: jnp.where(m, w, jnp.zeros_like(w)), params, mask)


def check_mirrors(mask: Mask, params: Params | Scores, of: str = "params") -> Mask:
    """Check that a mask has the leaves, shapes and dtype that a mask of `params` has.

    Args:
        mask: the mask to check.
        params: the tree that it should mirror.
        of: what the error message calls that tree.

    Returns:
        The mask in the containers of `params`.

    Raises:
        ValueError: naming the first leaf that is missing, superfluous or of
            another shape.
        TypeError: if a leaf is not bool.
    """
    mask = align(mask, params, "mask", _BUILD_MASK, of)
    for name, m, w in zip(
        names(params), jax.tree.leaves(mask), jax.tree.leaves(params), strict=True
    ):
        if jnp.shape(m) != jnp.shape(w):
            raise ValueError(
                f"mask has shape {jnp.shape(m)} at '{name}', where the parameter has "
                f"{jnp.shape(w)}. {_BUILD_MASK}"
            )
    check_bool(mask)
    return mask


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
    if _is_variable(tree) and len(children) == 1:
        return to_dicts(children[0][1])
    return {_name(path): to_dicts(child) for path, child in children}


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


def check_arrays(params: PyTree) -> None:
    """Check that every leaf of a tree is an array.

    Raises:
        TypeError: naming the first leaf that is not.
    """
    for name, leaf in zip(names(params), jax.tree.leaves(params), strict=True):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"params holds a {type(leaf).__name__} at '{name}', where an array is "
                "expected. Of an Equinox module, pass the arrays alone: params, static = "
                "eqx.partition(model, eqx.is_inexact_array)."
            )


def check_trainable(params: Params) -> None:
    """Check that parameters to be differentiated hold arrays, and no BatchNorm statistics.

    Raises:
        TypeError: naming the first leaf that is not an array.
        ValueError: naming the statistics.
    """
    check_arrays(params)
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_variable)
    for path, node in nodes:
        if _is_variable(node, "BatchStat"):
            raise ValueError(
                f"params holds a BatchNorm statistic at '{_name(path)}', which is not "
                "trained. Split the statistics off: graphdef, params, state = "
                "nnx.split(model, nnx.Param, ...)."
            )
    if isinstance(params, dict) and "batch_stats" in params:
        raise ValueError(
            "params holds 'batch_stats', which are not trained. Pass "
            "variables['params'] alone."
        )


@jax.jit
def _all_finite(leaves: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()}


def check_finite(scores: Scores, remedy: str, prunable: Prunable | None = None) -> None:
    """Refuse scores that are not finite. Traced scores can't be checked and pass.

    Args:
        scores: scores of any method.
        remedy: the end of the error message.
        prunable: which leaves to check; by default all.

    Raises:
        ValueError: naming the first leaf with a score that is nan or infinite.
    """
    checked = jax.tree.map(lambda _: True, scores) if prunable is None else prunable
    leaves = {
        name: leaf
        for name, leaf, is_checked in zip(
            names(scores),
            jax.tree.leaves(scores),
            jax.tree.leaves(checked),
            strict=True,
        )
        if is_checked and is_floating(leaf)
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
            f"{kind}): {remedy}"
        )


def check_batches(batches: Any) -> None:
    """Refuse what is not a list of batches, and an empty list.

    Raises:
        ValueError: if it is a single batch, such as `(inputs, labels)`, or has no batch.
    """
    is_one_batch = isinstance(batches, tuple) and any(
        hasattr(part, "shape") for part in batches
    )
    if is_one_batch or not isinstance(batches, list | tuple):
        raise ValueError(
            f"batches is a {type(batches).__name__}, which looks like one batch. Pass a "
            "list of batches, such as [(inputs, labels)]; their losses are summed."
        )
    if len(batches) == 0:
        raise ValueError(
            "batches is empty, so there is no loss to differentiate. Pass a list with "
            "at least one batch."
        )
