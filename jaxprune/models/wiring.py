"""Which layer feeds which, and networks rebuilt around arrays of other sizes."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxprune.models._functional import Apply, Model, functional
from jaxprune.models._layers import Folded
from jaxprune.types import Params


class Layer(NamedTuple):
    """A layer with a kernel, and the streams of channels between which it stands.

    name: path of what holds the kernel, such as "block1/layer1/conv"; norm: path of the
    normalization behind it, or None; reads, writes: names of streams. The pictures are the
    stream "input", the result is "logits". Several layers that write one stream add to it,
    as a residual block and its shortcut do. A dense layer may read a stream of maps, their
    pixels one after another, the channels of each together.
    """

    name: str
    norm: str | None
    reads: str
    writes: str


def chain(module: Any, names: Sequence[tuple[str, str]], reads: str) -> list[Layer]:
    """List layers of which each feeds the next.

    Args:
        module: what holds them.
        names: of each layer and of the normalization behind it, which may be None.
        reads: the stream that the first reads; each writes one of its own name.

    Returns:
        The layers.

    Example:
        >>> from types import SimpleNamespace
        >>> chain(SimpleNamespace(bn1=None), [("conv1", "bn1")], "input")
        [Layer(name='conv1', norm=None, reads='input', writes='conv1')]
    """
    layers = []
    for name, norm in names:
        held = norm if getattr(module, norm) is not None else None
        layers.append(Layer(name, held, reads, name))
        reads = name
    return layers


class Product(NamedTuple):
    """What a layer multiplies: its input, and `multiply(inputs, kernel)`, biases left out."""

    inputs: Float[Array, "..."]
    multiply: Callable[[Array, Array], Array]


def wiring(model: Model) -> tuple[Layer, ...]:
    """List the layers of a network in the order of its forward pass.

    Args:
        model: of `models.create`, or `models.functional` of a module that has an
            `input_shape` (height, width, channels) and a method `wiring()` that lists its
            layers; `models/vgg.py` is an example.

    Returns:
        The layers.

    Raises:
        ValueError: if the module of `model` says nothing of its wiring, names what is not
            there, convolves groups of channels, or normalizes by anything but
            `nnx.BatchNorm` with scale and bias.

    Example:
        >>> from jaxprune import models
        >>> shape = {"input_shape": (2, 2, 1), "batch_norm": False}
        >>> network = models.create("lenet-300-100", key=jax.random.key(0), **shape)
        >>> wiring(network)[0]
        Layer(name='fc1', norm=None, reads='input', writes='fc1')
    """
    return tuple(_layers(_module(model)))


def _module(model: Model) -> Any:
    if not isinstance(model.apply, Apply):
        raise ValueError(
            "model.apply is not of an NNX module. Make the model with models.create or "
            "models.functional."
        )
    module: Any = model.apply.module(model.params, model.state)
    if not (hasattr(module, "wiring") and hasattr(module, "input_shape")):
        raise ValueError(
            f"{type(module).__name__} does not say which layer feeds which. Give it an "
            "input_shape and a method wiring(), as jaxprune/models/vgg.py has."
        )
    if len(module.input_shape) != 3:
        raise ValueError(
            f"input_shape of {type(module).__name__} is {module.input_shape}. Make it "
            "(height, width, channels)."
        )
    _check_wiring(module)
    return module


def _layers(module: Any) -> list[Layer]:
    """List the layers as the module does, without normalizations that were folded."""
    return [
        layer._replace(norm=None)
        if layer.norm is not None and isinstance(_find(module, layer.norm), Folded)
        else layer
        for layer in module.wiring()
    ]


def _check_wiring(module: Any) -> None:
    """Refuse a wiring that names what is not there, or what compaction can't follow."""
    streams = {"input"}
    for layer in _layers(module):
        part = _find(module, layer.name)
        if not isinstance(part, nnx.Conv | nnx.Linear):
            raise ValueError(
                f"wiring() of {type(module).__name__} names the layer '{layer.name}', where "
                f"there is {type(part).__name__}. Name an nnx.Conv or nnx.Linear."
            )
        if getattr(part, "feature_group_count", 1) != 1:
            raise ValueError(
                f"layer '{layer.name}' convolves groups of channels, and a wiring says "
                "nothing of groups. Write it as one convolution for each group."
            )
        if layer.reads not in streams:
            raise ValueError(
                f"layer '{layer.name}' reads the stream '{layer.reads}', which no layer "
                f"before it writes. Let it read one of {', '.join(sorted(streams))}."
            )
        streams.add(layer.writes)
        norm = None if layer.norm is None else _find(module, layer.norm)
        if layer.norm is not None and not (
            isinstance(norm, nnx.BatchNorm) and norm.use_scale and norm.use_bias
        ):
            raise ValueError(
                f"'{layer.norm}' behind layer '{layer.name}' is {type(norm).__name__}. Only "
                "nnx.BatchNorm with use_scale and use_bias can be followed."
            )
    if "logits" not in streams:
        raise ValueError(
            f"no layer of {type(module).__name__} writes the stream 'logits'. Let the last "
            "layer do."
        )


