"""Health of a mask: empty layers, and the weights on a live path."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import graph, tree
from jaxprune.types import Mask, Params, Prunable


class Collapse(NamedTuple):
    """A warning that no path of kept weights connects input and output.

    Attributes:
        layers: names of the empty leaves, sorted by name.
        cuts: names of the kernels that the input reaches but does not pass.
    """

    layers: tuple[str, ...]
    cuts: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """Describe what happened and what to do about it."""
        cause = "no path of kept weights"
        if self.layers:
            cause = f"layers without a weight: {', '.join(self.layers)}"
        elif self.cuts:
            cause = f"no path of kept weights passes {', '.join(self.cuts)}"
        return (
            f"the network collapsed to a constant ({cause}). Prune less, in more rounds, "
            'or with scope="layer".'
        )


class Health(NamedTuple):
    """The weights that a mask leaves in each layer.

    Attributes:
        densities: kept / size of each prunable leaf, sorted by name; a leaf that a scan
            reads layer by layer has one entry for each layer, such as "blocks/kernel[0]".
        effective: the same, counting only weights on a live path.
        density: kept / size of all prunable leaves together.
        effective_density: the same, counting only weights on a live path.
        empty: names of the layers without a kept weight.
        collapse: a warning if the output does not depend on the input, else None.
    """

    densities: Mapping[str, float]
    effective: Mapping[str, float]
    density: float
    effective_density: float
    empty: tuple[str, ...]
    collapse: Collapse | None


def health(
    fn: Callable[..., Any],
    params: Params,
    mask: Mask,
    *args: Any,
    prunable: Prunable | None = None,
) -> Health:
    """Measure each layer's density, and the density of weights on a live path.

    A weight is effective if it lies on a path of kept weights from the arguments to an
    output. Paths are followed through the traced function, whatever it computes; nothing is
    run. Everything that an operation reads that can't be followed counts as live.

    Args:
        fn: `fn(params, *args)`, in inference form.
        params: arrays or shapes.
        mask: the mask.
        args: arrays or `jax.ShapeDtypeStruct`.
        prunable: which leaves count; by default those of `graph.kernels`.

    Returns:
        The densities; a mask that cuts the network is not an error.

    Raises:
        ValueError: if `mask` does not mirror `params`, or the function has side effects.

    Example:
        >>> fn = lambda params, x: x @ params["in"] @ params["out"]
        >>> params = {"in": np.ones((1, 2)), "out": np.ones((2, 1))}
        >>> mask = {"in": np.array([[True, True]]), "out": np.array([[True], [False]])}
        >>> health(fn, params, mask, np.ones((1, 1))).effective
        {'in': 0.5, 'out': 0.5}

    References:
        Vysogorets and Kempe, Connectivity Matters: Neural Network Pruning Through the
        Lens of Effective Sparsity, https://arxiv.org/abs/2107.02306, JMLR 2023.
    """
    mask = tree.check_mirrors(mask, params)
    program = graph.trace(fn, params, *args)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(mask)]
    liveness = graph.live(program, leaves)
    if prunable is None:
        kernels = {leaf for use in graph.uses(program) for leaf in use.kernels}
        chosen = [i in kernels for i in range(len(leaves))]
    else:
        chosen = jax.tree.leaves(tree.check_prunable(params, prunable))
    kept, live = {}, {}
    rows = zip(program.params, program.names, leaves, chosen, strict=True)
    for value, name, leaf, is_chosen in rows:
        if is_chosen:
            need = liveness.needs[value]
            is_live = np.zeros_like(leaf) if need is None else leaf & need
            is_stacked = value in program.scanned
            kept |= _layers(name, leaf, is_stacked)
            live |= _layers(name, is_live, is_stacked)
    kept, live = tree.by_name(kept), tree.by_name(live)
    empty = tuple(name for name, leaf in kept.items() if not leaf.any())
    size = max(sum(leaf.size for leaf in kept.values()), 1)
    return Health(
        {name: float(leaf.mean()) for name, leaf in kept.items()},
        {name: float(leaf.mean()) for name, leaf in live.items()},
        sum(int(leaf.sum()) for leaf in kept.values()) / size,
        sum(int(leaf.sum()) for leaf in live.values()) / size,
        empty,
        find_collapse(program, liveness, empty),
    )


def find_collapse(
    program: graph.Program, liveness: graph.Liveness, empty: Sequence[str]
) -> Collapse | None:
    """Return a warning if no output of a program depends on its arguments, else None.

    Args:
        program: of `graph.trace`.
        liveness: of `graph.live`.
        empty: names of the layers without a kept weight.

    Returns:
        The warning, which names these layers and the kernels that the input does not pass.

    Example:
        >>> one = np.ones((1, 1))
        >>> program = graph.trace(lambda p, x: x @ p["w"], {"w": one}, one)
        >>> liveness = graph.live(program, [one == 0])
        >>> find_collapse(program, liveness, ["w"])
        Collapse(layers=('w',), cuts=('w',))
    """
    if any(liveness.states[v].varies.any() for v in program.outs):
        return None
    return Collapse(tuple(empty), tuple(graph.cuts(program, liveness)))


def _layers(name: str, leaf: Any, is_stacked: bool) -> dict[str, Any]:
    if not is_stacked:
        return {name: leaf}
    return {f"{name}[{i}]": layer for i, layer in enumerate(leaf)}
