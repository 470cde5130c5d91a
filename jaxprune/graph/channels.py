"""Channel groups: slices of several leaves that can only be removed together."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from scipy.sparse import csr_array

from jaxprune.graph import relations as rel
from jaxprune.graph.kinds import (
    WINDOW,
    Kind,
    View,
    bound_groups,
    find_kinds,
    labels_of,
    row,
    view_of,
)
from jaxprune.graph.liveness import Liveness, keep, live
from jaxprune.graph.program import PRODUCTS, Program
from jaxprune.graph.rules import RULES, Rule
from jaxprune.graph.trace import trace
from jaxprune.graph.uses import uses
from jaxprune.types import Params

# What removes parts of an array, or of the multiply-accumulates of a product: of each axis,
# by position, the numbers of the groups that remove it, filled up with the number of groups.
Axes: TypeAlias = tuple[np.ndarray, ...]


class Groups(NamedTuple):
    """The channel groups of a function.

    Attributes:
        kinds: the kinds of groups.
        leaves: of each leaf of the parameters, in order, what removes parts of it.
        products: the same of each matrix product and convolution.
        names: names of the leaves.
        kernels: of each leaf, whether a product multiplies it with data.
        structure: structure of the parameters.
        fixed: by kernel and axis, why its positions can't be removed.
    """

    kinds: tuple[Kind, ...]
    leaves: tuple[Axes, ...]
    products: tuple[Axes, ...]
    names: tuple[str, ...]
    kernels: tuple[bool, ...]
    structure: Any
    fixed: Mapping[str, str]

    def __repr__(self) -> str:
        """List the kinds, and what is fixed."""
        kinds = [f"{kind.size} {kind.what} of {kind.leaf}" for kind in self.kinds]
        fixed = [f"{name}: {why}" for name, why in self.fixed.items()]
        return "\n  ".join(["Groups:", *kinds, "fixed:", *fixed])


def channels(
    fn: Callable[..., Any],
    params: Params,
    *args: Any,
    rules: Mapping[str, Rule] | None = None,
) -> Groups:
    """Find the neurons, channels, heads and features that can be removed from a function.

    A group takes slices of all leaves that depend on each other: a feature map takes an
    output channel of its convolution, its bias and norm, and an input channel of every
    convolution that reads it. Positions that an argument, an output, or an operation that
    can't be followed needs are never removed. As a test, one group of each kind is removed; a
    kind is refused if a removed channel would not be zero. `fixed` has the reasons.

    Args:
        fn: `fn(params, *args)`, in inference form; traced, not run.
        params: arrays or shapes.
        args: arrays or shapes.
        rules: the rule of each primitive; by default `graph.RULES`.

    Returns:
        The groups, to be passed to `masks.select_channels`.

    Raises:
        ValueError: if the function has side effects.

    Example:
        >>> fn = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"]
        >>> params = {"w": np.ones((4, 8)), "v": np.ones((8, 2))}
        >>> groups = channels(fn, params, np.ones((1, 4)))
        >>> groups.kinds
        (Kind(what='neurons', leaf='w', first=0, size=8),)
        >>> groups.fixed["v, axis 1"]
        'an output of the function'

    References:
        Fang et al., DepGraph: Towards Any Structural Pruning,
        https://arxiv.org/abs/2301.12900, CVPR 2023, groups layers of PyTorch modules; here
        the groups are read from the traced function.
    """
    program = trace(fn, params, *args)
    rules = RULES if rules is None else rules
    view, used = view_of(program, rules), uses(program)
    kernels = list(dict.fromkeys(i for use in used for i in use.kernels))
    bound = bound_groups(view)
    found, seeds = find_kinds(view, used, kernels, bound)
    refused = _refused(view, found, seeds, rules)
    kinds, kept_seeds = [], []
    for kind in found:
        if kind not in refused:
            kinds.append(kind._replace(first=len(kept_seeds)))
            kept_seeds += seeds[kind.first : kind.first + kind.size]
    owners = view.owners[:, kept_seeds]
    leaves = tuple(_axes(view, owners, _of_value(program, v)) for v in program.params)
    fixed = {f"{kind.what} of {kind.leaf}": why for kind, why in refused.items()}
    return Groups(
        tuple(kinds),
        leaves,
        tuple(_axes(view, owners, axes) for axes in _of_products(program)),
        tuple(program.names),
        tuple(i in kernels for i in range(len(leaves))),
        jax.tree.structure(params),
        _reasons(view, bound, leaves, kernels, len(kept_seeds)) | fixed,
    )


def kept_entries(axes: Axes, kept: np.ndarray) -> list[Any]:
    """Return which positions of each axis are left.

    Args:
        axes: of a leaf or a product, from `Groups`.
        kept: of each group, whether it stays.

    Returns:
        One bool array for each axis.

    Example:
        >>> kept_entries((np.array([[0], [1]]),), np.array([True, False]))
        [array([ True, False])]
    """
    padded = np.append(kept, True)
    return [padded[axis].all(1) for axis in axes]


def kept_mask(axes: Axes, kept: np.ndarray) -> Any:
    """Return which entries of an array are left.

    Args:
        axes: of a leaf, from `Groups`.
        kept: of each group, whether it stays.

    Returns:
        A bool array.

    Example:
        >>> kept_mask((np.array([[0], [1]]),), np.array([True, False]))
        array([ True, False])
    """
    entries = kept_entries(axes, kept)
    return functools.reduce(np.multiply.outer, entries, np.ones((), bool))


def _axes(view: View, owners: Any, of: Sequence[tuple[int, Any]]) -> Axes:
    """Return what removes positions of some axes, given as a value and its axis."""
    return tuple(_axis(owners[labels_of(view, v, [axis])]) for v, axis in of)


def _axis(rows: Any) -> np.ndarray:
    """Return the groups in each row of a sparse matrix, padded to equal length."""
    sizes = np.diff(rows.indptr)
    result = np.full((len(sizes), max(sizes.max(initial=0), 1)), rows.shape[1])
    place = np.arange(rows.nnz) - np.repeat(rows.indptr[:-1], sizes)
    result[np.repeat(np.arange(len(sizes)), sizes), place] = rows.indices
    return result


def _of_value(program: Program, value: int) -> list[tuple[int, Any]]:
    return [(value, axis) for axis in range(len(program.shape(value)))]


def _of_products(program: Program) -> list[list[tuple[int, Any]]]:
    """Return the axes over which each product multiplies: a value, and its axis."""
    result = []
    for eqn in program.eqns:
        if eqn.primitive.name in PRODUCTS:
            numbers = eqn.params["dimension_numbers"]
            if eqn.primitive.name == "dot_general":
                inner = [(eqn.ins[0], axis) for axis in numbers[0][0]]
            else:
                inner = [(eqn.ins[1], axis) for axis in numbers.rhs_spec[1:]]
            result.append([*_of_value(program, eqn.outs[0]), *inner])
    return result


def _refused(
    view: View, kinds: Sequence[Kind], seeds: Sequence[int], rules: Mapping[str, Rule]
) -> dict[Kind, str]:
    """Remove one group of each kind for trial; return the kinds that leave something."""
    program, owners = view.program, view.owners[:, seeds]
    kept = np.ones(len(seeds), bool)
    kept[[kind.first for kind in kinds]] = False
    trial = [
        kept_mask(_axes(view, owners, _of_value(program, v)), kept)
        for v in program.params
    ]
    liveness = live(program, trial, rules=rules)
    left = keep(program, liveness, program.args)
    members = csr_array(owners.T)
    is_left = np.zeros(owners.shape[0], bool)  # of each component
    for labels in _left_of_params(view, left):
        is_left[labels] = True
    return {
        kind: _left_behind(view, liveness, own)
        for kind in kinds
        for own in [row(members, kind.first)]
        if is_left[own].any()
    }


def _left_of_params(view: View, left: Sequence[rel.Keep]) -> Iterator[np.ndarray]:
    for v in view.program.params:
        for axis, positions in enumerate(left[v]):
            labels = labels_of(view, v, [axis])
            yield labels if positions is None else labels[positions]


def _left_behind(view: View, liveness: Liveness, own: np.ndarray) -> str:
    """Name the first operation after which something removed is needed and not zero."""
    for eqn in view.program.eqns:
        for v in eqn.outs:
            need = liveness.needs[v]
            if need is None:
                continue
            used = need & liveness.states[v].nonzero
            for axis in range(used.ndim):
                others = tuple(a for a in range(used.ndim) if a != axis)
                positions = np.flatnonzero(used.any(others))
                if np.isin(labels_of(view, v, [axis])[positions], own).any():
                    return (
                        f"{eqn.primitive.name} at '{eqn.where}' makes something else of it "
                        "than zero"
                    )
    return "something else depends on it"


def _reasons(
    view: View,
    bound: Mapping[int, str],
    leaves: Sequence[Axes],
    kernels: Sequence[int],
    total: int,
) -> dict[str, str]:
    """Return by kernel and axis why no group removes positions of it."""
    reasons = {}
    for i in kernels:
        value, name = view.program.params[i], view.program.names[i]
        for axis, groups in enumerate(leaves[i]):
            is_fixed = (groups == total).all(1)
            labels = labels_of(view, value, [axis])[is_fixed]
            if not len(labels):
                continue
            owners = row(view.owners, labels[0]).tolist()
            reason = bound.get(owners[0]) if owners else None
            if reason and reason != WINDOW:
                part = "" if is_fixed.all() else f", {is_fixed.sum()} of {len(groups)}"
                reasons[f"{name}, axis {axis}{part}"] = reason
    return reasons
