"""SparseGPT: prune each layer, and let the weights that stay make up for it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxprune import graph, masks, tree
from jaxprune.graph import layers, matrices
from jaxprune.reconstruct import runs
from jaxprune.types import ApplyFn, Batches, Budget, Fraction, Mask, Params, Prunable


def sparsegpt(
    fn: ApplyFn,
    params: Params,
    batches: Batches,
    density: Fraction | Budget,
    *,
    block: int = 128,
    damping: float = 0.01,
    prunable: Prunable | None = None,
) -> tuple[Mask, Params]:
    r"""Prune layer by layer such that the outputs of each layer change least.

    For each product of a kernel with data, in the order of the network, the inputs that the
    layers before, already pruned, give are collected. With their Hessian `X^T X`, columns of
    weights are pruned from the first to the last, and each error is made up for by the
    columns that follow. Each layer keeps `density` of its weights; a slice of a stacked leaf
    is a layer of its own. A kernel that is read several times, as in a loop, has the sum of
    the Hessians. The linear algebra is NumPy's, in float64; the network runs at the highest
    precision of products, one operation at a time.

    Args:
        fn: `fn(params, batch)`, the forward pass, in evaluation mode.
        params: parameters of a trained network.
        batches: a list of batches of inputs of one shape, such as 128 sequences in all.
        density: kept / prunable of each layer, in (0, 1], or a budget.
        block: columns of weights among which the ones to prune are chosen together.
        damping: share of the mean of the Hessian's diagonal that is added to its diagonal.
        prunable: the leaves to prune; by default those of `tree.prunable`.

    Returns:
        The mask, and the parameters with new values of the weights that are kept. Weights of
        inputs that are always 0 become 0.

    Raises:
        ValueError: if an option is out of range, no product multiplies a prunable leaf with
            data, two products read a leaf in different ways, `batches` is empty or of
            several shapes, or a Hessian is singular or not finite.
        TypeError: if `params` holds something other than arrays, or is traced.

    Example:
        >>> fn = lambda params, x: x @ params["w"]
        >>> x = jnp.array([[1.0, 1.0], [1.0, 0.9]])  # two inputs that are nearly the same
        >>> params = {"w": jnp.array([[1.0], [2.0]])}
        >>> mask, pruned = sparsegpt(fn, params, [x], 0.5, damping=0.0)
        >>> mask["w"].ravel(), pruned["w"].ravel().round(2)
        (Array([False,  True], dtype=bool), Array([0.  , 3.05], dtype=float32))

    References:
        Frantar and Alistarh, SparseGPT: Massive Language Models Can be Accurately Pruned in
        One-Shot, https://arxiv.org/abs/2301.00774, ICML 2023, algorithm 1. There, the layers
        of one transformer block all see the inputs of the block before it was pruned.
    """
    if not (isinstance(block, int) and block >= 1 and 0.0 <= damping < math.inf):
        raise ValueError(
            f"block is a number of columns and damping a share that is not negative; got "
            f"block={block}, damping={damping}. Pass, for example, block=128, damping=0.01."
        )
    chosen = tree.check_prunable(params, prunable)
    with jax.default_matmul_precision("highest"):
        run = runs.start(fn, params, batches)
        program, every = run.program, layers.find(run.program)
        layers.check(program, every, chosen, "sparsegpt")
        starts = layers.starts(program)
        goals = _densities(density, program.names, jax.tree.leaves(chosen))
        kernels = _kernels(program, every, goals)
        leaves = jax.tree.leaves(params)
        keep = np.ones(starts[-1], bool)
        done = 0
        for number, layer in enumerate(every):
            runs.advance(run, range(done, layer.number))
            done = layer.number
            kernel = kernels.get(number)
            if kernel is not None:
                read = [leaves[i] for i in layer.leaves]
                weights = layers.kernel_of(program, layer, read)
                hessian = _hessian(run, [every[i] for i in kernel.readers], leaves)
                name = program.names[layer.leaves[0]]
                new, part_keep = _prune(
                    matrices.of_kernel(layer, weights),
                    _prepared(hessian, damping, name),
                    kernel,
                    min(block, kernel.positions.shape[-1]),
                )
                keep[kernel.positions] = part_keep
                for i in layer.leaves:
                    leaves[i] = _updated(leaves[i], starts[i], kernel.positions, new)
            runs.set_kernel(run, layer, leaves)
    structure = jax.tree.structure(params)
    mask = [
        jnp.asarray(keep[first : first + leaf.size].reshape(leaf.shape))
        for leaf, first in zip(leaves, starts, strict=False)
    ]
    return jax.tree.unflatten(structure, mask), jax.tree.unflatten(structure, leaves)


def _densities(
    density: Fraction | Budget, names: Sequence[str], is_chosen: Sequence[bool]
) -> dict[int, float]:
    """Return the density of each prunable leaf, by number."""
    if not isinstance(density, Mapping):
        value = masks.check_density(density)
        return {i: value for i, is_prunable in enumerate(is_chosen) if is_prunable}
    chosen = [
        name for name, is_prunable in zip(names, is_chosen, strict=True) if is_prunable
    ]
    masks.check_budget(density, chosen)
    return {names.index(name): masks.check_density(density[name]) for name in chosen}


class _Kernel(NamedTuple):
    """A kernel that is pruned once.

    Attributes:
        readers: numbers of the layers that read it.
        positions: of its entries in one row of all leaves; groups, outputs, inputs.
        is_free: which entries may be pruned.
        num_dropped: how many of them are pruned.
    """

    readers: list[int]
    positions: np.ndarray
    is_free: np.ndarray
    num_dropped: int


def _kernels(
    program: graph.Program, every: Sequence[layers.Layer], goals: Mapping[int, float]
) -> dict[int, _Kernel]:
    """Return the kernels that are pruned, by the number of the first layer of each."""
    starts = layers.starts(program)
    owner = np.full(starts[-1], -1)
    kernels: dict[int, _Kernel] = {}
    for number, layer in enumerate(every):
        if not any(i in goals for i in layer.leaves):
            continue
        positions = layers.positions(program, layer)
        positions = matrices.of_kernel(layer, positions)
        first = int(owner[positions].max(initial=-1))
        if first >= 0 and np.array_equal(kernels[first].positions, positions):
            kernels[first].readers.append(number)
            continue
        if first >= 0 or np.unique(positions).size < positions.size:
            raise ValueError(
                f"sparsegpt prunes a kernel as one matrix, but "
                f"'{program.names[layer.leaves[0]]}' is read in two different ways, such as "
                "transposed, or one of its weights twice. Leave it out: pass "
                "prunable=tree.prunable(params, exclude=...)."
            )
        owner[positions] = number
        is_free, num_dropped = np.zeros(positions.shape, bool), 0
        for i in layer.leaves:
            if i in goals:
                is_here = (positions >= starts[i]) & (positions < starts[i + 1])
                size = int(is_here.sum())
                num_dropped += size - masks.num_kept(goals[i], size)
                is_free |= is_here
        if (is_free.any(-1) != is_free.all(-1)).any():
            raise ValueError(
                "sparsegpt changes all weights of an output, but only some of those that "
                f"'{program.names[layer.leaves[0]]}' is concatenated with are prunable. "
                "Choose all or none of them."
            )
        kernels[number] = _Kernel([number], positions, is_free, num_dropped)
    for i in goals:
        if (owner[starts[i] : starts[i + 1]] < 0).any():
            raise ValueError(
                f"sparsegpt prunes whole leaves, but no product reads some weights of "
                f"'{program.names[i]}'. Leave it out: pass "
                "prunable=tree.prunable(params, exclude=...)."
            )
    return kernels


def _hessian(
    run: runs.Run, readers: Sequence[layers.Layer], leaves: Sequence[Any]
) -> Float[np.ndarray, "groups inputs inputs"]:
    """Return twice the mean product of each pair of inputs of a kernel, as the authors do.

    The mean is over all places of all layers that read it.
    """
    total, number = 0.0, 0
    if len(readers) > 1:
        run = runs.copy(run)
    done = readers[0].number
    for layer in readers:
        runs.advance(run, range(done, layer.number))
        done = layer.number
        if len(readers) > 1:
            runs.set_kernel(run, layer, leaves)
        for values in run.values:
            rows = matrices.inputs(layer, values[layer.data])
            total = total + np.asarray(_products(rows), np.float64)
            number += rows.shape[1]
    return np.asarray(2 / number * total)


@jax.jit
def _products(rows: Array) -> Array:
    rows = rows.astype(jnp.float64 if rows.dtype == jnp.float64 else jnp.float32)
    return jnp.einsum("gni,gnj->gij", rows, rows, precision="highest")


class _Prepared(NamedTuple):
    """The inverse Hessian of a layer.

    Attributes:
        factor: its upper Cholesky factor.
        is_dead: inputs that are always 0.
    """

    factor: Float[np.ndarray, "groups inputs inputs"]
    is_dead: Bool[np.ndarray, "groups inputs"]


def _prepared(hessian: np.ndarray, damping: float, name: str) -> _Prepared:
    diagonal, size = np.einsum("gii->gi", hessian), hessian.shape[-1]
    is_dead = diagonal == 0
    try:
        if not np.isfinite(hessian).all():
            raise np.linalg.LinAlgError
        extra = is_dead + damping * (diagonal + is_dead).mean(-1, keepdims=True)
        damped = hessian + extra[:, :, None] * np.eye(size)
        lower = np.linalg.cholesky(damped)
        inverse_lower = np.linalg.solve(lower, np.eye(size))
        inverse = inverse_lower.swapaxes(1, 2) @ inverse_lower
        factor = np.linalg.cholesky(inverse).swapaxes(1, 2)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the Hessian of '{name}' is singular or not finite: its inputs depend on each "
            f"other, or are too large. Pass more batches, or a damping above {damping}."
        ) from None
    return _Prepared(factor, is_dead)


def _num_dropped(kernel: _Kernel, block: int) -> np.ndarray:
    """Share out the weights to prune among the blocks of columns, in whole numbers."""
    per_column = kernel.is_free.sum((0, 1))
    ends = np.arange(block, per_column.size + block, block)
    passed = np.array([per_column[:end].sum() for end in ends])
    until = kernel.num_dropped * passed // max(int(passed[-1]), 1)
    return np.diff(until, prepend=0)


def _prune(
    weights: Array, prepared: _Prepared, kernel: _Kernel, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prune column by column, and make up for each error in the columns that follow.

    It runs in NumPy, in float64, so that no kernel shape compiles.
    """
    before = np.asarray(weights, np.float64)
    w = np.where(prepared.is_dead[:, None], 0.0, before)
    keep, factor = np.ones(w.shape, bool), prepared.factor
    for number, dropped in enumerate(_num_dropped(kernel, block)):
        first = number * block
        stop = min(first + block, w.shape[-1])
        part, columns = w[:, :, first:stop], range(stop - first)
        square = factor[:, first:stop, first:stop]
        diagonal = np.einsum("gii->gi", square)
        is_free = kernel.is_free[:, :, first:stop]
        score = np.where(is_free, np.square(part / diagonal[:, None]), np.inf)
        chosen = np.ones(score.size, bool)
        if dropped:
            chosen[np.argpartition(score, dropped - 1, axis=None)[:dropped]] = False
        keep[:, :, first:stop] = chosen.reshape(score.shape)
        errors = np.zeros(part.shape)
        for j in columns:
            pruned = ~keep[:, :, first + j]
            error = np.where(pruned, part[:, :, j], 0.0) / diagonal[:, j, None]
            part[:, :, j:] -= error[:, :, None] * square[:, None, j, j:]
            part[:, :, j][pruned] = 0.0
            errors[:, :, j] = error
        w[:, :, stop:] -= errors @ factor[:, first:stop, stop:]
    # Outputs of leaves that are not pruned stay as they are.
    return np.where(kernel.is_free, w, before), keep


def _updated(leaf: Array, first: int, positions: np.ndarray, new: np.ndarray) -> Array:
    """Return a leaf with the new weights of a kernel."""
    flat = np.asarray(leaf).reshape(-1).copy()
    is_here = (positions >= first) & (positions < first + leaf.size)
    flat[positions[is_here] - first] = new[is_here].astype(flat.dtype)
    return jnp.asarray(flat.reshape(leaf.shape))
