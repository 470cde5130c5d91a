"""Apply masks, and check masks, parameters, scores and batches."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jaxprune.tree.leaves import is_floating, is_key, is_on_one_cpu
from jaxprune.tree.names import align, check_shapes, is_variable, name_of, names
from jaxprune.types import Batches, LossFn, Mask, Params, Prunable, Scores

_BUILD_MASK = "Build it with masks.ones_like(params)."


def apply_mask(params: Params, mask: Mask | None) -> Params:
    """Set the pruned weights to zero.

    Args:
        params: parameters; integers, bools and keys are not changed.
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
    kept = jax.tree.leaves(check_mirrors(mask, params))
    leaves, structure = jax.tree.flatten(params)
    chosen = [i for i, leaf in enumerate(leaves) if _is_inexact(leaf)]
    masked = _masked([leaves[i] for i in chosen], [kept[i] for i in chosen])
    for i, leaf in zip(chosen, masked, strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


@jax.jit
def _masked(leaves: list[Array], kept: list[Array]) -> list[Array]:
    """Mask all leaves in one program; outside `jit`, each shape would compile."""
    return [
        jnp.where(m, leaf, jnp.zeros_like(leaf))
        for leaf, m in zip(leaves, kept, strict=True)
    ]


def _is_inexact(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def check_mirrors(mask: Mask, params: Params | Scores, of: str = "params") -> Mask:
    """Check that a mask has the leaves, shapes and dtype that a mask of `params` has.

    Args:
        mask: the mask to check.
        params: the tree that it should mirror.
        of: what the error message calls that tree.

    Returns:
        The mask with the tree structure of `params`.

    Raises:
        ValueError: naming the first leaf that is missing, unexpected or of
            another shape.
        TypeError: if a leaf is not bool.

    Example:
        >>> check_mirrors({"0": jnp.array([True])}, [jnp.ones(1)])
        [Array([ True], dtype=bool)]
    """
    mask = align(mask, params, "mask", _BUILD_MASK, of)
    check_shapes(mask, params, "mask", _BUILD_MASK, "the parameter")
    check_bool(mask)
    return mask


def check_option(what: str, got: Any, known: Iterable[str]) -> None:
    """Check that an option is one of the known ones.

    Args:
        what: what the error message calls the option.
        got: the value to check.
        known: the values that it may have.

    Raises:
        ValueError: naming the known ones.

    Example:
        >>> check_option("scope", "row", ("global", "layer"))
        Traceback (most recent call last):
        ValueError: scope 'row' is unknown. Pass one of global, layer.
    """
    known = list(known)
    if not isinstance(got, str) or got not in known:
        raise ValueError(f"{what} '{got}' is unknown. Pass one of {', '.join(known)}.")


def check_key(key: Any) -> None:
    """Check that a value is one random key.

    Args:
        key: the value to check.

    Raises:
        TypeError: if it is not.

    Example:
        >>> check_key(0)
        Traceback (most recent call last):
        TypeError: key is 0, not a random key. Pass jax.random.key(seed).
    """
    if not is_key(key):
        raise TypeError(f"key is {key}, not a random key. Pass jax.random.key(seed).")
    if key.shape:
        raise TypeError(
            f"key is an array of keys of shape {key.shape}. Pass one of them."
        )


def check_bool(mask: Mask) -> None:
    """Check that every leaf of a mask is bool.

    Args:
        mask: the mask to check.

    Raises:
        TypeError: naming the first leaf that is not, or is only a shape.

    Example:
        >>> check_bool({"w": jnp.ones(2)})
        Traceback (most recent call last):
        TypeError: mask has dtype float32 at 'w', but a mask is bool: ...
    """
    for name, leaf in zip(names(mask), jax.tree.leaves(mask), strict=True):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"mask has a ShapeDtypeStruct at '{name}', where an array is expected. "
                f"{_BUILD_MASK}"
            )
        if jnp.result_type(leaf) != np.bool_:
            raise TypeError(
                f"mask has dtype {jnp.result_type(leaf)} at '{name}', but a mask is "
                "bool: True keeps a weight. Make one of scores with masks.select(scores, "
                "density), or of zeros and ones with jax.tree.map(lambda m: m != 0, mask)."
            )


def check_arrays(params: PyTree, what: str = "params") -> None:
    """Check that every leaf of a tree is an array.

    Args:
        params: the tree to check.
        what: what the error message calls it.

    Raises:
        TypeError: naming the first leaf that is not.

    Example:
        >>> check_arrays({"w": jnp.ones(2), "activation": "relu"})
        Traceback (most recent call last):
        TypeError: params has a str at 'activation', where an array is expected. ...
    """
    for name, leaf in zip(names(params), jax.tree.leaves(params), strict=True):
        if callable(leaf) and not name:
            raise TypeError(
                f"{what} is a function. The function comes first, then {what}."
            )
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"{what} has a {type(leaf).__name__} at '{name}', where an array is "
                "expected. For an Equinox module, pass only its arrays: params, static = "
                "eqx.partition(model, eqx.is_inexact_array)."
            )


