"""Scoring functions: how much each weight matters to a network.

Every method is one pure function from parameters to scores of the same tree; a higher
score means keep. The functions use no neural network library and run under `jax.jit`,
with the loss or forward function bound by `functools.partial`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from jaxprune.scores.fisher import fisher
from jaxprune.scores.grasp import grasp
from jaxprune.scores.lamp import lamp
from jaxprune.scores.magnitude import magnitude
from jaxprune.scores.ntk_sap import ntk_sap
from jaxprune.scores.prospr import prospr
from jaxprune.scores.random import random
from jaxprune.scores.ria import ria
from jaxprune.scores.snip import snip
from jaxprune.scores.synflow import synflow
from jaxprune.scores.taylor import taylor
from jaxprune.scores.wanda import wanda

__all__ = [
    "SCORERS",
    "Scorer",
    "fisher",
    "grasp",
    "lamp",
    "magnitude",
    "ntk_sap",
    "prospr",
    "random",
    "ria",
    "snip",
    "synflow",
    "taylor",
    "wanda",
]


class Scorer(NamedTuple):
    """A scoring function and what it needs besides the parameters.

    Attributes:
        score: the function.
        needs: what the function takes besides the parameters: "nothing"; "key": a random
            key; "batches": a loss function and batches; "inputs": a forward function and
            inputs; "key_inputs": a random key, a forward function and inputs;
            "activations": a forward function and batches of inputs.
        rounds: number of scoring rounds in its paper.
    """

    score: Callable[..., Any]
    needs: Literal["nothing", "key", "batches", "inputs", "key_inputs", "activations"]
    rounds: int


SCORERS: Mapping[str, Scorer] = {
    "random": Scorer(random, needs="key", rounds=1),
    "magnitude": Scorer(magnitude, needs="nothing", rounds=1),
    "lamp": Scorer(lamp, needs="nothing", rounds=1),
    "wanda": Scorer(wanda, needs="activations", rounds=1),
    "ria": Scorer(ria, needs="activations", rounds=1),
    "fisher": Scorer(fisher, needs="batches", rounds=1),
    "snip": Scorer(snip, needs="batches", rounds=1),
    "prospr": Scorer(prospr, needs="batches", rounds=1),
    "grasp": Scorer(grasp, needs="batches", rounds=1),
    "synflow": Scorer(synflow, needs="inputs", rounds=100),
    "ntk_sap": Scorer(ntk_sap, needs="key_inputs", rounds=20),
}
