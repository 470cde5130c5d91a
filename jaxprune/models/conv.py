"""Convolution and pooling that are fast on a CPU too; the numbers are those of XLA's own.

What each form is worth is measured on 2 cores, jax 0.10.2, in float32 with kernels of 3x3 and
batches of 128, as milliseconds of XLA's convolution -> of the form.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

# Maps of up to so many pixels are gathered whole: 128 -> 128 channels on 2x2, forward
# 11 -> 1, gradients 14 -> 3.
SMALL = 4
# From so many pixels on, XLA's own is not the fastest. Between the two it is: its gradient of
# a kernel is slower by itself there too (256 -> 256 on 8x8: 108 -> 64), but runs beside that
# of the inputs, so that a step of VGG-16 and one of GraSP take as long or longer.
LARGE = 256
# Of up to so many channels, every pixel's patch is laid out: 3 -> 64 channels on 32x32,
# forward 23 -> 16, gradient of the kernel 28 -> 10.
FEW = 8
# Of up to so many, the separable form is faster forward too: 64 -> 64 on 32x32 156 -> 81;
# with 128 channels on 16x16 66 -> 59, within the noise.
NARROW = 64
# What is laid out at once: 64 -> 64 on 32x32, gradient of the kernel in chunks of 3 MB
# 114, of 25 MB 177.
CHUNK_BYTES = 3_000_000

_Pads = tuple[tuple[int, int], ...]


def conv_general_dilated(
    inputs: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width inputs outputs"],
    strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> Float[Array, "batch new_height new_width outputs"]:
    """Convolve like `jax.lax.conv_general_dilated`, faster on a CPU.

    On a CPU, maps of up to 2x2 and, from 16x16 on, narrow layers and the gradients of
    kernels are matrix products; everything else, and every other platform, is XLA's own
    convolution (a training step of VGG-16: 2.8 s -> 2.4 s). Give it to
    `flax.nnx.Conv` as `conv_general_dilated=`.

    Args:
        inputs: in the layout of Flax.
        kernel: likewise.
        strides: down and across.
        padding: "SAME", "VALID", or pixels before and after, down and across.
        options: as of `jax.lax.conv_general_dilated`.

    Returns:
        The maps, equal to XLA's up to the order of summation.

    Example:
        >>> x, kernel = jnp.ones((1, 2, 2, 3)), jnp.ones((3, 3, 3, 4))
        >>> layer = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))
        >>> conv_general_dilated(x, kernel, (1, 1), "SAME", **layer)[0, 0, 0].tolist()
        [12.0, 12.0, 12.0, 12.0]
    """

    def xla(inputs: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, **options)

    if not _is_plain(inputs, kernel, options):
        return xla(inputs, kernel)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(
            inputs.shape[1:3], kernel.shape[:2], strides, padding
        )
    pads = tuple((before, after) for before, after in padding)
    form = _form(inputs.shape, kernel.shape, tuple(strides), pads, xla)
    if form is None:
        return xla(inputs, kernel)
    return jax.lax.platform_dependent(inputs, kernel, cpu=form, default=xla)


_Form = Callable[[Array, Array], Array]


def _form(
    inputs: Sequence[int],
    kernel: Sequence[int],
    strides: tuple[int, ...],
    pads: _Pads,
    xla: _Form,
) -> _Form | None:
    """Pick the fastest form for these shapes; None for XLA's."""
    size = [
        (extent + sum(pad) - width) // stride + 1
        for extent, pad, width, stride in zip(
            inputs[1:3], pads, kernel[:2], strides, strict=True
        )
    ]
    if min(size) < 1 or min(*pads[0], *pads[1]) < 0:
        return None
    if math.prod(size) <= SMALL:
        return functools.partial(_gathered, strides=strides, pads=pads, size=size)
    plain = strides == (1, 1) and 1 < math.prod(kernel[:2]) <= 49
    if not plain or math.prod(size) < LARGE:
        return None
    if kernel[2] <= FEW:
        return _in_chunks(_patches, pads, copies=math.prod(kernel[:2]))
    if size != list(inputs[1:3]):
        return None
    separable = _in_chunks(_separable, pads, copies=kernel[1])
    return separable if kernel[2] <= NARROW else _with_kernel_gradient(xla, separable)


def _gathered(
    inputs: Array,
    kernel: Array,
    strides: Sequence[int],
    pads: _Pads,
    size: Sequence[int],
) -> Array:
    """Lay out what each pixel of a small map sees, and multiply once."""
    height, width, channels, outputs = kernel.shape
    padded = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
    rows, columns = (range(0, n * s, s) for n, s in zip(size, strides, strict=True))
    seen = [padded[:, i : i + height, j : j + width] for i in rows for j in columns]
    laid = jnp.stack(seen, 1).reshape(-1, height * width * channels)
    return (laid @ kernel.reshape(-1, outputs)).reshape(len(inputs), *size, outputs)


