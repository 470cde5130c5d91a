"""Hold pruned weights at zero, whatever the optimizer."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxprune import masks, tree
from jaxprune.types import Mask


class HoldPrunedState(NamedTuple):
    """The state of `hold_pruned`.

    Attributes:
        inner: the state of the wrapped transformation.
        mask: True keeps; replace it with `state._replace(mask=...)` or `update(..., mask=)`.
            If the step donates its state, put in `tree.copy(mask)`.
    """

    inner: Any
    mask: Mask


def hold_pruned(
    inner: Any, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that pruned weights stay exactly zero.

    Masking the forward pass is not enough: momentum, Adam's moments and weight decay move
    pruned weights. Here gradients are masked before `inner`, so that
    `clip_by_global_norm` sees the norm of what is trained, and updates are masked after
    it. A finite pruned weight becomes zero with the first update. The mask
    is part of the state, so training loops stay as they are, and a new mask does not
    recompile.

    Wrap the whole chain, such as `hold_pruned(optax.chain(...), mask)`. A transformation
    that follows it changes the update that sets a pruned weight to zero, so that pruned
    weights move. It also works inside `optax.masked`, `multi_transform`,
    `MultiSteps`, `inject_hyperparams`, `apply_if_finite` and `lookahead`. Transformations
    that keep copies of the parameters, such as `lookahead` and `schedule_free`, copy them
    at the start: give them `masks.apply(params, mask)`.

    Args:
        inner: the optimizer, such as `optax.adamw(1e-3)`.
        mask: True keeps; None keeps all. It is matched to the parameters by leaf name,
            so it may be a dict where they are an NNX State. In `multi_transform` it may be
            the mask of the whole network.

    Returns:
        An optax transformation. Its `update` needs `params`, and also takes `mask=`, which
        replaces the mask of the state: `optimizer.update(model, gradients, mask=mask)` with
        `nnx.Optimizer`. With `TrainState`, replace the mask of the state:
        `state.replace(opt_state=state.opt_state._replace(mask=mask))`.

    Raises:
        TypeError: if `inner` is not an optax transformation, or the mask is not bool.
        ValueError: from `init` or `update`, if the mask does not mirror the parameters, or
            `params` is not passed to `update`.

    Example:
        >>> params = {"w": jnp.ones(2)}
        >>> mask = {"w": jnp.array([True, False])}
        >>> optimizer = hold_pruned(optax.sgd(0.1, momentum=0.9), mask)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": jnp.ones(2)}, state, params)
        >>> optax.apply_updates(params, updates)["w"]
        Array([0.9, 0. ], dtype=float32)
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(
            f"inner is a {type(inner).__name__}. Pass an optax transformation, such as "
            "optax.adamw(1e-3)."
        )
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> HoldPrunedState:
        selected = masks.ones_like(params) if mask is None else part(mask, params)
        # A copy, so that a step may donate the state without deleting the caller's mask.
        return HoldPrunedState(inner.init(params), tree.copy(selected))

    def update(
        updates: optax.Updates,
        state: HoldPrunedState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, HoldPrunedState]:
        if params is None:
            raise ValueError(
                "hold_pruned needs the parameters to set pruned ones to zero. Call "
                "update(gradients, state, params)."
            )
        replacement = extra.pop("mask", None)
        stored = jax.tree.map(as_bool, state.mask)
        current = part(stored if replacement is None else replacement, updates)
        updates = tree.apply_mask(updates, current)
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        updates = jax.tree.map(_hold, updates, current, params)
        return updates, HoldPrunedState(inner_state, part(current, stored))

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def as_bool(leaf: Array) -> Array:
    """Undo what `lookahead` with reset_state does: it turns bools into integers."""
    return leaf.astype(bool) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf


def _hold(update: Array, kept: Array, param: Array) -> Array:
    """Return the update, and for a pruned weight the one that sets it to zero."""
    if not jnp.issubdtype(update.dtype, jnp.inexact):
        return update
    # In the parameter's dtype: a narrower update would not cancel it exactly.
    return jnp.where(kept, update.astype(param.dtype), -param)


def part(mask: Mask, params: optax.Params) -> Mask:
    """Return the part of a mask that mirrors the leaves of `params`."""
    return tree.check_mirrors(tree.subset(mask, params), params)