def _find(module: Any, name: str) -> Any:
    try:
        return _at(module, name)
    except AttributeError:
        return None


def input_shape(model: Model) -> tuple[int, ...]:
    """Return the height, width and channels of the pictures a network is made for.

    Args:
        model: as in `wiring`.

    Example:
        >>> from jaxprune import models
        >>> input_shape(models.create("mlp", key=jax.random.key(0), input_shape=(2, 2, 1)))
        (2, 2, 1)
    """
    return tuple(_module(model).input_shape)


def products(model: Model) -> dict[str, Product]:
    """Run a network in evaluation mode on one black picture, and keep what it multiplies.

    Args:
        model: as in `wiring`.

    Returns:
        By the name of the layer, its product.

    Example:
        >>> from jaxprune import models
        >>> shape = {"input_shape": (2, 2, 1), "batch_norm": False}
        >>> network = models.create("mlp", key=jax.random.key(0), **shape)
        >>> products(network)["fc1"].inputs
        Array([[0., 0., 0., 0.]], dtype=float32)
    """
    module, seen = _module(model), {}

    def spy(name: str, product: Callable[..., Array]) -> Callable[..., Array]:
        def multiply(inputs: Array, kernel: Array, *args: Any, **options: Any) -> Array:
            again = lambda inputs, kernel: product(inputs, kernel, *args, **options)
            seen[name] = Product(inputs, again)
            return again(inputs, kernel)

        return multiply

    for layer in _layers(module):
        part = _at(module, layer.name)
        setattr(part, _hook(part), spy(layer.name, getattr(part, _hook(part))))
    dtype = jnp.result_type(*jax.tree.leaves(model.params))
    module(jnp.zeros((1, *module.input_shape), dtype), False)
    return seen


def replace_modules(
    model: Model,
    multiply: Mapping[str, Callable[..., Array]],
    kernels: Mapping[str, Array],
) -> Model:
    """Let layers multiply in another way, by kernels in another form.

    Args:
        model: as in `wiring`.
        multiply: by the name of a layer, what to call in place of
            `jax.lax.conv_general_dilated`, or of `jax.lax.dot_general` if it is dense.
        kernels: by the name of a layer, what that is given in place of the kernel.

    Returns:
        The network, with these kernels in its params.

    Example:
        >>> from jaxprune import models
        >>> shape = {"input_shape": (2, 2, 1), "batch_norm": False}
        >>> network = models.create("lenet-300-100", key=jax.random.key(0), **shape)
        >>> ones = lambda x, kernel, *args, **options: jnp.ones((len(x), 10)) * kernel
        >>> odd = replace_modules(network, {"fc3": ones}, {"fc3": jnp.float32(7)})
        >>> odd.apply(odd.params, {}, jnp.ones((1, 2, 2, 1)))[0][0, 0].item()
        7.0
    """
    module = _module(model)
    for name, kernel in kernels.items():
        part = _at(module, name)
        part.kernel = nnx.Param(kernel)
        setattr(part, _hook(part), multiply[name])
    return functional(module)


def _hook(part: nnx.Module) -> str:
    return "conv_general_dilated" if isinstance(part, nnx.Conv) else "dot_general"


