"""Matrix products and convolutions of 0/1 indicators, and their transposes, in NumPy.

Whether a product can be nonzero, or is needed, is a product of indicators. Sums of ones stay
positive, so float32 is exact enough. NumPy needs no compilation, which would take most of the
time: every layer has another shape.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Arrays here are 0/1 indicators, bool outside and float32 inside.
Indicator = np.ndarray


def is_product(name: str, params: Mapping[str, Any]) -> bool:
    """Return whether an equation is a product that this module can follow."""
    if name == "dot_general":
        return True
    is_cut = any(edge < 0 for pair in params["padding"] for edge in pair)
    is_dilated = any(step > 1 for step in params["lhs_dilation"])
    return params["batch_group_count"] == 1 and not (is_cut and is_dilated)


def product(
    name: str, params: Mapping[str, Any], x: Indicator, y: Indicator
) -> Indicator:
    """Return where a product of indicators is positive.

    Args:
        name: "dot_general" or "conv_general_dilated".
        params: the parameters of the equation.
        x: left operand.
        y: right operand.

    Returns:
        An indicator of the output's shape.

    Example:
        >>> numbers = {"dimension_numbers": (((1,), (0,)), ((), ()))}
        >>> x, y = np.array([[True, False]]), np.array([[False], [True]])
        >>> product("dot_general", numbers, x, y)
        array([[False]])
    """
    if name == "dot_general":
        left, right = _dot_axes(params, x.ndim, y.ndim)
        batch, free_x, contracted = left
        free_y = right[2]
        shape = [x.shape[a] for a in (*batch, *free_x)] + [y.shape[a] for a in free_y]
        if not (x.any() and y.any()):
            return np.zeros(shape, bool)
        if x.all() and y.all():
            return np.full(shape, math.prod(x.shape[a] for a in contracted) > 0)
        return (_three(x, left) @ _three(y, right)).reshape(shape) > 0
    conv = _Conv(params, x.shape, y.shape)
    if not (x.any() and y.any()):
        return np.zeros(conv.out_shape, bool)
    padded, kernel = conv.pad(x), conv.kernel(y)
    out = np.zeros((*conv.out, conv.groups, kernel.shape[-1]), np.float32)
    for tap, window in conv.taps():
        out += _grouped(padded[window], kernel[tap])
    return conv.restore_out(out) > 0


def transpose(
    name: str,
    params: Mapping[str, Any],
    side: int,
    out: Indicator,
    other: Indicator,
    shape: Sequence[int],
) -> Indicator:
    """Return which entries of an operand take part in the marked outputs.

    Args:
        name: "dot_general" or "conv_general_dilated".
        params: the parameters of the equation.
        side: 0 for the left operand, 1 for the right one.
        out: the marked outputs.
        other: the entries of the other operand that count.
        shape: shape of the operand.

    Returns:
        An indicator of `shape`.

    Example:
        >>> numbers = {"dimension_numbers": (((1,), (0,)), ((), ()))}
        >>> y, out = np.array([[False], [True]]), np.array([[True]])
        >>> transpose("dot_general", numbers, 0, out, y, (1, 2))
        array([[False,  True]])
    """
    if not out.any() or not other.any():
        return np.zeros(shape, bool)
    if name == "dot_general":
        if out.all() and other.all():
            return np.ones(shape, bool)
        return _dot_transpose(params, side, out, other, shape)
    return _conv_transpose(params, side, out, other, shape)


def _dot_axes(params: Mapping[str, Any], x_ndim: int, y_ndim: int) -> tuple[Any, Any]:
    """Return (batch, free, contracted) axes of x and (batch, contracted, free) of y."""
    (cx, cy), (bx, by) = params["dimension_numbers"]
    free_x = [a for a in range(x_ndim) if a not in (*cx, *bx)]
    free_y = [a for a in range(y_ndim) if a not in (*cy, *by)]
    return (list(bx), free_x, list(cx)), (list(by), list(cy), free_y)


def _three(x: Indicator, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Merge three groups of axes into three axes."""
    order = [axis for group in groups for axis in group]
    sizes = [math.prod(x.shape[a] for a in group) for group in groups]
    return x.transpose(order).reshape(sizes).astype(np.float32)


def _dot_transpose(
    params: Mapping[str, Any],
    side: int,
    out: Indicator,
    other: Indicator,
    shape: Sequence[int],
) -> Indicator:
    ndims = (len(shape), other.ndim) if side == 0 else (other.ndim, len(shape))
    left, right = _dot_axes(params, *ndims)
    if side == 0:
        y = _three(other, right)
        flat = out.reshape(y.shape[0], -1, y.shape[2]).astype(np.float32)
        result, groups = flat @ y.swapaxes(1, 2), left
    else:
        x = _three(other, left)
        flat = out.reshape(x.shape[0], x.shape[1], -1).astype(np.float32)
        result, groups = x.swapaxes(1, 2) @ flat, right
    order = [axis for group in groups for axis in group]
    result = (result > 0).reshape([shape[a] for a in order])
    return result.transpose(np.argsort(order))


