"""The words of the library as types. A mask, a score and a parameter are the same tree."""

from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat, TypeAlias

import numpy as np
from jax import Array, ShapeDtypeStruct
from jaxtyping import Float, Key, PyTree, Shaped

# Any pytree of floating arrays: NNX state, Linen params, an Equinox module, a dict.
# What only looks at sizes takes shapes as well.
Params: TypeAlias = PyTree[Float[Array | np.ndarray | ShapeDtypeStruct, "..."]]
# Same tree and shapes as the parameters; higher means keep.
Scores: TypeAlias = PyTree[Float[Array | np.ndarray, "..."]]
# Same tree and shapes as the parameters; bool, True keeps. Loose in its dtype on
# purpose: tree.check_mirrors names the leaf that is wrong and how to mend it.
Mask: TypeAlias = PyTree[Shaped[Array | np.ndarray, "..."]]
# One bool a leaf: may the weights of this leaf be pruned?
Prunable: TypeAlias = PyTree[bool]
# Any pytree of arrays that the loss function understands.
Batch: TypeAlias = PyTree[Any]
Batches: TypeAlias = Sequence[Any]
# One key of jax.random.key.
RandomKey: TypeAlias = Key[Array, ""]
# A fraction to be checked by hand: int, float or numpy scalar.
Fraction: TypeAlias = SupportsFloat

LossFn: TypeAlias = Callable[[Any, Any], Array]
ApplyFn: TypeAlias = Callable[[Any, Any], Array]
ScoreFn: TypeAlias = Callable[[Any, Any, Any], Any]