def rebuild(model: Model, params: Params, state: PyTree) -> Model:
    """Build the same network around arrays of other sizes, for pictures of its input_shape.

    Args:
        model: the network as it was, as in `wiring`.
        params: kernels with fewer channels; a bias may be there that was not, of shape
            (channels,) or (height, width, channels); without the arrays of a
            normalization there is none.
        state: statistics of the normalizations that are left.

    Returns:
        The network, `params` and `state` in it.

    Example:
        >>> from jaxprune import models
        >>> shape = {"input_shape": (2, 2, 1), "batch_norm": False}
        >>> network = models.create("lenet-300-100", key=jax.random.key(0), **shape)
        >>> params = jax.tree.map(lambda leaf: leaf, network.params)
        >>> params["fc1"] = {"kernel": jnp.ones((4, 7)), "bias": jnp.zeros(7)}
        >>> params["fc2"]["kernel"] = jnp.ones((7, 100))
        >>> narrow = rebuild(network, params, {})
        >>> narrow.apply(narrow.params, {}, jnp.ones((1, 2, 2, 1)))[0].shape
        (1, 10)
    """
    params, state = jax.tree.map(jnp.asarray, (params, state))
    module = _module(model)
    module.only_shape = tuple(module.input_shape)
    for layer in _layers(module):
        part, held = _at(module, layer.name), get_path(params, layer.name)
        part.kernel = nnx.Param(held["kernel"])
        part.in_features, part.out_features = held["kernel"].shape[-2:]
        if isinstance(part, nnx.Conv):
            part.kernel_shape = held["kernel"].shape
        part.use_bias = "bias" in held
        part.bias = nnx.Param(held["bias"]) if part.use_bias else None
        if layer.norm is not None:
            _set_norm(module, layer.norm, params, state)
    return functional(module)


def _set_norm(module: Any, name: str, params: Params, state: PyTree) -> None:
    *parents, last = name.split("/")
    parent = _at(module, "/".join(parents))
    if last not in get_path(params, "/".join(parents)):
        setattr(parent, last, Folded())
        return
    norm, held, seen = (
        getattr(parent, last),
        get_path(params, name),
        get_path(state, name),
    )
    norm.scale, norm.bias = nnx.Param(held["scale"]), nnx.Param(held["bias"])
    norm.mean, norm.var = nnx.BatchStat(seen["mean"]), nnx.BatchStat(seen["var"])
    (norm.num_features,) = held["scale"].shape


def fold_batch_norm(model: Model) -> Model:
    """Put each batch normalization, as it is in evaluation, into the layer before it.

    Args:
        model: as in `wiring`, with trained params and statistics in it.

    Returns:
        A network of the same logits without normalization.

    Example:
        >>> from jaxprune import models
        >>> shape = {"input_shape": (2, 2, 1)}
        >>> network = models.create("mlp", key=jax.random.key(0), **shape)
        >>> fold_batch_norm(network).state
        {}
    """
    params, state = on_host((model.params, model.state))
    module = _module(model)
    for layer in _layers(module):
        if layer.norm is None:
            continue
        *parents, last = layer.norm.split("/")
        norm = get_path(params, "/".join(parents)).pop(last)
        seen = get_path(state, "/".join(parents)).pop(last)
        held = get_path(params, layer.name)
        factor = norm["scale"] / np.sqrt(seen["var"] + _at(module, layer.norm).epsilon)
        shift = norm["bias"] - seen["mean"] * factor
        bias = held["bias"] * factor + shift if "bias" in held else shift
        dtype = held["kernel"].dtype
        held["kernel"] = (held["kernel"] * factor).astype(dtype)
        held["bias"] = bias.astype(dtype)
    return rebuild(model, params, state)


def on_host(arrays: PyTree) -> Any:
    """Copy arrays to the host, where they may be changed; keys of dropout stay."""
    return jax.tree.map(
        lambda leaf: (
            leaf
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else np.asarray(leaf)
        ),
        arrays,
    )


def get_path(tree: Any, name: str) -> Any:
    """Return what lies at a path of a dict of dicts, such as "block1/layer1/conv"."""
    return functools.reduce(operator.getitem, filter(None, name.split("/")), tree)


def _at(module: Any, name: str) -> Any:
    return functools.reduce(getattr, filter(None, name.split("/")), module)
