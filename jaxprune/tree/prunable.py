"""Which leaves may be pruned, decided by their names."""

import difflib
import fnmatch
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.tree.checks import check_arrays
from jaxprune.tree.names import align, map_named, names
from jaxprune.types import Mask, Params, Prunable

# Leaves with one of these words in their name are not pruned by default.
WORDS_NOT_PRUNED = {
    "bias": {"bias", "biases", "beta", "offset", "shift"},
    "norm": {"norm", "bn", "ln", "rms"},
    "scale": {"scale", "gamma", "mean", "var", "variance"},
    "embedding": {"emb", "embed", "embedding", "lookup", "tok", "wte", "wpe"},
    "position": {"pos", "position", "positional", "pe"},
    "token": {"cls", "token"},
}


def prunable(
    params: Params | Mask,
    *,
    include: str | Sequence[str] | Any = None,
    exclude: str | Sequence[str] | Any = (),
) -> Prunable:
    """Choose the leaves whose weights may be pruned.

    By default, a floating-point leaf with two or more dimensions is prunable unless its
    name marks a bias, scale, norm, embedding, position or token (`WORDS_NOT_PRUNED`), or
    its parent module is a norm or an embedding (patch embeddings are prunable). A leaf
    called `kernel` is prunable whatever its parent is called. A leaf such as `b1` is a
    bias if its parent also has `w1` or `W1`. Types are not known, so a norm in a list called
    `layers` is not recognized: check the choice with `print(masks.summary(mask))`.

    Args:
        params: parameters, or a mask or shapes of the same tree.
        include: name patterns, such as `"*/kernel"`, that replace the default rule: every
            floating leaf that one of them matches. `*` matches any text, `/` included.
        exclude: name patterns of leaves to leave out.

    Returns:
        The tree with a bool in place of every array. For an NNX State, the bools are inside
        its variables; to use it as an optax mask, pass the function itself, such as
        `optax.add_decayed_weights(1e-4, mask=tree.prunable)`.

    Raises:
        ValueError: if a pattern matches no leaf.
        TypeError: if a leaf is not an array, or a pattern not a string.

    Example:
        >>> params = {"bias": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2))}
        >>> prunable(params)
        {'bias': False, 'kernel': True}
        >>> prunable(params, include="*", exclude="kernel")
        {'bias': True, 'kernel': False}
    """
    check_arrays(params)
    leaf_names = names(params)
    wanted = None if include is None else set(matching(include, leaf_names, "include"))
    unwanted = set(matching(exclude, leaf_names, "exclude"))

    leaves = jax.tree.leaves(params)
    is_mask = not any(_is_floating(leaf) for leaf in leaves)

    def choose(name: str, leaf: Any) -> bool:
        # Beside floats, a bool leaf is a buffer, such as a causal mask.
        is_weight = _is_floating(leaf) or (is_mask and _dtype(leaf) == np.bool_)
        if name in unwanted or not is_weight:
            return False
        if wanted is not None:
            return name in wanted
        return len(jnp.shape(leaf)) >= 2 and _is_kernel(name, leaf_names)

    return map_named(choose, params)


def matching(
    patterns: str | Sequence[str] | Any, leaf_names: Sequence[str], option: str
) -> Iterator[str]:
    """Yield the names that match one of some patterns.

    Args:
        patterns: a pattern or several; `*` matches any text, `/` included.
        leaf_names: names of leaves.
        option: what error messages call the patterns.

    Raises:
        ValueError: if a pattern matches no name.
        TypeError: if `patterns` is neither a string nor a list.

    Example:
        >>> list(matching("*/kernel", ["a/bias", "a/kernel"], "include"))
        ['a/kernel']
    """
    if not isinstance(patterns, str | Sequence):
        raise TypeError(
            f"{option} is a {type(patterns).__name__}. Pass a name pattern such as "
            "'*/kernel', or a list of them."
        )
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = fnmatch.filter(leaf_names, pattern)
        if not matched:
            last = [name.split("/")[-1] for name in leaf_names]
            closest = difflib.get_close_matches(pattern.split("/")[-1], last, 1, 0)
            raise ValueError(
                f"{option} pattern '{pattern}' matches no leaf. Pass a pattern such as "
                f"'*{closest[0]}'; the leaves are "
                f"{', '.join(leaf_names[:8])}"
                f"{', ...' if len(leaf_names) > 8 else ''}."
            )
        yield from matched


def _is_kernel(name: str, leaf_names: Sequence[str]) -> bool:
    """Return whether the names of a leaf and its module mark it as prunable."""
    *modules, leaf_name = name.split("/")
    words = _words(leaf_name)
    if "kernel" in words:
        return True
    if any(words & kind for kind in WORDS_NOT_PRUNED.values()):
        return False
    weights = ["/".join([*modules, letter + leaf_name[1:]]) for letter in "wW"]
    if leaf_name[:1] in ("b", "B") and any(weight in leaf_names for weight in weights):
        return False
    module = next((part for part in reversed(modules) if not part.isdigit()), "")
    words = _words(module)
    is_lookup = words & WORDS_NOT_PRUNED["embedding"] and "patch" not in words
    return not (words & WORDS_NOT_PRUNED["norm"] or is_lookup)


def _words(part: str) -> set[str]:
    """Split a name into lower-case words; `norms` and `layernorm` count as `norm`."""
    words = {w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)}
    words |= {word.removesuffix("s") for word in words}
    return words | {"norm" for word in words if word.endswith("norm")}


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(_dtype(leaf), jnp.floating)


def check_prunable(params: Params | Mask, chosen: Prunable | None) -> Prunable:
    """Check the chosen leaves; None selects the default of `prunable`.

    Args:
        params: parameters, or a mask or scores of the same tree.
        chosen: one bool per leaf, or None.

    Returns:
        One bool per leaf, with the tree structure of `params`.

    Raises:
        ValueError: if `chosen` does not have the leaves of `params`.
        TypeError: if a leaf of `chosen` is not a bool.

    Example:
        >>> check_prunable({"kernel": jnp.ones((2, 2))}, None)
        {'kernel': True}
    """
    if chosen is None:
        return prunable(params)
    remedy = "Build it with tree.prunable(params)."
    for name, leaf in zip(names(chosen), jax.tree.leaves(chosen), strict=True):
        if not isinstance(leaf, bool | np.bool_):
            raise TypeError(
                f"prunable has a {type(leaf).__name__} at '{name}', where one bool per leaf "
                f"is expected. {remedy}"
            )
    return align(chosen, params, "prunable", remedy)


def size(params: Params | Mask, chosen: Prunable | None = None) -> int:
    """Count the prunable weights, as a Python int.

    Args:
        params: parameters, or a mask of their shapes.
        chosen: which leaves count; by default those of `tree.prunable`.

    Returns:
        The number of weights in these leaves.

    Example:
        >>> size({"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))})
        4
    """
    is_counted = jax.tree.leaves(check_prunable(params, chosen))
    return sum(
        math.prod(leaf.shape)
        for leaf, is_prunable in zip(jax.tree.leaves(params), is_counted, strict=True)
        if is_prunable
    )
