"""A study of sequences of tokens, with init and apply functions, as a user writes it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import models
from jaxprune.study.config import Recipe
from jaxprune.study.methods import Method
from jaxprune.study.user import Data, Study
from jaxprune.train import Objective, Training

WORDS, SHARPNESS = 12, 1.0


def init(key):
    keys = jax.random.split(key, 3)
    normal = jax.random.normal
    params = {
        "embedding": normal(keys[0], (WORDS, 8)),
        "hidden": {"kernel": normal(keys[1], (8, 16)) / 3, "bias": jnp.zeros(16)},
        "out": {"kernel": normal(keys[2], (16, WORDS)) / 4, "bias": jnp.zeros(WORDS)},
    }
    return models.Model(params, {}, apply)


def apply(params, state, tokens, *, train=False):
    hidden, out = params["hidden"], params["out"]
    x = params["embedding"][tokens]
    x = jax.nn.relu(jnp.dot(x, hidden["kernel"]) + hidden["bias"][None, None])
    return jnp.dot(x, out["kernel"]) + out["bias"][None, None], state


def loss(logits, tokens):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return losses.mean(-1)


def power(x):
    return x**SHARPNESS


def score(params, *, mask=None):
    return jax.tree.map(lambda w: power(jnp.abs(w)), params)


def sentences(seed, number):
    """Each word is the one before plus 1, so that the next word can be predicted."""
    first = np.random.default_rng(seed).integers(0, WORDS, (number, 1))
    words = (first + np.arange(6)) % WORDS
    return words[:, :-1], words[:, 1:].astype(np.int32)


STUDY = Study(
    name="tokens",
    version="1",
    model=init,
    data=Data(
        "counting",
        train=sentences(0, 64),
        test=sentences(1, 20),
        objective=Objective(loss, loss, "surprise", "nats", higher_is_better=False),
    ),
    methods=("dense", "grasp", Method("power", "Power", score, needs="nothing")),
    densities=(0.5,),
    recipe=Recipe(
        "lion",
        Training(8, 16, 0.01, optax.lion),
        score_examples=10,
        time=False,
        memory="none",
    ),
)
