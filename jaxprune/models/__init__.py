"""Networks of the pruning literature as pure functions of their parameters."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
from flax import nnx
from jax.core import Tracer

from jaxprune import tree
from jaxprune.models import lenet, mlp, resnet, vgg
from jaxprune.models._functional import (
    FLOWS,
    Apply,
    Model,
    check_model,
    flow,
    functional,
)
from jaxprune.models.conv import (
    conv_general_dilated,
    max_pool,
)
from jaxprune.types import RandomKey

__all__ = [
    "FLOWS",
    "MODELS",
    "Apply",
    "Model",
    "check_model",
    "conv_general_dilated",
    "create",
    "flow",
    "functional",
    "max_pool",
]

# Each value builds a module: f(input_shape=, num_classes=, batch_norm=, width=, rngs=).
MODELS: Mapping[str, Callable[..., nnx.Module]] = {
    "mlp": partial(mlp.MLP, hidden=(256, 256, 256)),
    "lenet-300-100": partial(mlp.MLP, hidden=(300, 100)),
    "conv2": partial(lenet.ConvN, blocks=(64,)),
    "conv4": partial(lenet.ConvN, blocks=(64, 128)),
    "conv6": partial(lenet.ConvN, blocks=(64, 128, 256)),
    "vgg11": partial(
        vgg.VGG, stages=((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2)
    ),
    "vgg13": partial(
        vgg.VGG, stages=((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2)
    ),
    "vgg16": partial(
        vgg.VGG, stages=((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    ),
    "vgg19": partial(
        vgg.VGG, stages=((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)
    ),
    "resnet18": partial(resnet.ResNet, blocks=(2, 2, 2, 2), stem=64),
    "resnet20": partial(resnet.ResNet, blocks=(3, 3, 3), stem=16),
    "resnet32": partial(resnet.ResNet, blocks=(5, 5, 5), stem=16),
    "resnet56": partial(resnet.ResNet, blocks=(9, 9, 9), stem=16),
}


def create(
    name: str,
    *,
    key: RandomKey,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    batch_norm: bool = True,
    width: float = 1.0,
) -> Model:
    """Build a network and draw its weights.

    Weights are drawn from an untruncated normal distribution of variance 2 / fan_in
    (Flax's own he_normal is truncated and leads to different masks). Biases are 0.

    Args:
        name: a key of `models.MODELS`.
        key: randomness of the weights.
        input_shape: height, width and channels of an image. VGG and conv-n skip pooling
            layers that would shrink a feature map below one pixel.
        num_classes: number of logits.
        batch_norm: whether to add BatchNorm before each ReLU, with epsilon 1e-5 and
            momentum 0.9.
        width: factor that multiplies the numbers of channels and hidden units.

    Returns:
        `Model(params, state, apply)`.

    Raises:
        ValueError: if the name is unknown, or a size is not positive.

    Example:
        >>> import jax
        >>> model = create("conv2", key=jax.random.key(0), batch_norm=False, width=0.125)
        >>> model.params["conv1"]["kernel"].shape
        (3, 3, 3, 8)

    References:
        Simonyan and Zisserman, https://arxiv.org/abs/1409.1556, 2014 (VGG). He et al.,
        https://arxiv.org/abs/1512.03385, 2015 (ResNet; projection shortcuts). LeCun
        et al., Gradient-based learning, 1998 (LeNet-300-100). Frankle and Carbin,
        https://arxiv.org/abs/1803.03635, 2019, figure 2 (conv-2, -4, -6).
    """
    tree.check_option("model", name, MODELS)
    if min(*input_shape, num_classes) < 1 or not 0 < width < float("inf"):
        raise ValueError(
            f"input_shape {input_shape}, num_classes {num_classes} and width {width} "
            "must all be positive. Pass the height, width and channels of your images."
        )
    if isinstance(key, Tracer):  # an inner program takes no options
        build = _build
    else:
        build = _build_on_cpu if jax.default_backend() == "cpu" else _build_elsewhere
    return build(key, name, tuple(input_shape), num_classes, batch_norm, width)


def _build(
    key: RandomKey,
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    batch_norm: bool,
    width: float,
) -> Model:
    module = MODELS[name](
        input_shape=input_shape,
        num_classes=num_classes,
        batch_norm=batch_norm,
        width=width,
        rngs=nnx.Rngs(key),
    )
    return functional(module)


# One program instead of one for each shape. On a CPU, more optimization changes neither the
# weights nor the time of a call, and takes three to four times as long: 3.6 s instead of 0.9
# for conv-2.
_build_elsewhere = jax.jit(_build, static_argnums=range(1, 6))
_build_on_cpu = jax.jit(
    _build,
    static_argnums=range(1, 6),
    compiler_options={"xla_backend_optimization_level": 1},
)