class _Conv:
    """A convolution in one layout: (batch, *space, groups, inputs) and so on."""

    def __init__(self, params: Mapping[str, Any], x: Sequence[int], y: Sequence[int]):
        numbers = params["dimension_numbers"]
        self.x_order = [numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]]
        self.y_order = [*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]]
        self.out_order = [
            numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]
        ]  # fmt: skip
        self.groups = params["feature_group_count"]
        self.strides = params["window_strides"]
        self.padding = params["padding"]
        self.inside = params["lhs_dilation"]
        self.apart = params["rhs_dilation"]
        self.x_shape = [x[a] for a in self.x_order]
        self.y_shape = [y[a] for a in self.y_order]
        self.widths = self.y_shape[:-2]
        self.dilated = [
            max((n - 1) * step + 1, 0)
            for n, step in zip(self.x_shape[1:-1], self.inside, strict=True)
        ]
        space = [
            max((n + before + after - (width - 1) * apart - 1) // stride + 1, 0)
            for n, (before, after), width, apart, stride in zip(
                self.dilated, self.padding, self.widths, self.apart, self.strides,
                strict=True,
            )
        ]  # fmt: skip
        self.out = [self.x_shape[0], *space]
        shape = [*self.out, self.y_shape[-1]]
        self.out_shape = [shape[i] for i in np.argsort(self.out_order)]

    def kernel(self, y: Indicator) -> np.ndarray:
        """Lay a kernel out as (*window, groups, inputs, outputs per group)."""
        y = y.transpose(self.y_order).astype(np.float32)
        *window, inputs, outputs = y.shape
        split = y.reshape(*window, inputs, self.groups, outputs // self.groups)
        return np.moveaxis(split, -2, -3)

    def restore_kernel(self, y: np.ndarray) -> np.ndarray:
        """Undo `kernel`."""
        y = np.moveaxis(y, -3, -2).reshape(self.y_shape)
        return y.transpose(np.argsort(self.y_order))

    def _inner(self) -> tuple[slice, ...]:
        """Return where the input lies in the padded map, cut where padding is negative."""
        return tuple(
            slice(
                max(before, 0),
                max(before, 0) + n + min(before, 0) + min(after, 0),
                step,
            )
            for n, (before, after), step in zip(
                self.dilated, self.padding, self.inside, strict=True
            )
        )

    def _left(self) -> tuple[slice, ...]:
        """Return what negative padding leaves of the input."""
        return tuple(
            slice(max(-before, 0), n - max(-after, 0))
            for n, (before, after) in zip(self.x_shape[1:-1], self.padding, strict=True)
        )

    def empty(self) -> np.ndarray:
        """Return a padded map of zeros."""
        space = [
            n + max(before, 0) + max(after, 0) + min(before, 0) + min(after, 0)
            for n, (before, after) in zip(self.dilated, self.padding, strict=True)
        ]
        channels = (self.groups, self.x_shape[-1] // self.groups)
        return np.zeros((self.x_shape[0], *space, *channels), np.float32)

    def pad(self, x: Indicator) -> np.ndarray:
        """Lay an input out with its padding, as (batch, *space, groups, inputs)."""
        x = x.transpose(self.x_order)
        padded = self.empty()
        view = padded[(slice(None), *self._inner())]
        view[...] = x[(slice(None), *self._left())].reshape(view.shape)
        return padded

    def unpad(self, padded: np.ndarray) -> np.ndarray:
        """Undo `pad`; what was cut off is 0."""
        x = np.zeros(self.x_shape, padded.dtype)
        view = x[(slice(None), *self._left())]
        view[...] = padded[(slice(None), *self._inner())].reshape(view.shape)
        return x.transpose(np.argsort(self.x_order))

    def taps(self) -> Any:
        """Yield each tap of the window, and the part of the padded map that it sees."""
        for tap in itertools.product(*(range(width) for width in self.widths)):
            yield (
                tap,
                (
                    slice(None),
                    *(
                        slice(i * apart, i * apart + (n - 1) * stride + 1, stride)
                        if n
                        else slice(0, 0)
                        for i, apart, n, stride in zip(
                            tap, self.apart, self.out[1:], self.strides, strict=True
                        )
                    ),
                ),
            )

    def restore_out(self, out: np.ndarray) -> np.ndarray:
        """Return an output in its own layout."""
        flat = out.reshape(*out.shape[:-2], -1)
        return flat.transpose(np.argsort(self.out_order))

    def arrange_out(self, out: Indicator) -> np.ndarray:
        """Lay an output out as (batch, *space, groups, outputs per group)."""
        out = out.transpose(self.out_order).astype(np.float32)
        return out.reshape(*out.shape[:-1], self.groups, -1)


def _grouped(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Multiply (..., groups, inputs) by (groups, inputs, outputs)."""
    *space, groups, inputs = x.shape
    flat = x.reshape(-1, groups, inputs).swapaxes(0, 1)
    return (flat @ kernel).swapaxes(0, 1).reshape(*space, groups, kernel.shape[-1])


def _conv_transpose(
    params: Mapping[str, Any],
    side: int,
    out: Indicator,
    other: Indicator,
    shape: Sequence[int],
) -> Indicator:
    shapes = (shape, other.shape) if side == 0 else (other.shape, shape)
    conv = _Conv(params, *shapes)
    marked = conv.arrange_out(out)
    if side == 0:
        kernel, padded = conv.kernel(other), conv.empty()
        for tap, window in conv.taps():
            padded[window] += _grouped(marked, kernel[tap].swapaxes(-1, -2))
        return conv.unpad(padded) > 0
    padded = conv.pad(other)
    inputs = conv.x_shape[-1] // conv.groups
    kernel = np.zeros((*conv.widths, conv.groups, inputs, marked.shape[-1]), np.float32)
    flat = marked.reshape(-1, *marked.shape[-2:]).transpose(1, 0, 2)
    for tap, window in conv.taps():
        seen = padded[window].reshape(-1, conv.groups, inputs).transpose(1, 2, 0)
        kernel[tap] = seen @ flat
    return conv.restore_kernel(kernel) > 0
