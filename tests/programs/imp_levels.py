"""Run three levels of iterative magnitude pruning, and print each iteration.

    python -m tests.programs.imp_levels FOLDER SECONDS

FOLDER gets the levels and the result, end.npz. The program sleeps SECONDS after each
iteration, so that the test has the time to kill it.
"""

import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoint, imp, masks

SHAPE = (40, 40)
REWIND_ITERATION = 2


def train_fn(
    params: Any, mask: Any, key: Any, level: Any, *, seconds: float
) -> imp.TrainResult:
    """Add noise to the kept weights in 20 iterations."""
    weights, rewind_point = params, None
    for i in range(20):
        draw = jax.random.normal(jax.random.fold_in(key, i), SHAPE)
        noise = masks.apply({"w": draw}, mask)
        weights = jax.tree.map(lambda w, n: w + 0.1 * n, weights, noise)
        if i == REWIND_ITERATION:
            rewind_point = weights
        print("iteration", int(level), i, flush=True)
        time.sleep(seconds)
    return imp.TrainResult(weights, {"level": level}, rewind_point)


def main(folder: str, seconds: float) -> None:
    """Run the levels that are not on disk yet, and write the result."""
    draw = np.random.default_rng(0).normal(size=SHAPE)
    params = {"w": jnp.asarray(draw, jnp.float32)}
    train = functools.partial(train_fn, seconds=seconds)
    step = functools.partial(imp.step, train_fn=train, rewind="early")
    start = imp.init(params, jax.random.key(0))
    *_, (state, info) = checkpoint.levels(folder, start, step, (0.6, 0.3, 0.1))
    np.savez(
        f"{folder}/end.npz",
        mask=state.mask["w"],
        rewind_point=state.params["w"],
        trained=info.params["w"],
    )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
