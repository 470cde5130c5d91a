"""Multiply by the kept weights alone, in the products where a measurement finds that faster.

A mask that leaves every channel something to do leaves nothing to remove. With few weights
and few images per call it still pays to gather what each weight sees.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune import graph, profiling
from jaxprune.compact.rewrite import run_product
from jaxprune.compact.small import SmallFunction
from jaxprune.graph import small_shape

# Denser kernels are not tried. One image, VGG-16's convolutions, 2 CPU cores: dense 10.7 ms;
# by the kept weights 7.7 at a density of .05, 4.2 at .02 and 2.7 at .01.
DENSEST = 0.1
CLEARLY = 0.95  # a gain of less than a twentieth is lost in noise


class Fastest(NamedTuple):
    """A compacted function, some of whose products multiply by kept weights alone.

    Attributes:
        fn: `fn(params, *args)`.
        params: its parameters; kernels of these products are vectors of nonzero weights.
        kernels: the names of these kernels.
    """

    fn: Callable[..., Any]
    params: Any
    kernels: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Gather:
    """A product by nonzero weights: `product(eqn, x, weights)`.

    Attributes:
        shape: of the kernel, its window first, then inputs and outputs.
        reads: of each weight, the row that it reads: its tap and its inputs.
        writes: of each weight, the output that it is added to, in order.
        padding: of a convolution, pixels before and after along each axis.
    """

    shape: tuple[int, ...]
    reads: np.ndarray
    writes: np.ndarray
    padding: tuple[tuple[int, int], ...]

    def __call__(self, eqn: graph.Eqn, x: Array, weights: Array) -> Array:
        """Multiply."""
        dtype = eqn.params["preferred_element_type"]
        if dtype is not None:
            x, weights = x.astype(dtype), weights.astype(dtype)
        if eqn.primitive.name == "dot_general":
            return self._dot(eqn.params, x, weights)
        return self._convolve(eqn.params, x, weights)

    def _sum(
        self, rows: Float[Array, "rows places"], weights: Array, outputs: int
    ) -> Array:
        """Add up what each output sees."""
        parts = weights[:, None] * rows[self.reads]
        return jax.ops.segment_sum(
            parts, self.writes, outputs, indices_are_sorted=True
        ).T

    def _dot(self, params: Mapping[str, Any], x: Array, weights: Array) -> Array:
        (contracted, _), _ = params["dimension_numbers"]
        inputs, outputs = self.shape[: len(contracted)], self.shape[len(contracted) :]
        x = jnp.moveaxis(x, contracted, range(-len(contracted), 0))
        places = x.shape[: x.ndim - len(contracted)]
        rows = x.reshape(math.prod(places), math.prod(inputs)).T
        return self._sum(rows, weights, math.prod(outputs)).reshape(*places, *outputs)

    def _convolve(self, params: Mapping[str, Any], x: Array, weights: Array) -> Array:
        numbers, window = params["dimension_numbers"], self.shape[:-2]
        x = x.transpose(numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
        seen = _patches(x, window, params, self.padding)
        rows = seen.reshape(-1, math.prod(seen.shape[1:]))
        summed = self._sum(rows, weights, self.shape[-1])
        out = summed.reshape(*seen.shape[1:], self.shape[-1])
        spec = numbers.out_spec
        return out.transpose(np.argsort([spec[0], *spec[2:], spec[1]]))


def _patches(
    x: Float[Array, "batch height width channels"],
    window: Sequence[int],
    params: Mapping[str, Any],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "seen batch new_height new_width"]:
    """Lay out what a window sees of the map at each place, its pixels row by row."""
    strides, apart = params["window_strides"], params["rhs_dilation"]
    reach = [(width - 1) * step + 1 for width, step in zip(window, apart, strict=True)]
    edges = [
        (*pad, step - 1)
        for pad, step in zip(padding, params["lhs_dilation"], strict=True)
    ]
    whole = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    maps = whole.transpose(3, 0, 1, 2)
    ends = [
        extent - width + 1 for extent, width in zip(maps.shape[2:], reach, strict=True)
    ]
    views = [
        maps[:, :, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i in range(0, reach[0], apart[0])
        for j in range(0, reach[1], apart[1])
    ]
    return jnp.concatenate(views)


def _kernels(fn: SmallFunction) -> dict[str, int]:
    """Return the product that reads each kernel, where it can be done by weights alone."""
    program, result = fn.program, {}
    names = dict(zip(program.params, program.names, strict=True))
    reads = [v for eqn in program.eqns for v in eqn.ins]
    data = graph.depends_on(program, program.args)
    for i, eqn in enumerate(program.eqns):
        if len(eqn.ins) != 2 or eqn.ins[0] not in data or eqn.ins[1] not in names:
            continue
        if reads.count(eqn.ins[1]) == 1 and _is_followed(eqn):
            result[names[eqn.ins[1]]] = i
    return result


def _is_followed(eqn: graph.Eqn) -> bool:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (_, contracted), (batch, _) = params["dimension_numbers"]
        return not batch and tuple(contracted) == tuple(range(len(contracted)))
    return (
        name == "conv_general_dilated"
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and len(params["window_strides"]) == 2
    )


def sparse(compacted: Any, kernels: Iterable[str]) -> Fastest:
    """Let some products multiply by the nonzero weights alone.

    What each weight sees of the input is gathered, weighted and summed, so that the work
    grows with the weights that are left. Pays on a CPU for few weights and few images per
    call; see `fastest`.

    Args:
        compacted: of `compact`.
        kernels: names of leaves.

    Returns:
        The function, with these leaves as vectors of their nonzero weights.

    Raises:
        TypeError: if `compacted` is not of `compact`.
        ValueError: if a name is not that of the kernel of a matrix product or of a
            convolution in two dimensions without groups.

    Example:
        >>> from jaxprune import compact, masks
        >>> params = {"w": jnp.eye(4)}
        >>> fn = lambda p, x: x @ p["w"]
        >>> small = compact.compact(fn, params, masks.ones_like(params), jnp.ones((2, 4)))
        >>> few = sparse(small, ["w"])
        >>> few.params["w"].shape, few.fn(few.params, jnp.ones((2, 4))).shape
        ((4,), (2, 4))

    References:
        Elsen et al., Fast Sparse ConvNets, https://arxiv.org/abs/1911.09723, CVPR 2020,
        run pruned 1x1 convolutions as sparse products on a CPU; here any size of window.
    """
    fn = _function(compacted)
    known, program = _kernels(fn), fn.program
    leaves = dict(zip(program.names, jax.tree.leaves(compacted.params), strict=True))
    gathers: dict[int, _Gather] = {}
    for name in [kernels] if isinstance(kernels, str) else kernels:
        if name not in known or name in fn.vectors:
            raise ValueError(
                f"'{name}' is not the kernel of a product that can multiply by its nonzero "
                f"weights. Pass some of {', '.join(n for n in known if n not in fn.vectors)}."
            )
        gather, leaves[name] = _by_weight(fn, known[name], leaves[name])
        gathers[known[name]] = gather
    structure = jax.tree.structure(compacted.params)
    params = jax.tree.unflatten(structure, list(leaves.values()))
    names = tuple(name for name, i in known.items() if i in gathers)
    vectors = {**fn.vectors, **{name: leaves[name].shape for name in names}}
    products = {**fn.products, **gathers}
    return Fastest(
        dataclasses.replace(fn, products=products, vectors=vectors, of_one=None),
        params,
        names,
    )


def _function(compacted: Any) -> SmallFunction:
    fn = getattr(compacted, "fn", None)
    if not isinstance(fn, SmallFunction):
        raise TypeError(
            f"compacted is a {type(compacted).__name__}. Pass the result of "
            "compact.compact(fn, params, mask, *args)."
        )
    return fn


def _by_weight(fn: SmallFunction, i: int, kernel: Any) -> tuple[_Gather, Array]:
    """Return a product by the nonzero weights of a kernel, and these."""
    kernel, eqn, padding = np.asarray(kernel), fn.program.eqns[i], ()
    if eqn.primitive.name == "conv_general_dilated":
        v = eqn.ins[1]
        padding = graph.small_padding(eqn, fn.keep[v], fn.program.shape(v))
    if eqn.primitive.name == "dot_general":
        inputs = len(eqn.params["dimension_numbers"][0][1])
    else:
        spec = eqn.params["dimension_numbers"].rhs_spec
        kernel = kernel.transpose(*spec[2:], spec[1], spec[0])
        inputs = kernel.ndim - 1
    rows, outputs = kernel.shape[:inputs], kernel.shape[inputs:]
    flat = kernel.reshape(math.prod(rows), math.prod(outputs))
    writes, reads = np.nonzero(flat.T)  # output by output
    return _Gather(kernel.shape, reads, writes, padding), jnp.asarray(
        flat[reads, writes]
    )


def fastest(compacted: Any, *args: Any, calls: int = 10) -> Fastest:
    """Run each product densely or by its nonzero weights, whichever is faster here.

    Products with few weights are timed both ways, and then the whole function. The choice
    holds for this machine and these sizes; save what `compact` returned, and choose again
    where it runs. Nothing is tried unless JAX's default backend is the CPU.

    Args:
        compacted: of `compact`.
        args: example arguments, as many examples as in a call to come.
        calls: number of calls of each form of a product, and more of those that take less
            than 10 ms.

    Returns:
        The function as it was if nothing is gained.

    Raises:
        TypeError: if `compacted` is not of `compact`.
        ValueError: if the arguments do not fit, or `calls` is not positive.

    Example:
        >>> from jaxprune import compact, masks
        >>> params = {"w": jnp.ones((4, 4))}
        >>> fn = lambda p, x: x @ p["w"]
        >>> small = compact.compact(fn, params, masks.ones_like(params), jnp.ones((2, 4)))
        >>> fastest(small, jnp.ones((2, 4))).kernels  # nothing is pruned
        ()
    """
    fn = _function(compacted)
    program, keep = fn.at(args)
    leaves = dict(zip(program.names, jax.tree.leaves(compacted.params), strict=True))
    few = {
        name: i
        for name, i in _kernels(fn).items()
        if np.count_nonzero(leaves[name]) < DENSEST * leaves[name].size
    }

    def gains(name: str, i: int) -> bool:
        eqn = program.eqns[i]
        x, y = (small_shape(program.shape(v), keep[v]) for v in eqn.ins)
        if 0 in (*x, *y):
            return False
        ones = jnp.ones(x, program.avals[eqn.ins[0]].dtype)
        gather, weights = _by_weight(fn, i, leaves[name])
        dense = functools.partial(run_product, program, keep, i)
        by_weight = functools.partial(gather, eqn)
        return _faster((by_weight, ones, weights), (dense, ones, leaves[name]), calls)

    unchanged = Fastest(fn, compacted.params, ())
    # On an H100, the compaction of one VGG-16 took more than 3 minutes with it.
    is_cpu = jax.default_backend() == "cpu"
    paying = [name for name, i in few.items() if is_cpu and gains(name, i)]
    if not paying:
        return unchanged
    mixed = sparse(compacted, paying)
    is_faster = _faster(
        (mixed.fn.__call__, mixed.params, *args),
        (fn.__call__, compacted.params, *args),
        calls,
    )
    return mixed if is_faster else unchanged


def _faster(one: Sequence[Any], other: Sequence[Any], calls: int) -> bool:
    """Return whether the first (function, argument, ...) takes clearly less time."""
    runs = []
    for call, *args in (one, other):
        compiled = jax.jit(call).lower(*args).compile()
        runs.append(lambda compiled=compiled, args=args: compiled(*args))
    # Short calls scatter more: 10 ms of them at least.
    (once,) = profiling.seconds(runs[1], calls=1, warmup=1)
    calls *= max(1, min(100, math.ceil(0.01 / (once * calls)))) if calls > 0 else 1
    first, second = profiling.interleaved(*runs, calls=calls)
    return first.p50 < CLEARLY * second.p50