def check_trainable(params: Params) -> None:
    """Check that parameters to be differentiated hold arrays, and no BatchNorm statistics.

    Args:
        params: the parameters.

    Raises:
        TypeError: naming the first leaf that is not an array.
        ValueError: naming the statistics.

    Example:
        >>> check_trainable({"params": {}, "batch_stats": {}})
        Traceback (most recent call last):
        ValueError: params holds 'batch_stats', which are not trained. ...
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


def find_finite(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return which leaves are finite, without a program where NumPy can read them.

    Args:
        leaves: arrays by name.

    Example:
        >>> finite = find_finite({"a": jnp.ones(2), "b": jnp.array([jnp.inf])})
        >>> [name for name in finite if finite[name]]
        ['a']
    """
    on_host = {n: leaf for n, leaf in leaves.items() if is_on_one_cpu(leaf)}
    on_device = {n: leaf for n, leaf in leaves.items() if n not in on_host}
    finite = {n: np.isfinite(np.asarray(leaf)).all() for n, leaf in on_host.items()}
    return finite | (_all_finite(on_device) if on_device else {})


def check_finite(
    scores: Scores,
    remedy: str,
    prunable: Prunable | None = None,
    what: str = "scores",
) -> None:
    """Raise an error if a score is not finite; traced scores can't be checked.

    Args:
        scores: scores of any method.
        remedy: the end of the error message.
        prunable: which leaves to check; by default all.
        what: what the error message calls the tree.

    Raises:
        ValueError: naming the first leaf with a score that is nan or infinite.

    Example:
        >>> check_finite({"w": jnp.array([1.0, jnp.nan])}, "pass rescale=True.")
        Traceback (most recent call last):
        ValueError: scores are not finite at 'w' (1 of 2 entries are nan or infinite): ...
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
    finite = find_finite(leaves)
    if any(isinstance(leaf, Tracer) for leaf in finite.values()):
        return
    bad = [name for name, is_finite in finite.items() if not is_finite]
    if bad:
        leaf = np.asarray(leaves[bad[0]])
        num_bad = leaf.size - int(np.isfinite(leaf).sum())
        raise ValueError(
            f"{what} are not finite at '{bad[0]}' ({num_bad} of {leaf.size} entries "
            f"are nan or infinite): {remedy}"
        )


def check_batches(batches: Any) -> None:
    """Check that batches are a list with at least one batch.

    Args:
        batches: the argument to check.

    Raises:
        ValueError: if it is a single batch, such as `(inputs, labels)`, or has no batch.

    Example:
        >>> check_batches([])
        Traceback (most recent call last):
        ValueError: batches is empty, so there is no loss to differentiate. ...
    """
    is_one_batch = isinstance(batches, tuple) and any(
        hasattr(part, "shape") for part in batches
    )
    if is_one_batch or not isinstance(batches, list | tuple):
        raise ValueError(
            f"batches is a {type(batches).__name__}{' of arrays' * is_one_batch}. Pass a "
            "list of batches, such as [(inputs, labels)]; their losses are summed."
        )
    kinds = {
        (
            jax.tree.structure(batch),
            *(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(batch)
              if hasattr(x, "dtype")),
        )
        for batch in batches
    }  # fmt: skip
    if len(kinds) > 1:
        raise ValueError(
            "batches holds trees of different structures or dtypes. Pass a list of batches, "
            "such as [(inputs, labels)]; their losses are summed."
        )
    if any(0 in jnp.shape(leaf) for leaf in jax.tree.leaves(batches)):
        raise ValueError(
            "batches holds an array without entries. Pass batches of one example or more."
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

    Returns:
        The gradient, with the shapes and dtypes of `weights`.

    Raises:
        TypeError: if `loss_fn` does not return a scalar.

    Example:
        >>> loss_fn = lambda weights, x: (weights[0] * x).sum()
        >>> gradient(loss_fn, [jnp.ones(2)], [jnp.ones(2), jnp.arange(2.0)])
        [Array([1., 2.], dtype=float32)]
    """

    def scalar_loss(weights: Sequence[Array], batch: Any) -> Array:
        loss = loss_fn(weights, batch)
        if isinstance(loss, tuple):
            raise TypeError(
                f"loss_fn returned a tuple of {len(loss)}. Return the loss alone: pass "
                "lambda params, batch: loss_fn(params, batch)[0]."
            )
        if getattr(loss, "shape", None) != ():
            received = getattr(loss, "shape", type(loss).__name__)
            raise TypeError(
                f"loss_fn returned {received}, where a scalar is expected. Return the mean "
                "loss of the batch."
            )
        return loss

    gradients = [jax.grad(scalar_loss)(weights, batch) for batch in batches]
    return jax.tree.map(lambda *parts: sum(parts), *gradients)


def check_informative(scores: Scores, mask: Mask | None) -> None:
    """Raise an error if all scores are 0; traced scores can't be checked.

    Args:
        scores: scores of a method that differentiates a function.
        mask: the mask of the scores. If it prunes anything, nothing is checked, since a
            disconnected network has such scores.

    Raises:
        ValueError: if every score is 0 and `mask` prunes nothing.

    Example:
        >>> check_informative({"w": jnp.zeros(2)}, None)
        Traceback (most recent call last):
        ValueError: all scores are 0: the result of the function does not depend on ...
    """
    leaves = [leaf for leaf in jax.tree.leaves(scores) if is_floating(leaf)]
    kept = jax.tree.leaves(mask)
    if any(isinstance(leaf, Tracer) for leaf in (*leaves, *kept)):
        return
    if not any(bool(leaf.any()) for leaf in leaves) and all(
        leaf.all() for leaf in kept
    ):
        raise ValueError(
            "all scores are 0: the result of the function does not depend on params, the "
            "data is empty, or, for grasp, the loss is linear in params. Check that the "
            "function uses its first argument, and that BatchNorm does not normalize a "
            "constant batch to 0. For prospr, pass a smaller learning_rate."
        )
