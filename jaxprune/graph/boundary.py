"""The positions that a sub-program keeps, given those of its inputs and outputs."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxprune.graph import relations as rel
from jaxprune.graph.liveness import relate, rules_of
from jaxprune.graph.program import Program
from jaxprune.graph.rules import RULES, Rule


def between(
    program: Program,
    ins: Sequence[rel.Keep],
    outs: Sequence[rel.Keep],
    *,
    rules: Mapping[str, Rule] | None = None,
) -> list[rel.Keep] | None:
    """Return what a sub-program keeps if its inputs and outputs keep given positions.

    It serves the derivative of a custom rule, the other branches of a choice by platform,
    and other batch sizes.

    Args:
        program: the sub-program.
        ins: of each input (parameters, then arguments), the positions that are kept.
        outs: of each output, the positions that are kept.
        rules: the rule of each primitive; by default `RULES`.

    Returns:
        Of each value, the positions that are kept; None if the sub-program needs more of its
        inputs or outputs.
    """
    relations = relate(program, rules_of(program, rules or RULES))
    shapes = relations.shapes
    values = [*program.params, *program.args, *program.outs]
    given = [*ins, *outs]
    kept, boundary = [], []
    for value, keep in zip(values, given, strict=True):
        for axis in range(len(shapes[value]) or 1):
            own = rel.nodes(relations, value, axis)
            boundary.append(own)
            positions = keep[axis] if shapes[value] else None
            kept.append(own if positions is None else own[positions])
    kept.append(_unreached(relations, boundary))
    result = rel.close(relations, [eqn.outs for eqn in program.eqns], kept)
    for value, keep in zip(values, given, strict=True):
        if not _equal(result[value], keep):
            return None
    return result


def _equal(first: rel.Keep, second: rel.Keep) -> bool:
    return all(
        (a is None and b is None)
        or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(first, second, strict=True)
    )


def _unreached(relations: rel.Relations, boundary: Sequence[rel.Nodes]) -> rel.Nodes:
    """Return the nodes that nothing ties to the boundary; they are all kept."""
    linked = [*relations.ties]
    for axis, parts in relations.products:
        grid = np.indices([len(part) for part in parts]).reshape(len(parts), -1)
        linked += [(axis, part[index]) for part, index in zip(parts, grid, strict=True)]
    labels = rel.components(linked, relations.size)
    reached = np.zeros(labels.max(initial=-1) + 1, bool)
    for group in boundary:
        reached[labels[group]] = True
    return np.flatnonzero(~reached[labels])