def _patches(inputs: Array, kernel: Array, pads: _Pads) -> Array:
    """Lay the patch of every pixel out in its channels, and multiply once."""
    height, width, _, outputs = kernel.shape
    laid = _shifted(_shifted(inputs, 2, width, pads[1]), 1, height, pads[0])
    return laid @ kernel.reshape(-1, outputs)


def _separable(inputs: Array, kernel: Array, pads: _Pads) -> Array:
    """Lay out the shifts across, multiply once for all rows of the kernel, and add those.

    A third of the copies that patches of 3x3 need, for the same multiplications.
    """
    height, width, channels, outputs = kernel.shape
    laid = _shifted(inputs, 2, width, pads[1])
    by_row = kernel.transpose(1, 2, 0, 3).reshape(width * channels, height * outputs)
    padded = jnp.pad(laid @ by_row, ((0, 0), pads[0], (0, 0), (0, 0)))
    rows = padded.shape[1] - height + 1
    each = [
        padded[:, i : i + rows, :, i * outputs : (i + 1) * outputs]
        for i in range(height)
    ]
    return sum(each[1:], each[0])


def _shifted(inputs: Array, axis: int, number: int, pad: tuple[int, int]) -> Array:
    """Put `number` shifts along an axis side by side in the channels."""
    around = [(0, 0)] * inputs.ndim
    around[axis] = pad
    padded = jnp.pad(inputs, around)
    size = padded.shape[axis] - number + 1
    shifts = [
        jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(number)
    ]
    return jnp.concatenate(shifts, -1)


def _in_chunks(
    form: Callable[[Array, Array, _Pads], Array], pads: _Pads, copies: int
) -> _Form:
    """Apply a form to so many pictures at a time that what is laid out stays in the cache."""

    def apply(inputs: Array, kernel: Array) -> Array:
        batch = inputs.shape[0]
        most = CHUNK_BYTES // max(1, copies * inputs.nbytes // batch)
        number = max(
            n for n in range(1, batch + 1) if batch % n == 0 and n <= max(1, most)
        )
        chunks = inputs.reshape(-1, number, *inputs.shape[1:])
        # Laid out again where it is needed: it is several times what is kept.
        once = jax.checkpoint(lambda some: form(some, kernel, pads), prevent_cse=False)
        if number == batch:
            return once(inputs)
        made = jax.lax.map(once, chunks)
        return made.reshape(batch, *made.shape[2:])

    return apply


def _with_kernel_gradient(xla: _Form, separable: _Form) -> _Form:
    """Convolve with XLA, but for what depends on how the kernel moves.

    Of 128 -> 128 channels on 16x16, that gradient 299 -> 79.
    """

    @jax.custom_jvp
    def convolve(inputs: Array, kernel: Array) -> Array:
        return xla(inputs, kernel)

    @functools.partial(convolve.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> tuple[Array, Any]:
        inputs, kernel = primals
        made = convolve(inputs, kernel)
        moved = []
        if not isinstance(tangents[0], SymbolicZero):
            moved.append(convolve(tangents[0], kernel))
        if not isinstance(tangents[1], SymbolicZero):
            moved.append(separable(inputs, tangents[1]))
        return made, sum(moved[1:], moved[0]) if moved else jnp.zeros_like(made)

    return convolve


def _is_plain(inputs: Array, kernel: Array, options: dict[str, Any]) -> bool:
    """Tell whether nothing is asked for that only XLA's convolution does."""
    numbers = jax.lax.conv_dimension_numbers(
        inputs.shape, kernel.shape, options.get("dimension_numbers")
    )
    flax = jax.lax.conv_dimension_numbers(
        inputs.shape, kernel.shape, ("NHWC", "HWIO", "NHWC")
    )
    dilations = (options.get("lhs_dilation"), options.get("rhs_dilation"))
    return (
        inputs.ndim == 4
        and inputs.shape[0] > 0
        and numbers == flax
        and all(set(dilation or (1,)) == {1} for dilation in dilations)
        and options.get("feature_group_count", 1) == 1
        and options.get("batch_group_count", 1) == 1
        and options.get("precision") is None
        and options.get("preferred_element_type") is None
        and options.get("out_sharding") is None
    )


@jax.custom_jvp
def max_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch half_height half_width channels"]:
    """Take the highest of each 2x2 window; of equal ones the first gets the gradient.

    Like `nnx.max_pool(x, (2, 2), strides=(2, 2))`, whose gradient takes 130 ms on 2 CPU cores
    for 128 maps of 32x32x64, where this takes 5.

    Args:
        x: a last odd row or column is left out.

    Returns:
        Maps of half the size.

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    first, second, third, fourth = _windows(x)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


@max_pool.defjvp
def _max_pool_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    highest = max_pool(*primals)
    first, second, third, _ = (value == highest for value in _windows(*primals))
    moves = _windows(*tangents)
    tangent = jnp.where(third, moves[2], moves[3])
    tangent = jnp.where(first, moves[0], jnp.where(second, moves[1], tangent))
    return highest, tangent


def _windows(x: Array) -> list[Array]:
    """Return the four pixels of every window, row by row."""
    batch, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    split = even.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return [split[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]
