"""What all wrappers share that change the mask during training."""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from jaxprune import masks, scores, tree
from jaxprune.sparse_training.hold import (
    HoldPrunedState,
    as_bool,
    hold_pruned,
    part,
)
from jaxprune.types import Budget, Fraction, Mask, Params, Prunable, RandomKey


@dataclasses.dataclass(frozen=True)
class Steps:
    """When a mask changes: at `start + every`, `start + 2 * every`, ..., and at `stop`.

    Attributes:
        stop: the last change, counted in updates of the optimizer.
        every: number of updates from one change to the next.
        start: number of updates before the first interval.

    Example:
        >>> Steps(stop=1000, every=300).number
        4
    """

    stop: int | Any
    every: int | Any = 100
    start: int | Any = 0

    def __post_init__(self) -> None:
        """Check the values."""
        try:
            given = (self.start, self.every, self.stop)
            values = [0 if v is True else operator.index(v) for v in given]
        except TypeError:
            values = [0, 0, 0]
        start, every, stop = values
        if not 0 <= start < stop < 2**31 or every < 1:
            raise ValueError(
                "steps are whole numbers of updates with every >= 1 and 0 <= start < stop; "
                f"got start={self.start}, every={self.every}, stop={self.stop}. Pass, for "
                "example, Steps(stop=7500, every=100)."
            )

    @property
    def number(self) -> int:
        """Return how many times the mask changes."""
        return -(-(self.stop - self.start) // self.every)

    def index(self, step: Int32[Array, ""]) -> Int32[Array, ""]:
        """Return which change a step is, from 1; that of a change that comes next."""
        passed = step - jnp.int32(self.start)
        ceiled = -(-passed // jnp.int32(self.every))
        return jnp.clip(ceiled, 0, self.number)

    def is_due(self, step: Int32[Array, ""]) -> Array:
        """Return whether the mask changes at a step."""
        passed = step - jnp.int32(self.start)
        is_multiple = passed % jnp.int32(self.every) == 0
        is_inside = (passed > 0) & (step < self.stop)
        return is_inside & is_multiple | (step == self.stop)


class SparseState(NamedTuple):
    """The state of a wrapper that changes its mask.

    Attributes:
        inner: the state of the wrapped transformation.
        mask: True keeps.
        step: number of updates so far.
    """

    inner: Any
    mask: Mask
    step: Int32[Array, ""]


def check_steps(steps: Any) -> None:
    """Check that steps are `Steps`."""
    if not isinstance(steps, Steps):
        raise TypeError(
            f"steps is a {type(steps).__name__}. Pass sparse_training.Steps(stop=...), the "
            "updates at which the mask changes."
        )


# change(step, mask, params, gradients) -> mask.
Change: TypeAlias = Callable[[Array, Mask, Params, Params], Mask]


def changing(
    inner: Any,
    first: Callable[[Params], Mask],
    steps: Steps | Any,
    change: Change,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer with a mask that changes at some steps.

    At such a step the mask changes first; then `inner` sees the gradients of the weights
    that the new mask keeps. What the state of `inner` holds of a weight that grows back is
    that of a fresh optimizer; its count of steps goes on, so that Adam moves such a weight by
    about 3 times the learning rate at first. An update has forward-mode derivatives
    (`jax.jvp`) only: JAX refuses `jax.grad` through its loop.

    Args:
        inner: the optimizer.
        first: the mask of parameters before training.
        steps: when the mask changes.
        change: `change(step, mask, params, gradients) -> mask`, with pruned weights of
            `params` at zero, and the gradients of all weights.

    Returns:
        An optax transformation whose state is a `SparseState`.

    Raises:
        TypeError: if `inner` is not an optax transformation, or `steps` not `Steps`.

    Example:
        >>> shrink = lambda step, mask, params, gradients: jax.tree.map(jnp.zeros_like, mask)
        >>> optimizer = changing(optax.sgd(1.0), masks.ones_like, Steps(1, 1), shrink)
        >>> state = optimizer.init({"w": jnp.ones(2)})
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(
        ...         {"w": jnp.ones(2)}, state, {"w": jnp.ones(2)}
        ...     )
        >>> state.step.item(), state.mask["w"].tolist(), updates["w"].tolist()
        (2, [False, False], [-1.0, -1.0])
    """
    hold: Any = hold_pruned(inner)
    check_steps(steps)

    def init(params: optax.Params) -> SparseState:
        # A copy, so that a step may donate the state without deleting the caller's mask.
        mask = tree.copy(first(params))
        return SparseState(inner.init(params), mask, jnp.int32(0))

    def update(
        updates: optax.Updates,
        state: SparseState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, SparseState]:
        if params is None:
            raise ValueError(
                "sparse training needs the parameters to choose among them. Call "
                "update(gradients, state, params)."
            )
        if "mask" in extra:
            raise ValueError(
                "this optimizer changes its mask by itself, and update got mask=. Leave it "
                "out, or use sparse_training.hold_pruned."
            )
        stored = jax.tree.map(as_bool, state.mask)
        before = (state.inner, stored)
        structure = jax.tree.structure(before)

        def changed(carry: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
            inner_state, stored = jax.tree.unflatten(structure, carry[1])
            current = part(stored, updates)
            masked = masks.apply(params, current)
            mask = change(state.step, current, masked, updates)
            grown = jax.tree.map(lambda new, old: new & ~old, mask, current)
            inner_state = _restart(inner_state, inner.init(masked), grown)
            return jnp.bool_(False), jax.tree.leaves((inner_state, part(mask, stored)))

        # A loop of one iteration or none: with a donated state, XLA updates the carry of a
        # loop in place, but copies the mask twice behind a `cond`, due or not.
        _, leaves = jax.lax.while_loop(
            lambda carry: carry[0],
            changed,
            (steps.is_due(state.step), jax.tree.leaves(before)),
        )
        inner_state, mask = jax.tree.unflatten(structure, leaves)
        result, after = hold.update(
            updates, HoldPrunedState(inner_state, mask), params, **extra
        )
        return result, SparseState(after.inner, after.mask, state.step + 1)

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def _restart(state: Any, fresh: Any, grown: Mask) -> Any:
    """Return a state with that of a fresh optimizer for weights that have grown back.

    A leaf of the state belongs to a parameter if its name ends with that of the parameter
    and it has its shape.
    """
    by_name = dict(zip(tree.names(grown), jax.tree.leaves(grown), strict=True))

    def restart(name: str, leaf: Any, start: Any) -> Any:
        owner = _owner(name, by_name)
        if owner is None or owner.shape != jnp.shape(leaf):
            return leaf
        return jnp.where(owner, jnp.asarray(start).astype(leaf.dtype), leaf)

    return tree.map_named(restart, state, fresh)


def _owner(name: str, by_name: Mapping[str, Any]) -> Any:
    """Return the entry with the longest name that a name ends with."""
    parts = name.split("/")
    for first in range(len(parts) + 1):
        rest = "/".join(parts[first:])
        if rest in by_name:
            return by_name[rest]
    return None


def counts(
    density: Fraction | Budget, params: Params, prunable: Prunable | None
) -> int | dict[str, int]:
    """Return how many weights a density keeps, or a budget keeps of each leaf.

    Example:
        >>> counts(0.5, {"w": jnp.ones((2, 3))}, None)
        3
    """
    leaves = tree.by_name(params)
    chosen = masks.uniform(params, 1.0, prunable=part_of(prunable, params))
    sizes = {name: leaves[name].size for name in chosen}
    if not isinstance(density, Mapping):
        return masks.num_kept(density, sum(sizes.values()))
    masks.check_budget(density, list(sizes))
    return {name: masks.num_kept(each, sizes[name]) for name, each in density.items()}


def dense(
    density: Fraction | Budget, prunable: Prunable | None
) -> Callable[[Params], Mask]:
    """Return a function that checks a density for parameters, and keeps all of them."""

    def first(params: Params) -> Mask:
        counts(density, params, prunable)
        return masks.ones_like(params)

    return first


def part_of(prunable: Prunable | None, params: Params) -> Prunable | None:
    """Return the part of `prunable` for the leaves of `params`, as for a mask."""
    return None if prunable is None else tree.subset(prunable, params)


def random_mask(
    key: RandomKey,
    params: Params,
    density: Fraction | Budget,
    prunable: Prunable | None,
) -> Mask:
    """Draw a mask; a density is that of the ERK budget.

    Example:
        >>> mask = random_mask(jax.random.key(0), {"w": jnp.ones((4, 5))}, 0.3, None)
        >>> masks.count(mask)
        6
    """
    chosen = part_of(prunable, params)
    if not isinstance(density, Mapping):
        density = masks.erk(params, density, prunable=chosen)
    return masks.select(scores.random(key, params), density, prunable=chosen)
