"""Which entries of every value vary with the input, may be nonzero, and are needed."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.graph import relations as rel
from jaxprune.graph.precision import precise_eqn
from jaxprune.graph.program import Eqn, Program, depends_on, producers
from jaxprune.graph.rules import RULES, Rule, Site, State, bind, rule_of
from jaxprune.tree import is_key

# A predicate of this many entries or fewer is evaluated if it depends on constants alone.
_MOST_KNOWN = 1 << 24


class Liveness(NamedTuple):
    """What a mask leaves of every value of a program.

    Attributes:
        states: what varies and what may be nonzero, by value.
        needs: the entries that an output depends on, by value; None where none is.
        sites: the equations with their shapes.
        rules: the rule of each equation.
    """

    states: Sequence[State]
    needs: Sequence[Any]
    sites: Sequence[Site]
    rules: Sequence[Rule]


def _unknown(value: int) -> None:
    del value


def site_of(
    program: Program,
    eqn: Eqn,
    *,
    carries: bool = False,
    known: Callable[[int], Any] = _unknown,
) -> Site:
    """Return an equation with the shapes around it.

    Args:
        program: of `trace`.
        eqn: one of its equations.
        carries: whether constants that it sums may be carried behind it.
        known: returns the array of a value that depends on constants alone, or None.

    Returns:
        What the rules read.

    Example:
        >>> from jaxprune.graph import trace
        >>> program = trace(lambda p, x: x * p, np.ones(2), np.ones(2))
        >>> site_of(program, program.eqns[0]).outs
        [(2,)]
    """
    return Site(
        eqn,
        [program.shape(v) for v in eqn.ins],
        [program.shape(v) for v in eqn.outs],
        carries,
        known,
    )


def rules_of(program: Program, rules: Mapping[str, Rule]) -> list[Rule]:
    """Return the rule of each equation."""
    return [rule_of(eqn, rules) for eqn in program.eqns]


def relate(program: Program, rules: Sequence[Rule]) -> rel.Relations:
    """Collect the relations of a program.

    Args:
        program: of `trace`.
        rules: the rule of each equation.

    Returns:
        What is tied, pinned and a product.

    Example:
        >>> from jaxprune.graph import trace
        >>> program = trace(lambda p, x: x * p, np.ones(2), np.ones(2))
        >>> len(relate(program, rules_of(program, RULES)).ties)
        2
    """
    relations = rel.start([program.shape(v) for v in range(len(program.avals))])
    for i, (eqn, rule) in enumerate(zip(program.eqns, rules, strict=True)):
        rule.relate(site_of(program, eqn), relations, i)
    return relations


def live(
    program: Program,
    masks: Sequence[Any],
    *,
    carry: Callable[[int], bool] = lambda i: True,
    rules: Mapping[str, Rule] | None = None,
) -> Liveness:
    """Follow kept weights from the arguments to the outputs, and back.

    Args:
        program: of `trace`.
        masks: bool arrays, one for each leaf of the parameters.
        carry: whether constants are carried behind equation number i.
        rules: the rule of each primitive; by default `RULES`.

    Returns:
        What varies, may be nonzero and is needed.

    Raises:
        ValueError: if an argument has no entries.

    Example:
        >>> from jaxprune.graph import trace
        >>> params = {"w": np.ones((2, 2))}
        >>> program = trace(lambda p, x: x @ p["w"], params, np.ones((1, 2)))
        >>> mask = np.array([[True, False], [False, False]])
        >>> live(program, [mask]).needs[program.params[0]].sum()
        np.int64(1)
    """
    for value in program.args:
        if 0 in program.shape(value):
            raise ValueError(
                f"an argument has the shape {program.shape(value)}, which has no entries. "
                "Pass an example, or its shape."
            )
    known = _known(program)
    data = depends_on(program, program.args)
    chosen = rules_of(program, rules or RULES)
    sites = [
        site_of(
            program,
            eqn,
            carries=rule.sums and carry(i) and any(v in data for v in eqn.ins),
            known=known,
        )
        for i, (eqn, rule) in enumerate(zip(program.eqns, chosen, strict=True))
    ]
    states = _forward(program, masks, sites, chosen)
    needs = _backward(program, states, sites, chosen)
    return Liveness(states, needs, sites, chosen)


def _known(program: Program) -> Callable[[int], Any]:
    """Return a function of a value: its array if it depends on constants alone, or None."""
    made_by = producers(program)

    @functools.cache
    def known(value: int) -> Any:
        if value in program.constants:
            return np.asarray(program.constants[value])
        if value not in made_by or program.avals[value].size > _MOST_KNOWN:
            return None
        eqn = program.eqns[made_by[value]]
        operands = [known(v) for v in eqn.ins]
        if any(operand is None for operand in operands):
            return None
        if any(is_key(program.avals[v]) for v in eqn.outs):  # NumPy has no keys
            return None
        with jax.ensure_compile_time_eval():
            results = bind(precise_eqn(eqn), operands)
        return np.asarray(results[eqn.outs.index(value)])

    return known


def _forward(
    program: Program, masks: Sequence[Any], sites: Sequence[Site], rules: Sequence[Rule]
) -> list[State]:
    states: dict[int, State] = {}

    def uniform(value: int, is_set: bool) -> np.ndarray:
        return np.full(program.shape(value), is_set)

    for value, mask in zip(program.params, masks, strict=True):
        states[value] = State(uniform(value, False), np.asarray(mask, bool))
    for value in program.args:
        states[value] = State(uniform(value, True), uniform(value, True))
    for value, array in program.constants.items():
        is_key = jax.numpy.issubdtype(program.avals[value].dtype, jax.dtypes.prng_key)
        nonzero = uniform(value, True) if is_key else np.asarray(array) != 0
        states[value] = State(uniform(value, False), nonzero)
    for site, rule in zip(sites, rules, strict=True):
        results = rule.forward(site, [states[v] for v in site.eqn.ins])
        states.update(zip(site.eqn.outs, results, strict=True))
    empty = State(np.zeros(0, bool), np.zeros(0, bool))
    return [states.get(value, empty) for value in range(len(program.avals))]


def _backward(
    program: Program,
    states: Sequence[State],
    sites: Sequence[Site],
    rules: Sequence[Rule],
) -> list[Any]:
    needs: list[Any] = [None] * len(program.avals)
    for value in program.outs:
        needs[value] = np.ones(program.shape(value), bool)
    for site, rule in zip(reversed(sites), reversed(rules), strict=True):
        eqn = site.eqn
        if all(needs[out] is None for out in eqn.outs):
            continue
        of_outs = [
            np.zeros(shape, bool) if needs[out] is None else needs[out]
            for out, shape in zip(eqn.outs, site.outs, strict=True)
        ]
        results = rule.backward(site, [states[v] for v in eqn.ins], of_outs)
        for value, need in zip(eqn.ins, results, strict=True):
            if need.any():
                before = needs[value]
                needs[value] = need if before is None else before | need
    return needs


def batch_axes(program: Program) -> frozenset[tuple[int, int]] | None:
    """Return the axes of all values along which the examples of a batch lie.

    Such a program computes each example by itself, so that a smaller program for one number
    of examples is right for any other.

    Args:
        program: of `trace`, with two examples or more along the first axis of all arguments.

    Returns:
        A value and an axis each; None if examples may meet or are numbered, or the arguments
        have no such axis.

    Example:
        >>> from jaxprune.graph import trace
        >>> sorted(batch_axes(trace(lambda p, x: x @ p, np.ones((2, 3)), np.ones((4, 2)))))
        [(1, 0), (2, 0)]
    """
    shapes = [program.shape(value) for value in program.args]
    if not shapes or any(not shape or shape[0] < 2 for shape in shapes):
        return None
    if len({shape[0] for shape in shapes}) > 1:
        return None
    return rel.reached(relate(program, rules_of(program, RULES)), program.args)


def keep(
    program: Program, liveness: Liveness, whole: Collection[int]
) -> list[rel.Keep]:
    """Return the positions of every axis of every value that stay.

    Args:
        program: of `trace`.
        liveness: of the same program.
        whole: values that keep everything, besides the outputs.

    Returns:
        Of each value, the positions that are kept of each axis; None for all.

    Example:
        >>> from jaxprune.graph import trace
        >>> params = {"w": np.ones((2, 2))}
        >>> program = trace(lambda p, x: x @ p["w"], params, np.ones((1, 2)))
        >>> mask = np.array([[True, False], [False, False]])
        >>> keep(program, live(program, [mask]), whole=())[program.params[0]]
        [array([0]), None]
    """
    relations = relate(program, liveness.rules)
    shapes = relations.shapes
    kept = []
    for value, need in enumerate(liveness.needs):
        is_whole = value in whole or value in program.outs
        if need is None and not is_whole:
            continue
        for axis in range(len(shapes[value]) or 1):
            own = rel.nodes(relations, value, axis)
            if need is not None and not is_whole and shapes[value]:
                others = tuple(a for a in range(len(shapes[value])) if a != axis)
                own = own[need.any(others)]
            kept.append(own)
    return rel.close(relations, [eqn.outs for eqn in program.eqns], kept)
