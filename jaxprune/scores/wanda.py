"""Wanda: the magnitude of a weight times the norm of its input."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune import graph, tree
from jaxprune.graph import layers, matrices
from jaxprune.types import ApplyFn, Batches, Mask, Params, Prunable, Scores


def wanda(
    fn: ApplyFn,
    params: Params,
    batches: Batches,
    *,
    mask: Mask | None = None,
    prunable: Prunable | None = None,
) -> Scores:
    r"""Score each weight by `|w| * ||x||_2`, where `x` is the input that it multiplies.

    The inputs are those of all products that read the weight, over all examples, tokens and
    positions, as the traced function computes them: no hooks, and stacked layers of a scan
    are seen one by one. The authors compare the weights of each output by themselves:
    `masks.select(scored, 0.5, scope=graph.outputs(fn, params, batch))`. It needs forward
    passes alone. Outside `jax.jit`, every call compiles. Matrix products run at the highest
    precision.

    Args:
        fn: `fn(params, batch)`, the forward pass, in evaluation mode.
        params: parameters of a trained network.
        batches: a list of batches of inputs, such as 128 sequences in all.
        mask: if given, the inputs are those of the masked network, and a pruned weight is
            scored by the effect of restoring it.
        prunable: the leaves that must have a score; by default those of `tree.prunable`.
            Other leaves that no product reads score 0.

    Returns:
        Scores that mirror `params`, in the unit of the outputs of a layer, times the root of
        the number of examples. Those of a leaf in half precision are float32.

    Raises:
        ValueError: if `batches` is empty or a single batch, no product multiplies a prunable
            leaf with data, `mask` does not mirror `params`, a score is not finite, or all
            scores are 0.
        TypeError: if `params` holds something other than arrays.

    Example:
        >>> fn = lambda params, x: x @ params["w"]
        >>> params = {"w": jnp.array([[1.0, -2.0], [3.0, 4.0]])}
        >>> wanda(fn, params, [jnp.array([[3.0, 0.0], [4.0, 1.0]])])
        {'w': Array([[ 5., 10.],
               [ 3.,  4.]], dtype=float32)}

    References:
        Sun et al., A Simple and Effective Pruning Approach for Large Language Models,
        https://arxiv.org/abs/2306.11695, ICLR 2024, eq. 1.
    """
    squares = input_squares(fn, params, batches, mask, prunable, "wanda")
    norms = {i: jnp.sqrt(summed) for i, summed in squares.items()}
    return scale_magnitudes(params, norms, mask)


def input_squares(
    fn: ApplyFn,
    params: Params,
    batches: Batches,
    mask: Mask | None,
    prunable: Prunable | None,
    method: str,
) -> dict[int, Array]:
    """Sum the squares of the inputs of each weight, by the number of the leaf."""
    tree.check_batches(batches)
    tree.check_arrays(params)
    chosen = tree.check_prunable(params, prunable)
    masked = tree.apply_mask(params, mask)

    @jax.jit  # batches of one shape share a program
    def collect(masked: Params, batch: Any) -> dict[int, Array]:
        program = graph.trace(fn, masked, batch)
        kernels = layers.find(program)
        layers.check(program, kernels, chosen, method)
        inputs = [*jax.tree.leaves(masked), *jax.tree.leaves(batch)]
        sums: dict[int, Array] = {}
        for layer, data in layers.run(program, kernels, inputs):
            part = to_leaves(program, layer, matrices.squares(layer, data)[:, None])
            sums |= {i: sums[i] + s if i in sums else s for i, s in part.items()}
        return sums

    with jax.default_matmul_precision("highest"):
        totals = [collect(masked, batch) for batch in batches]
    return jax.tree.map(lambda *parts: sum(parts), *totals)


def to_leaves(
    program: graph.Program, layer: layers.Layer, numbers: Array
) -> dict[int, Array]:
    """Move numbers of the inputs and outputs of a layer to the weights between them."""
    shape = matrices.shape(layer)
    whole = matrices.to_kernel(layer, jnp.broadcast_to(numbers, shape))
    return layers.pull_back(program, layer, whole)


def scale_magnitudes(
    params: Params, factors: Mapping[int, Array], mask: Mask | None
) -> Scores:
    """Score weights by their magnitude times a factor; leaves without factors score 0."""
    leaves, structure = jax.tree.flatten(params)
    scored = []
    for i, leaf in enumerate(leaves):
        if i in factors:
            factor = factors[i]
            scored.append(jnp.abs(leaf).astype(factor.dtype) * factor)
        else:
            scored.append(jnp.zeros_like(leaf) if tree.is_floating(leaf) else leaf)
    scores = tree.non_floating_to_false(jax.tree.unflatten(structure, scored))
    tree.check_finite(scores, "check that params and the inputs are finite.")
    tree.check_informative(scores, mask)
    return scores
