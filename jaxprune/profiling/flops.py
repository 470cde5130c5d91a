"""Count the multiply-accumulates (MACs) of any function, leaf by leaf.

XLA's own cost analysis does not account for zero weights, and has no count per layer.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxprune import graph
from jaxprune.types import Mask, Params


def macs(fn: Callable[..., Any], params: Params, *args: Any) -> PyTree:
    """Count the multiply-accumulates that each leaf takes part in, for one call.

    A matrix product or convolution counts for the leaf that is its kernel. Adding a bias or
    multiplying by a scale counts one per output element. Pooling and activations count
    nothing, as in the published study, and neither do products of two activations, which no
    leaf takes part in. What reads several leaves, such as a kernel and its scale, counts for
    the largest of them. A scan counts its body once per iteration, and a conditional counts
    its most expensive branch. A `while` loop counts one iteration, since its length is
    unknown.

    Args:
        fn: `fn(params, *args)`; traced, not run.
        params: arrays or shapes.
        args: arrays or shapes. For a count per image, pass a batch of one image.

    Returns:
        A tree like `params` of Python ints.

    Example:
        >>> fn = lambda params, x: x @ params["kernel"] + params["bias"]
        >>> params = {"kernel": np.ones((3, 4)), "bias": np.ones((1, 4))}
        >>> macs(fn, params, np.ones((2, 3)))
        {'bias': 8, 'kernel': 24}

    References:
        Counts as in the code of Tanaka et al., https://arxiv.org/abs/2006.05467, 2020:
        convolution Cin * Cout * kh * kw * Hout * Wout, its bias Cout * Hout * Wout, linear
        layer in * out, batch normalization 2 * C * H * W.
    """
    leaves, structure = jax.tree.flatten(params)
    counts = [0] * len(leaves)
    for use in graph.uses(graph.trace(fn, params, *args)):
        counts[use.leaves[0]] += use.macs
    return jax.tree.unflatten(structure, counts)


def kept_macs(dense: PyTree, mask: Mask) -> PyTree:
    """Count the multiply-accumulates of the weights that a mask keeps, per leaf.

    Args:
        dense: the result of `macs`.
        mask: True keeps; leaves that are never pruned count in full.

    Returns:
        A tree like `dense` of floats.

    Example:
        >>> kept_macs({"kernel": 24}, {"kernel": np.array([[True, False]])})
        {'kernel': 12.0}
    """
    return jax.tree.map(
        lambda count, leaf: count * int(np.asarray(leaf).sum()) / leaf.size, dense, mask
    )
