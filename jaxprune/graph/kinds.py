"""The kinds of channel groups: what goes together, and what it is."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from scipy.sparse import coo_array, csr_array

from jaxprune.graph import relations as rel
from jaxprune.graph.liveness import relate, rules_of
from jaxprune.graph.program import PRODUCTS, Program, depends_on
from jaxprune.graph.rules import Rule
from jaxprune.graph.uses import Use

What = Literal[
    "neurons",
    "channels",
    "heads",
    "query-key dimensions",
    "value dimensions",
    "residual features",
]

# Why no group takes single taps of a window.
WINDOW = "the window of a convolution"


class Kind(NamedTuple):
    """Channel groups that take the same slices of the same leaves.

    Attributes:
        what: what they are, by how products use them. "channels" come from a convolution,
            "neurons" from another product. "heads" are batches of a product of two
            activations, or are shared by its keys and values (grouped queries have two kinds:
            groups, and heads within groups); "query-key dimensions" are summed in such a
            product (pairs under rotary positions), "value dimensions" are not. "residual
            features" are what several layers add to, or what a recurrent layer carries.
        leaf: name of the first kernel that computes them.
        first: number of the first group.
        size: number of groups.
    """

    what: What
    leaf: str
    first: int
    size: int


class View(NamedTuple):
    """A program and what goes with what in it.

    Attributes:
        program: of `trace`.
        rules: the rule of each equation.
        relations: what is tied, pinned and a product.
        labels: component of each node.
        owners: (component, component): whether the first goes if the second does.
        data: values that depend on the arguments.
    """

    program: Program
    rules: Sequence[Rule]
    relations: rel.Relations
    labels: np.ndarray
    owners: Any
    data: set[int]


def view_of(program: Program, rules: Mapping[str, Rule]) -> View:
    """Return a program with what goes with what in it."""
    chosen = rules_of(program, rules)
    relations = relate(program, chosen)
    labels = rel.components(relations.ties, relations.size)
    owners = _owners(relations, labels)
    data = depends_on(program, program.args)
    return View(program, chosen, relations, labels, owners, data)


def _owners(relations: rel.Relations, labels: np.ndarray) -> Any:
    """Return which components each component goes with.

    A cell of a product goes if any of its factors does, and a factor goes if all of its cells
    do; others go by themselves.
    """
    size = int(labels.max(initial=-1)) + 1
    cells = [labels[axis] for axis, _ in relations.products]
    is_alone = np.ones(size, bool)
    is_alone[np.concatenate([np.zeros(0, int), *cells])] = False
    alone = np.flatnonzero(is_alone)
    entries, before = [(alone, alone)], -1
    while True:
        rows, columns = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        owners: Any = csr_array((np.ones(len(rows)), (rows, columns)), (size, size))
        owners.sum_duplicates()
        owners.data[:] = 1
        if owners.nnz == before:
            return owners
        before = owners.nnz
        # Entries, since a matrix of this size for each product takes quadratic time.
        entries = [owners.nonzero()]
        for axis, factors in relations.products:
            for factor, place in _places(factors):
                every = coo_array(place @ owners[labels[axis]])
                is_every = every.data == place.shape[1] // len(factor)
                entries.append(
                    (labels[factor[every.row[is_every]]], every.col[is_every])
                )
                cells_of = coo_array(place.T @ owners[labels[factor]])
                entries.append((labels[axis[cells_of.row]], cells_of.col))


def _places(factors: Sequence[rel.Nodes]) -> Iterator[tuple[rel.Nodes, Any]]:
    """Yield each factor of a product, and (factor, cell): which cells it is in."""
    grid = np.indices([len(factor) for factor in factors])
    for factor, index in zip(factors, grid.reshape(len(factors), -1), strict=True):
        columns = np.arange(len(index))
        yield factor, csr_array((np.ones(len(index)), (index, columns)))


def row(matrix: Any, i: SupportsIndex) -> np.ndarray:
    """Return the columns of the entries in a row."""
    i = operator.index(i)
    return matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]]


def labels_of(view: View, value: int, axes: Sequence[Any]) -> np.ndarray:
    """Return the components of the positions of some axes of a value."""
    found = [view.labels[rel.nodes(view.relations, value, axis)] for axis in axes]
    return np.concatenate([np.zeros(0, int), *found])


def bound_groups(view: View) -> dict[int, str]:
    """Return the components that can't be removed as a group, and why."""
    bound = dict.fromkeys(
        np.flatnonzero(_splits(view)).tolist(),
        "another operation divides these channels in another way",
    )
    for label, reason in _needed_whole(view).items():
        bound |= dict.fromkeys(row(view.owners, label).tolist(), reason)
    return bound


