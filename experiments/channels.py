"""Whole channels of trained networks removed by three scores: accuracy and real speed.

A Conv-2 and a small vision transformer are trained on digits, pruned to a share of their
multiply-accumulates, compacted, and trained on for half as many epochs. Channels are ranked
all together, or the same share of each kind is removed ("per kind").

Source: Molchanov et al., https://arxiv.org/abs/1906.10771, CVPR 2019, for Taylor scores; the
networks and the data are ours, so there is no published number. Expect 15 minutes on 2 CPU
cores; ours: results/channel_accuracy.json.
    python -m experiments.channels accuracy.json
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxprune import compact, graph, masks, models, profiling, scores
from jaxprune.study import provenance

SEEDS = (0, 1, 2)
DENSITIES = (0.5, 0.25, 0.1)
METHODS = ("taylor", "taylor per kind", "magnitude", "magnitude per kind", "random")
EPOCHS, BATCH, LEARNING_RATE = 30, 64, 2e-3
TIMED = (1, 256)  # images per call

Fn = Callable[[Any, jax.Array], jax.Array]
Data = tuple[jax.Array, jax.Array]


class Network(NamedTuple):
    """A function in inference form, which is also what is trained: neither has BatchNorm."""

    fn: Fn
    params: Any


class Block(nnx.Module):
    """A transformer block with LayerNorm in front."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Run the block."""
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class _ViT(nnx.Module):
    """Patches of 2x2, two blocks of 4 heads, mean over patches."""

    def __init__(self, rngs: nnx.Rngs, width: int = 64):
        self.patch = nnx.Conv(1, width, (2, 2), strides=2, rngs=rngs)
        self.position = nnx.Param(0.02 * rngs.params.normal((16, width)))
        self.blocks = nnx.List(Block(width, 4, rngs) for _ in range(2))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patch(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def vit(seed: int) -> Network:
    """Draw the vision transformer."""
    graphdef, params, rest = nnx.split(_ViT(nnx.Rngs(seed)), nnx.Param, ...)
    return Network(lambda params, x: nnx.merge(graphdef, params, rest)(x), params)


def conv2(seed: int) -> Network:
    """Draw the Conv-2 of the lottery ticket paper, for images of 8x8."""
    key = jax.random.key(seed)
    model = models.create("conv2", key=key, input_shape=(8, 8, 1), batch_norm=False)
    return Network(
        lambda params, x: model.apply(params, model.state, x)[0], model.params
    )


NETWORKS = {"conv2": conv2, "vit": vit}


def load() -> tuple[Data, Data]:
    """Return training and test images of digits."""
    # Imported here, since scripts/bench uses Block without scikit-learn.
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = jnp.asarray(x, jnp.float32).reshape(-1, 8, 8, 1) / 16
    y = jnp.asarray(y, jnp.int32)
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def loss(fn: Fn, params: Any, batch: Data) -> jax.Array:
    """Return the mean cross-entropy of a batch, in nats."""
    logits = fn(params, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def fit(network: Network, train: Data, epochs: int, seed: int) -> Network:
    """Train with Adam and a cosine schedule."""
    steps = epochs * (len(train[0]) // BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    # A loop of steps: a convolution inside lax.scan runs on one core of a CPU.
    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        chosen = jax.random.randint(key, (BATCH,), 0, len(train[0]))
        batch = train[0][chosen], train[1][chosen]
        gradients = jax.grad(lambda p: loss(network.fn, p, batch))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = network.params, optimizer.init(network.params)
    for key in jax.random.split(jax.random.key(seed), steps):
        params, state = step(params, state, key)
    return network._replace(params=params)


def accuracy(network: Network, test: Data) -> float:
    """Return the test accuracy in percent."""
    logits = jax.jit(network.fn)(network.params, test[0])
    return 100 * float((logits.argmax(-1) == test[1]).mean())


def score(method: str, network: Network, train: Data, seed: int) -> tuple[Any, str]:
    """Return scores, and how they become those of channels."""
    if method.startswith("taylor"):
        loss_fn = lambda params, batch: loss(network.fn, params, batch)
        return scores.taylor(loss_fn, network.params, [train]), "abs"
    if method.startswith("magnitude"):
        return scores.magnitude(network.params), "norm"
    return scores.random(jax.random.key(seed), network.params), "sum"


def prune(
    network: Network, method: str, density: float, train: Data, seed: int
) -> Network:
    """Remove channels until a share of the multiply-accumulates is left, and compact."""
    example = train[0][:2]
    groups = graph.channels(network.fn, network.params, example)
    ranked, reduce = score(method, network, train, seed)
    scope = "kind" if method.endswith("per kind") else "global"
    mask = masks.select_channels(
        groups, ranked, density, cost="macs", reduce=reduce, scope=scope
    )
    small = compact.compact(network.fn, network.params, mask, example)
    return Network(small.fn, small.params)


def cells(name: str, seed: int) -> list[dict[str, Any]]:
    """Train, prune and train on; measure each network."""
    train, test = load()
    dense = fit(NETWORKS[name](seed), train, EPOCHS, seed)
    common = {"network": name, "seed": seed}
    rows = [{**common, "method": "dense", "density": 1.0} | _measured(dense, test)]
    timed = {"dense": dense}
    for method in METHODS:
        for density in DENSITIES:
            small = prune(dense, method, density, train, seed)
            before = accuracy(small, test)
            small = fit(small, train, EPOCHS // 2, seed + 100)
            row = {**common, "method": method, "density": density, "before": before}
            rows.append(row | _measured(small, test))
            timed[f"{method} {density}"] = small
    for number in TIMED:
        x = test[0][:number]
        runs = [_compiled(network, x) for network in timed.values()]
        for row, latency in zip(rows, profiling.interleaved(*runs), strict=True):
            row[f"batch_{number}_s"] = latency.p50
    return rows


def _measured(network: Network, test: Data) -> dict[str, Any]:
    macs = profiling.macs(network.fn, network.params, test[0][:1])
    return {
        "accuracy": accuracy(network, test),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(network.params)),
        "macs": sum(jax.tree.leaves(macs)),
    }


def _compiled(network: Network, x: jax.Array) -> Callable[[], Any]:
    run = jax.jit(lambda p, x: network.fn(p, x)).lower(network.params, x).compile()
    return lambda: run(network.params, x)


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of means over the seeds."""
    lines = [
        "| network | score | MACs asked | parameters | accuracy | without training on | "
        + " | ".join(f"{n}: x" for n in TIMED)
        + " |",
        "| --- | --- | ---: | ---: | ---: | ---: |" + " ---: |" * len(TIMED),
    ]
    names = dict.fromkeys((r["network"], r["method"], r["density"]) for r in rows)
    for network, method, density in names:
        of_cell = [
            row
            for row in rows
            if (row["network"], row["method"], row["density"])
            == (network, method, density)
        ]
        dense = {
            row["seed"]: row
            for row in rows
            if row["network"] == network and row["method"] == "dense"
        }
        gains = [
            statistics.mean(dense[r["seed"]][key] / r[key] for r in of_cell)
            for key in (f"batch_{n}_s" for n in TIMED)
        ]
        found = [row["accuracy"] for row in of_cell]
        before = [row["before"] for row in of_cell if "before" in row]
        cells = [
            network,
            method,
            f"{100 * density:g} %",
            f"{statistics.mean(row['parameters'] for row in of_cell):,.0f}",
            f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}",
            f"{statistics.mean(before):.1f}" if before else "",
            *(f"{gain:.1f}" for gain in gains),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(path: Path) -> None:
    """Run everything; write the rows after each network."""
    rows: list[dict[str, Any]] = []
    for name in NETWORKS:
        for seed in SEEDS:
            rows += cells(name, seed)
            result = {"machine": provenance.describe(), "rows": rows}
            path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.channels RESULTS.json")
    main(Path(sys.argv[1]))
