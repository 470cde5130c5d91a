"""Scoring functions: how much a network wants to keep each weight.

Every method is one pure function from parameters to scores of the same tree; higher
means keep. They know no neural network library and run under `jax.jit` with the
callable bound by `functools.partial`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxprune.scores.grasp import grasp as grasp
from jaxprune.scores.magnitude import magnitude as magnitude
from jaxprune.scores.random import random as random
from jaxprune.scores.snip import snip as snip
from jaxprune.scores.synflow import synflow as synflow


class Scorer(NamedTuple):
    """A scoring function and what it needs beside the parameters.

    score: the function; needs: "nothing", "key", "batches" (and a loss) or "inputs"
    (and a forward function); rounds: how often its paper scores before the density is
    reached.
    """

    score: Callable[..., Any]
    needs: str
    rounds: int


SCORERS: Mapping[str, Scorer] = {
    "random": Scorer(random, needs="key", rounds=1),
    "magnitude": Scorer(magnitude, needs="nothing", rounds=1),
    "snip": Scorer(snip, needs="batches", rounds=1),
    "grasp": Scorer(grasp, needs="batches", rounds=1),
    "synflow": Scorer(synflow, needs="inputs", rounds=100),
}