def _needed_whole(view: View) -> dict[int, str]:
    """Return the components that something needs whole, and what that is."""
    program = view.program
    whole: dict[int, str] = {}

    def add(labels: np.ndarray, reason: str) -> None:
        for label in np.unique(labels):
            whole.setdefault(int(label), reason)

    for values, reason in ((program.outs, "an output"), (program.args, "an argument")):
        for v in values:
            axes = range(len(program.shape(v)) or 1)
            add(labels_of(view, v, axes), f"{reason} of the function")
    for i, pinned in view.relations.pins.items():
        eqn = program.eqns[i]
        what = "can't be followed" if view.rules[i].opaque else "needs all of it"
        reason = f"{eqn.primitive.name} at '{eqn.where}' {what}"
        add(view.labels[np.concatenate(pinned)], reason)
    for hull in view.relations.hulls:
        add(view.labels[hull], WINDOW)
    return whole


def find_kinds(
    view: View, used: Sequence[Use], kernels: Sequence[int], bound: Mapping[int, str]
) -> tuple[list[Kind], list[int]]:
    """Return the kinds of groups, and the component that makes each group."""
    program, size = view.program, view.owners.shape[0]
    of_leaf = [labels_of(view, v, range(len(program.shape(v)))) for v in program.params]
    is_kernel, is_param = np.zeros((2, size), bool)
    is_param[np.concatenate([np.zeros(0, int), *of_leaf])] = True
    for i in kernels:
        is_kernel[of_leaf[i]] = True
    members = csr_array(view.owners.T)  # by group, the components that it takes
    members.sort_indices()
    taken, first = _positions(view, members)
    is_free = np.diff(members.indptr) > 0
    is_free[list(bound)] = False
    alike: dict[Any, list[tuple[int, int]]] = {}
    seen: set[bytes] = set()
    for seed in np.flatnonzero(is_free):
        own = row(members, seed)
        slices = own[is_param[own]].tobytes()
        if is_kernel[own].any() and slices not in seen:
            seen.add(slices)
            span = slice(taken.indptr[seed], taken.indptr[seed + 1])
            key = taken.indices[span].tobytes(), taken.data[span].tobytes()
            alike.setdefault(key, []).append((int(first[own].min()), int(seed)))
    roles = _roles(view)
    # Of each component, the place of the first kernel that computes it, else that reads it.
    orders = _writers(view, used) + [(i, of_leaf[i]) for i in kernels]
    first_order = np.full(size, len(orders))
    for place in range(len(orders) - 1, -1, -1):
        first_order[orders[place][1]] = place
    sorted_kinds = []
    for group in alike.values():
        own = row(members, min(group)[1])
        owned = set(own.tolist())
        leaf, _ = orders[first_order[own].min()]
        what = next((w for w, labels in roles.items() if labels & owned), "neurons")
        if len(group) > 1:
            sorted_kinds.append((kernels.index(leaf), sorted(group), leaf, what))
    kinds: list[Kind] = []
    seeds: list[int] = []
    for _, group, leaf, what in sorted(sorted_kinds):
        name: Any = program.names[leaf]
        kinds.append(Kind(what, name, len(seeds), len(group)))
        seeds += [seed for _, seed in group]
    return kinds, seeds


