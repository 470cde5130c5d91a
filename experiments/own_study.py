"""A study of your own, to copy: a new score compared with Mag and SNIP on a new network.

scripts/study.py reads `STUDY`. Bring any NNX module (or init and apply functions, in a
models.Model), any arrays (other losses and metrics: train.Objective), any score and any
optax optimizer. What you change runs again; the rest is read from disk.
    python scripts/study.py run experiments/own_study.py       # 30 s on 2 CPU cores; resumes
    python scripts/study.py run experiments/own_study.py --seeds 3 --density 0.02
"""

import jax
import optax
from flax import nnx
from sklearn.datasets import load_digits

from jaxprune.study.config import Recipe
from jaxprune.study.methods import Method
from jaxprune.study.user import Data, Study
from jaxprune.train import Training


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.norm = nnx.LayerNorm(64, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.hidden(x))))


def sensitivity(loss_fn, params, batches, *, mask=None):  # higher means keep
    gradients = jax.grad(lambda p: sum(loss_fn(p, batch) for batch in batches))(params)
    return jax.tree.map(lambda w, g: abs(w) * abs(g) ** 0.5, params, gradients)


x, y = load_digits(return_X_y=True)
STUDY = Study(
    name="own_study",
    version="1",
    model=lambda key: Network(nnx.Rngs(key)),
    data=Data(
        "digits", train=(x[:1400] / 16, y[:1400]), test=(x[1400:] / 16, y[1400:])
    ),
    methods=("magnitude", "snip", Method("sensitivity", "Sensitivity", sensitivity)),
    densities=(0.2, 0.05),
    recipe=Recipe("adamw", Training(10, 64, 3e-3, optax.adamw), memory="none"),
)
