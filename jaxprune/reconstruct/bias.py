"""Bias correction: give the sums of a pruned network the means of the dense one."""

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.graph import layers
from jaxprune.reconstruct import runs
from jaxprune.types import ApplyFn, Batches, Params


def bias_correction(
    fn: ApplyFn, params: Params, pruned: Params, batches: Batches
) -> Params:
    """Shift each bias of a pruned network, so that what it is added to keeps its mean.

    A bias is any parameter that the traced function adds to data. In the order of the
    network, the mean over all examples and positions of the sum in the dense network, minus
    that in the pruned network with the biases before already shifted, is added to the bias.
    Networks with BatchNorm can re-estimate its statistics instead: `train.recalibrate`.

    Args:
        fn: `fn(params, batch)`, the forward pass, in evaluation mode.
        params: parameters of the dense network.
        pruned: those of the pruned one, such as `masks.apply(params, mask)`, or the result
            of `sparsegpt`.
        batches: a list of batches of inputs of one shape.

    Returns:
        The pruned parameters, with other biases.

    Raises:
        ValueError: if the function adds no parameter to data, `pruned` does not mirror
            `params`, or `batches` is empty or of several shapes.
        TypeError: if `params` holds something other than arrays, or is traced.

    Example:
        >>> fn = lambda params, x: x @ params["w"] + params["b"]
        >>> params = {"w": jnp.ones((2, 1)), "b": jnp.zeros((1, 1))}
        >>> pruned = {"w": jnp.array([[1.0], [0.0]]), "b": jnp.zeros((1, 1))}
        >>> bias_correction(fn, params, pruned, [jnp.array([[1.0, 2.0], [1.0, 4.0]])])["b"]
        Array([[3.]], dtype=float32)

    References:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
        https://arxiv.org/abs/1906.04721, ICCV 2019, section 4.2, with the means of data and
        for pruning.
    """
    remedy = "Pass masks.apply(params, mask)."
    pruned = tree.align(pruned, params, "pruned", remedy)
    for name, a, b in zip(
        tree.names(params),
        jax.tree.leaves(params),
        jax.tree.leaves(pruned),
        strict=True,
    ):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"pruned has {b.dtype}{list(b.shape)} at '{name}', where params has "
                f"{a.dtype}{list(a.shape)}. {remedy}"
            )
    with jax.default_matmul_precision("highest"):
        dense_run = runs.start(fn, params, batches)
        run = runs.start(fn, pruned, batches)
        program, leaves = run.program, jax.tree.leaves(pruned)
        additions = layers.find_added(program)
        if not additions:
            raise ValueError(
                "the function adds no parameter to data, so that there is no bias to "
                "correct. Leave bias_correction out."
            )
        done = 0
        for added in additions:
            for each in (dense_run, run):
                runs.advance(each, range(done, added.number))
            done = added.number
            runs.set_kernel(run, added, leaves)
            sums = [
                [
                    values[added.eqn.ins[0]] + values[added.eqn.ins[1]]
                    for values in w.values
                ]
                for w in (dense_run, run)
            ]
            change = jnp.stack([a - b for a, b in zip(*sums, strict=True)]).mean(0)
            axes = [
                axis for axis, n in enumerate(added.shape) if n != change.shape[axis]
            ]
            change = change.mean(axes, keepdims=True)
            counts = layers.pull_back(program, added, jnp.ones_like(change))
            for i, total in layers.pull_back(program, added, change).items():
                shift = (total / jnp.maximum(counts[i], 1)).astype(leaves[i].dtype)
                leaves[i] = leaves[i] + shift
            runs.set_kernel(run, added, leaves)
    return jax.tree.unflatten(jax.tree.structure(pruned), leaves)
