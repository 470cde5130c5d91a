"""From a Flax NNX module to pure functions over plain dicts."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from jaxprune import tree
from jaxprune.types import Params

NormFlow: TypeAlias = Literal["identity", "absolute"]
FLOWS = get_args(NormFlow)

_NORMS = (
    nnx.BatchNorm,
    nnx.LayerNorm,
    nnx.GroupNorm,
    nnx.InstanceNorm,
    nnx.RMSNorm,
)
# Arguments of a module's call that select training mode, and their values in it.
_TRAIN_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


@dataclasses.dataclass(frozen=True)
class Apply:
    """The forward pass of a network as a value: equal for equal networks, and hashable.

    Call it as `apply(params, state, x, train=False) -> (outputs, state)`. In training mode
    the returned state holds the new BatchNorm statistics and random number counters.

    Attributes:
        graphdef: the structure of the NNX module, without arrays.
    """

    graphdef: Any
    _hash: int = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compute the hash once: `jit` asks for it in every call."""
        object.__setattr__(self, "_hash", hash(self.graphdef))

    def __hash__(self) -> int:
        """Return the hash of the structure."""
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the hash, which is another one in another process."""
        return Apply, (self.graphdef,)

    def __call__(
        self, params: Params, state: PyTree, x: Any, *, train: bool = False
    ) -> tuple[Any, PyTree]:
        """Run the network."""
        module = self.module(params, state)
        outputs = _call(module, x, train)
        nnx.pop(module, nnx.Intermediate)  # recorded by `sow`
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))

    def module(self, params: Params, state: PyTree) -> nnx.Module:
        """Return the NNX module with these arrays."""
        return nnx.merge(self.graphdef, nnx.State(params), nnx.State(state))


def _call(module: nnx.Module, x: Any, train: bool) -> Any:
    """Set the mode both ways: as attributes, and as the argument that the call takes."""
    (module.train if train else module.eval)()
    accepted = inspect.signature(type(module).__call__).parameters
    mode = {
        name: value if train else not value
        for name, value in _TRAIN_ARGUMENTS.items()
        if name in accepted
    }
    return module(x, **mode)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A network as data and one pure function; a pytree whose leaves are its arrays.

    Attributes:
        params: trainable arrays, a dict of dicts.
        state: other arrays, keyed by module: BatchNorm statistics, keys of Dropout.
        apply: `apply(params, state, x, train=False) -> (outputs, state)`; part of the tree's
            structure, so a hashable value such as `Apply`, or a function.
    """

    params: Params
    state: PyTree
    apply: Callable[..., Any] = dataclasses.field(metadata={"static": True})


def check_model(model: Any, otherwise: str = "") -> None:
    """Check that a value is a network.

    Args:
        model: the value to check.
        otherwise: another remedy, added to the error message.

    Raises:
        TypeError: if it is not a `Model`.

    Example:
        >>> check_model({})
        Traceback (most recent call last):
        TypeError: model is a dict. Pass a models.Model: ...
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"model is a {type(model).__name__}. Pass a models.Model: models.create(...), "
            "models.functional(module) of an NNX module, or result.model of train.fit."
            f"{otherwise}"
        )


def functional(module: Any) -> Model:
    """Split any NNX module into a `Model`.

    Training mode is selected by `.train()` and `.eval()`, and by an argument of the
    module's call named `train`, `training`, `is_training`, `deterministic` or
    `use_running_average` where it has one.

    Args:
        module: an `nnx.Module` that holds its weights in `nnx.Param` and whose call takes one
            input, besides that argument.

    Returns:
        `Model(params, state, apply)`. The module is copied, not changed.

    Raises:
        TypeError: if `module` is not an NNX module.

    Example:
        >>> class Double(nnx.Module):
        ...     def __init__(self):
        ...         self.factor = nnx.Param(jnp.array(2.0))
        ...
        ...     def __call__(self, x):
        ...         return self.factor * x
        >>> model = functional(Double())
        >>> model.apply(model.params, model.state, jnp.array(3.0))[0].item()
        6.0
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"models.functional needs a Flax NNX module; got a {type(module).__name__}. "
            "Scores and masks take other parameter trees as they are: for Linen, pass "
            "variables['params']; for Equinox, eqx.filter(module, eqx.is_inexact_array)."
        )
    module = nnx.clone(module)
    module.eval()  # so that equal networks in different modes are equal models
    nnx.pop(module, nnx.Intermediate)
    graphdef, params, state = nnx.split(module, nnx.Param, ...)
    return Model(nnx.to_pure_dict(params), nnx.to_pure_dict(state), Apply(graphdef))


@dataclasses.dataclass(frozen=True)
class _Flow:
    """The forward pass without norm layers; compared by value."""

    apply: Any
    batch_norm: str  # a NormFlow

    def __call__(self, state: PyTree, params: Params, inputs: Any) -> Array:
        if jnp.issubdtype(inputs.dtype, jnp.floating):
            state = tree.map_floating(lambda leaf: leaf.astype(inputs.dtype), state)
        if self.batch_norm == "absolute":
            state = tree.map_floating(jnp.abs, state)
            return self.apply(params, state, inputs)[0]
        module = self.apply.module(params, state)
        return _call(_without_norms(module), inputs, train=False)


class Identity(nnx.Module):
    """Stands in for a norm layer: returns its input."""

    def __call__(self, x: Array, *args: Any, **options: Any) -> Array:
        """Return `x`."""
        del args, options
        return x


def _without_norms(module: nnx.Module) -> nnx.Module:
    """Replace every norm layer of a module by the identity."""
    if isinstance(module, _NORMS):
        return Identity()
    for _, node in list(nnx.iter_graph(module)):
        if isinstance(node, nnx.Pytree):  # a module, or a list or dict of modules
            for name, child in list(vars(node).items()):
                if isinstance(child, _NORMS):
                    setattr(node, name, Identity())
    return module


def flow(model: Model | Any, *, batch_norm: NormFlow | str = "identity") -> Partial:
    """Make the forward pass that `scores.synflow` needs.

    By default, norm layers are removed: the output then depends on an input whenever a path
    of kept weights connects them.

    Args:
        model: the network.
        batch_norm: "identity" replaces every BatchNorm, LayerNorm, GroupNorm, InstanceNorm
            and RMSNorm by the identity; "absolute" keeps all norm layers, in evaluation
            mode, and takes the absolute value of the BatchNorm statistics, as the SynFlow
            authors' code does.

    Returns:
        `apply_fn(params, inputs) -> outputs`, in the dtype of `inputs`; a pytree, so that it
        can be an argument of a jitted function.

    Raises:
        ValueError: if `batch_norm` is unknown.
        TypeError: if `model` is not a `models.Model`; or if it is one of a plain function,
            whose norm layers can't be replaced.

    Example:
        >>> from jaxprune import models
        >>> model = models.create("mlp", key=jax.random.key(0), input_shape=(2, 2, 1))
        >>> flow(model)(model.params, jnp.ones((1, 2, 2, 1))).shape
        (1, 10)
    """
    check_model(
        model,
        " For another function, leave the norm layers out of what you pass to "
        "scores.synflow.",
    )
    tree.check_option("batch_norm", batch_norm, FLOWS)
    if batch_norm == "identity" and not hasattr(model.apply, "module"):
        raise TypeError(
            "this network is a plain function, in which no norm layers can be replaced. Pass "
            'batch_norm="absolute" (in a recipe norm_flow="absolute"), which runs them in '
            "evaluation mode."
        )
    return Partial(_Flow(model.apply, batch_norm), model.state)
