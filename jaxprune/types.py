"""Type aliases of the library. Parameters, masks and scores are trees of one structure."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, SupportsFloat, TypeAlias

from jax import Array
from jaxtyping import Key, PyTree

# Any pytree of arrays: an NNX State, Linen params, an Equinox module, a dict. Functions
# that only need sizes also accept jax.ShapeDtypeStruct leaves. These aliases don't check
# dtypes: the functions do, and name the leaf that is wrong.
Params: TypeAlias = PyTree[Any]
# Same tree and shapes as the parameters; a higher score means keep.
Scores: TypeAlias = PyTree[Any]
# Same tree and shapes as the parameters; bool, True keeps.
Mask: TypeAlias = PyTree[Any]
# Same tree as the parameters; one bool per leaf: may its weights be pruned?
Prunable: TypeAlias = PyTree[bool]
# Any pytree of arrays that the loss function accepts.
Batch: TypeAlias = PyTree[Any]
# A list of batches.
Batches: TypeAlias = Any
# One key of jax.random.key.
RandomKey: TypeAlias = Key[Array, ""]
# An int, float, NumPy scalar or JAX scalar; functions check its range.
Fraction: TypeAlias = SupportsFloat

# Leaf name -> density.
Budget: TypeAlias = Mapping[str, float]

Scope: TypeAlias = Literal["global", "layer", "row"]
Ties: TypeAlias = Literal["exact", "reference"]
Schedule: TypeAlias = Literal["exponential", "linear", "cubic"]
RewindTo: TypeAlias = Literal["init", "early", "weights_kept"]

# loss_fn(params, batch) -> scalar.
LossFn: TypeAlias = Callable[[Any, Any], Array]
# apply_fn(params, inputs) -> outputs.
ApplyFn: TypeAlias = Callable[[Any, Any], Array]

# score_fn(params, mask=mask) -> scores: a scoring function with everything else bound.
ScoreFn: TypeAlias = Callable[..., Any]