def _positions(view: View, members: Any) -> tuple[Any, np.ndarray]:
    """Return how many positions of each axis a group takes, and each component's first."""
    extents = [extent for shape in view.relations.shapes for extent in shape or (1,)]
    axis_of = np.repeat(np.arange(len(extents)), extents)
    labels, size = view.labels[: len(axis_of)], view.owners.shape[0]
    ones = np.ones(len(axis_of))
    counts = csr_array((ones, (labels, axis_of)), shape=(size, len(extents)))
    taken = csr_array(members @ counts)
    taken.sort_indices()
    first = np.full(size, len(axis_of))
    np.minimum.at(first, labels, np.arange(len(axis_of)))
    return taken, first


def _splits(view: View) -> np.ndarray:
    """Return of each component whether it takes cells of a product, but no whole slices."""
    splits = np.zeros(view.owners.shape[1], bool)
    for axis, factors in view.relations.products:
        cells = view.owners[view.labels[axis]]
        taken = csr_array(cells.shape)
        for factor, place in _places(factors):
            taken = taken + place.T @ view.owners[view.labels[factor]]
        left_over = csr_array(cells - cells.multiply(taken > 0))
        left_over.eliminate_zeros()
        splits[left_over.indices] = True
    return splits


def _roles(view: View) -> dict[What, set[int]]:
    """Return the components that mark a kind of group; the first mark counts."""
    program = view.program
    batch, contracted, added, mapped = set(), set(), set(), set()
    # By product of two activations, the axes that are not summed.
    free: dict[int, set[int]] = {}
    made = _last_products(program)
    for i, eqn in enumerate(program.eqns):
        name, (out,) = eqn.primitive.name, eqn.outs[:1]
        both = len(eqn.ins) == 2 and all(v in view.data for v in eqn.ins)
        if name == "dot_general" and both:
            (cx, cy), (bx, by) = eqn.params["dimension_numbers"]
            batch.update(labels_of(view, eqn.ins[0], bx).tolist())
            contracted.update(labels_of(view, eqn.ins[0], cx).tolist())
            for v, bound in zip(eqn.ins, ((*cx, *bx), (*cy, *by)), strict=True):
                axes = [a for a in range(len(program.shape(v))) if a not in bound]
                own = set(labels_of(view, v, axes).tolist())
                free.setdefault(i, set()).update(own)
                # Heads that share keys and values are no batch of the product, but free in
                # it and in the next one.
                batch.update(*(own & free[j] for j in made[v] if j in free and j != i))
        elif (
            name in ("add", "add_any") and both and len({made[v] for v in eqn.ins}) > 1
        ):
            added.update(labels_of(view, out, range(len(program.shape(out)) or 1)))
        elif name == "conv_general_dilated":
            axis = eqn.params["dimension_numbers"].out_spec[1]
            mapped.update(labels_of(view, out, [axis]).tolist())
    return {
        "heads": batch,
        "query-key dimensions": contracted,
        "value dimensions": set().union(*free.values()),
        "residual features": added,
        "channels": mapped,
    }


def _writers(view: View, used: Sequence[Use]) -> list[tuple[int, np.ndarray]]:
    """Return the kernels in the order of their products, with what each computes."""
    result = []
    for use in used:
        eqn = use.eqn
        numbers: Any = eqn.params.get("dimension_numbers")
        for leaf in () if use.is_inside else use.kernels:
            if eqn.primitive.name == "conv_general_dilated":
                side, axes = 1, [numbers.rhs_spec[0]]
            else:
                side = 0 if eqn.ins[1] in view.data else 1
                bound = (*numbers[0][side], *numbers[1][side])
                ndim = len(view.program.shape(eqn.ins[side]))
                axes = [a for a in range(ndim) if a not in bound]
            result.append((leaf, labels_of(view, eqn.ins[side], axes)))
    return result


def _last_products(program: Program) -> dict[int, frozenset[int]]:
    """Return by value the products and inputs that it is computed from directly."""
    made = {v: frozenset([-1 - v]) for v in program.args}
    for i, eqn in enumerate(program.eqns):
        sources = frozenset().union(*(made.get(v, frozenset()) for v in eqn.ins))
        is_product = eqn.primitive.name in PRODUCTS
        made |= dict.fromkeys(eqn.outs, frozenset([i]) if is_product else sources)
    return made
