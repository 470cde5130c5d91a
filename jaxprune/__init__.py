"""jaxprune: prune networks in JAX, and measure honestly what pruning bought.

Import the parts by name; none imports more than it needs:

    from jaxprune import scores, masks, prune, imp, checkpoint, models, profiling
"""

__version__ = "0.1.0"
