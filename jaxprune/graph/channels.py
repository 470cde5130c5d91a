"""Channel groups: slices of several leaves that can only be removed together."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.sparse import csr_array

from jaxprune.graph import relations as rel
from jaxprune.graph.kinds import (
    Kind,
    View,
    find_kinds,
    labels_of,
    needed_whole,
    row,
    splits_of,
    view_of,
)
from jaxprune.graph.liveness import Liveness, keep, live
from jaxprune.graph.rules import RULES, Rule
from jaxprune.graph.trace import Program, trace
from jaxprune.graph.uses import uses
from jaxprune.types import Params

# Of an axis: by position, the numbers of the groups that remove it, filled up with the number
# of groups.
Axis = np.ndarray


class Box(NamedTuple):
    """An array, or the multiply-accumulates of a product, and what removes parts of it.

    Attributes:
        count: numbers in it, or multiply-accumulates.
        axes: of each axis, the groups that remove each position.
    """

    count: int
    axes: tuple[Axis, ...]


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
    leaves: tuple[Box, ...]
    products: tuple[Box, ...]
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
    view = view_of(program, rules)
    kernels = list(dict.fromkeys(i for use in uses(program) for i in use.kernels))
    whole = needed_whole(view)
    found, seeds = find_kinds(view, whole, kernels)
    refused = _refused(view, found, seeds, rules)
    kinds, kept_seeds = [], []
    for kind in found:
        if kind not in refused:
            kinds.append(kind._replace(first=len(kept_seeds)))
            kept_seeds += seeds[kind.first : kind.first + kind.size]
    axes_of = functools.partial(_axis, view, view.owners[:, kept_seeds])
    leaves = tuple(
        _box(program, [(v, axis) for axis in range(len(program.shape(v)))], axes_of)
        for v in program.params
    )
    fixed = {f"{kind.what} of {kind.leaf}": why for kind, why in refused.items()}
    return Groups(
        tuple(kinds),
        leaves,
        tuple(_box(program, axes, axes_of) for axes in _product_axes(program)),
        tuple(program.names),
        tuple(i in kernels for i in range(len(program.params))),
        jax.tree.structure(params),
        _reasons(view, whole, leaves, kernels, len(kept_seeds)) | fixed,
    )


def kept_entries(box: Box, kept: np.ndarray) -> list[Any]:
    """Return which positions of each axis of a box are left.

    Args:
        box: of a leaf or a product.
        kept: of each group, whether it stays.

    Returns:
        One bool array for each axis.

    Example:
        >>> box = Box(2, (np.array([[0], [1]]),))
        >>> kept_entries(box, np.array([True, False]))
        [array([ True, False])]
    """
    padded = np.append(kept, True)
    return [padded[axis].all(1) for axis in box.axes]


def _axis(view: View, owners: Any, value: int, axis: Any) -> Axis:
    """Return by position of an axis the groups that remove it."""
    labels, groups = labels_of(view, value, [axis]), owners.shape[1]
    rows = owners[labels]
    most = max(np.diff(rows.indptr).max(initial=0), 1)
    result = np.full((len(labels), most), groups)
    place = np.arange(rows.nnz) - np.repeat(rows.indptr[:-1], np.diff(rows.indptr))
    result[np.repeat(np.arange(len(labels)), np.diff(rows.indptr)), place] = (
        rows.indices
    )
    return result


def _box(
    program: Program,
    axes: Sequence[tuple[int, Any]],
    axes_of: Callable[[int, Any], Axis],
) -> Box:
    count = math.prod(program.shape(v)[axis] for v, axis in axes)
    return Box(count, tuple(axes_of(v, axis) for v, axis in axes))


def _product_axes(program: Program) -> list[list[tuple[int, Any]]]:
    """Return the axes over which each product multiplies: a value, and its axis."""
    result = []
    for eqn in program.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            outs = [
                (eqn.outs[0], axis) for axis in range(len(program.shape(eqn.outs[0])))
            ]
            numbers = eqn.params["dimension_numbers"]
            if eqn.primitive.name == "dot_general":
                inner = [(eqn.ins[0], axis) for axis in numbers[0][0]]
            else:
                inner = [(eqn.ins[1], axis) for axis in numbers.rhs_spec[1:]]
            result.append([*outs, *inner])
    return result


def _refused(
    view: View, kinds: Sequence[Kind], seeds: Sequence[int], rules: Mapping[str, Rule]
) -> dict[Kind, str]:
    """Remove one group of each kind for trial; return the kinds that leave something."""
    program, owners = view.program, view.owners[:, seeds]
    axes_of = functools.partial(_axis, view, owners)
    kept = np.ones(len(seeds), bool)
    kept[[kind.first for kind in kinds]] = False
    trial = []
    for v in program.params:
        axes = [(v, axis) for axis in range(len(program.shape(v)))]
        entries = kept_entries(_box(program, axes, axes_of), kept)
        trial.append(functools.reduce(np.multiply.outer, entries, np.ones((), bool)))
    liveness = live(program, trial, rules=rules)
    left = keep(program, liveness, program.args)
    members = csr_array(owners.T)
    return {
        kind: _left_behind(view, liveness, own)
        for kind in kinds
        for own in [row(members, kind.first)]
        if any(np.isin(labels, own).any() for labels in _left_of_params(view, left))
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
    whole: Mapping[int, str],
    leaves: Sequence[Box],
    kernels: Sequence[int],
    total: int,
) -> dict[str, str]:
    """Return by kernel and axis why no group removes positions of it."""
    of_seed = dict.fromkeys(
        np.flatnonzero(splits_of(view)).tolist(),
        "another operation divides these channels in another way",
    )
    for label, why in whole.items():
        for seed in row(view.owners, label):
            of_seed[int(seed)] = why
    reasons = {}
    for i in kernels:
        value = view.program.params[i]
        for axis, groups in enumerate(leaves[i].axes):
            is_fixed = (groups == total).all(1)
            labels = labels_of(view, value, [axis])[is_fixed]
            why = [
                of_seed.get(int(s))
                for label in labels[:1]
                for s in row(view.owners, label)
            ]
            if why and why[0] and "window" not in why[0]:
                part = "" if is_fixed.all() else f", {is_fixed.sum()} of {len(groups)}"
                reasons[f"{view.program.names[i]}, axis {axis}{part}"] = why[0]
    return reasons
