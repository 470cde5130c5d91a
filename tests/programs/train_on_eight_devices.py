"""Train and prune one level of IMP on one device and on a mesh of eight.

    python -m tests.programs.train_on_eight_devices FOLDER

Writes 1.npz and 8.npz: weights, masks, rewound weights and metrics.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import data, imp, models, sharding, train, tree

SHAPE = (8, 8, 2)


def run_level(model, mesh):
    """Train and prune a level on a mesh, or on one device if it is None.

    51 images in batches of 16 leave 3, which 4 parts of the data can't share equally.
    """
    draw = np.random.default_rng(1)
    images = jnp.asarray(draw.integers(0, 255, (51, *SHAPE)), jnp.uint8)
    labels = jnp.asarray(draw.integers(0, 10, 51), jnp.int32)
    preprocessing = data.Preprocessing((0.5, 0.5), (0.3, 0.3), 1, True)
    recipe = train.Training(
        epochs=2.0, batch_size=16, learning_rate=0.05, precision="float64"
    )
    if mesh is not None:
        model = sharding.shard_params(model, mesh)
        images, labels = sharding.replicate((images, labels), mesh)
    image_set = train.ImageSet(images, labels, preprocessing)

    def train_fn(model, mask, key, level):
        result = train.fit(
            model, mask.params, image_set, recipe, key, rewind_iteration=2
        )
        metrics = train.evaluate(result.model, image_set, batch_size=16)
        return imp.TrainResult(result.model, metrics, result.rewind_point)

    start = imp.init(model, jax.random.key(3))
    return imp.step(start, train_fn, 0.2, rewind="early")


def main(folder):
    """Run the level twice."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 8)
    model = models.create(
        "conv2", key=jax.random.key(0), input_shape=SHAPE, width=0.125
    )
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)
    mesh = sharding.make_mesh(data=4, model=2)
    for on, devices in ((None, 1), (mesh, 8)):
        state, info = run_level(model, on)
        if on is not None:
            kernel = info.params.params["conv2"]["kernel"]
            assert len({str(shard.index) for shard in kernel.addressable_shards}) == 2
            assert sharding.mesh_of((state.params, state.mask)) == mesh
        result = {
            "trained": info.params,
            "mask": state.mask,
            "rewound": state.params,
            "metrics": info.metrics,
        }
        np.savez(folder / f"{devices}.npz", **tree.by_name(jax.device_get(result)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
