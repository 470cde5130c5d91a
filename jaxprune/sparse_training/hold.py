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
    """

    inner: Any
    mask: Mask


def hold_pruned(
    inner: optax.GradientTransformation, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that pruned weights stay exactly zero.

    Masking the forward pass is not enough: momentum, Adam's moments and weight decay move
    pruned weights. Here gradients are masked before `inner`, so that
    `clip_by_global_norm` sees the norm of what is trained, and updates are masked after
    it. A pruned weight that is not zero yet becomes zero with the first update. The mask
    is part of the state, so training loops stay as they are, and a new mask does not
    recompile.

    Wrap the whole chain. It also works inside `optax.masked`, `multi_transform`,
    `MultiSteps`, `inject_hyperparams`, `apply_if_finite` and `lookahead`.

    Args:
        inner: the optimizer, such as `optax.adamw(1e-3)`.
        mask: True keeps; the leaves of the parameters in any containers, also more leaves
            than this transformation is given (in `multi_transform`). None keeps all.

    Returns:
        An optax transformation. Its `update` also takes `mask=`, which replaces the mask of
        the state.

    Raises:
        ValueError: from `init` or `update`, if the mask does not mirror the parameters.

    Example:
        >>> params = {"w": jnp.ones(2)}
        >>> mask = {"w": jnp.array([True, False])}
        >>> optimizer = hold_pruned(optax.sgd(0.1, momentum=0.9), mask)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": jnp.ones(2)}, state, params)
        >>> optax.apply_updates(params, updates)["w"]
        Array([0.9, 0. ], dtype=float32)
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> HoldPrunedState:
        kept = masks.ones_like(params) if mask is None else _part(mask, params)
        # A copy, so that a step may donate the state and leave the caller's mask alone.
        return HoldPrunedState(inner.init(params), jax.tree.map(jnp.copy, kept))

    def update(
        updates: optax.Updates,
        state: HoldPrunedState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, HoldPrunedState]:
        given = extra.pop("mask", None)
        # `lookahead` with reset_state turns bools into integers.
        stored = jax.tree.map(lambda leaf: leaf.astype(bool), state.mask)
        kept = stored if given is None else given
        current = _part(kept, updates)
        updates = tree.apply_mask(updates, current)
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        if params is None:
            updates = tree.apply_mask(updates, current)
        else:
            updates = jax.tree.map(_hold, updates, current, params)
        return updates, HoldPrunedState(inner_state, _part(current, stored))

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def _hold(update: Array, kept: Array, param: Array) -> Array:
    """Return the update of a kept weight, and for a pruned one what makes it zero."""
    if not tree.is_floating(update):
        return update
    return jnp.where(kept, update, -param.astype(update.dtype))


def _part(mask: Mask, params: optax.Params) -> Mask:
    """Return the part of a mask that mirrors the leaves of `params`."""
    return tree.check_mirrors(tree.subset(mask, params), params)
