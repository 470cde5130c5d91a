"""Checks of masks, parameters, scores and batches, and the mask applied."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jaxprune.tree.leaves import is_floating, map_floating
from jaxprune.tree.names import align, is_variable, name_of, names
from jaxprune.types import Batches, LossFn, Mask, Params, Prunable, Scores

_BUILD_MASK = "Build it with masks.ones_like(params)."


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

    Args:
        mask: the mask to check.

    Raises:
        TypeError: naming the first leaf that is not.
    """
    for name, leaf in zip(names(mask), jax.tree.leaves(mask), strict=True):
        if jnp.result_type(leaf) != np.bool_:
            raise TypeError(
                f"mask is {jnp.result_type(leaf)} at '{name}', where True keeps a weight "
                "and False prunes it. Pass bools: jax.tree.map(lambda m: m != 0, mask)."
            )


def check_arrays(params: PyTree, what: str = "params") -> None:
    """Check that every leaf of a tree is an array.

    Args:
        params: the tree to check.
        what: what the error message calls it.

    Raises:
        TypeError: naming the first leaf that is not.
    """
    for name, leaf in zip(names(params), jax.tree.leaves(params), strict=True):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"{what} has a {type(leaf).__name__} at '{name}', where an array is "
                "expected. Of an Equinox module, pass the arrays alone: params, static = "
                "eqx.partition(model, eqx.is_inexact_array)."
            )


def check_trainable(params: Params) -> None:
    """Check that parameters to be differentiated hold arrays, and no BatchNorm statistics.

    Args:
        params: the parameters.

    Raises:
        TypeError: naming the first leaf that is not an array.
        ValueError: naming the statistics.
    """
    check_arrays(params)
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_variable)
    for path, node in nodes:
        if is_variable(node, "BatchStat"):
            raise ValueError(
                f"params holds a BatchNorm statistic at '{name_of(path)}', which is not "
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


def check_finite(
    scores: Scores,
    remedy: str,
    prunable: Prunable | None = None,
    what: str = "scores",
) -> None:
    """Refuse scores that are not finite. Traced scores can't be checked and pass.

    Args:
        scores: scores of any method.
        remedy: the end of the error message.
        prunable: which leaves to check; by default all.
        what: what the error message calls the tree.

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
            f"{what} are not finite at '{bad[0]}' ({wrong} of {leaf.size} entries "
            f"{kind}): {remedy}"
        )


def check_batches(batches: Any) -> None:
    """Check that batches are a list with at least one batch.

    Args:
        batches: the argument to check.

    Raises:
        ValueError: if it is a single batch, such as `(inputs, labels)`, or has no batch.
    """
    is_one_batch = isinstance(batches, tuple) and any(
        hasattr(part, "shape") for part in batches
    )
    if is_one_batch or not isinstance(batches, list | tuple):
        raise ValueError(
            f"batches is a {type(batches).__name__}{' of arrays' * is_one_batch}. Pass a "
            "list of batches, such as [(inputs, labels)]; their losses are summed."
        )
    if len(batches) == 0:
        raise ValueError(
            "batches is empty, so there is no loss to differentiate. Pass a list with "
            "at least one batch."
        )


def gradient(
    loss_fn: LossFn, weights: Sequence[Array], batches: Batches
) -> list[Array]:
    """Return the gradient of the sum of the losses of some batches.

    Args:
        loss_fn: `loss_fn(weights, batch)`, a scalar.
        weights: floating arrays.
        batches: a list of batches.

    Raises:
        TypeError: if `loss_fn` returns a tuple.
    """

    def checked(weights: Sequence[Array], batch: Any) -> Array:
        loss = loss_fn(weights, batch)
        if isinstance(loss, tuple):
            raise TypeError(
                f"loss_fn returned a tuple of {len(loss)}. Return the loss alone: pass "
                "lambda params, batch: loss_fn(params, batch)[0]."
            )
        return loss

    gradients = [jax.grad(checked)(weights, batch) for batch in batches]
    return jax.tree.map(lambda *parts: sum(parts), *gradients)


def check_informative(scores: Scores, mask: Mask | None) -> None:
    """Refuse scores of a loss that are all 0. Traced scores can't be checked and pass.

    Args:
        scores: scores of a method that differentiates a loss.
        mask: the mask they were taken at; a network that it cuts has such scores.

    Raises:
        ValueError: if `mask` is None and every score is 0.
    """
    leaves = [leaf for leaf in jax.tree.leaves(scores) if is_floating(leaf)]
    if mask is not None or any(isinstance(leaf, Tracer) for leaf in leaves):
        return
    if not any(bool(leaf.any()) for leaf in leaves):
        raise ValueError(
            "all scores are 0: the loss does not depend on params, or the batches are "
            "empty. Check that loss_fn uses its first argument."
        )
