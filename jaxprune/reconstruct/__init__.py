"""Methods that also change the weights that stay, so that outputs change less."""

from jaxprune.reconstruct.bias import bias_correction
from jaxprune.reconstruct.sparsegpt import sparsegpt

__all__ = [
    "bias_correction",
    "sparsegpt",
]
