"""Run two levels of IMP on four devices, of one process or of several.

    python -m tests.programs.train_on_hosts FOLDER RANK HOSTS PORT

Each of HOSTS processes has 4 / HOSTS devices. PORT is a free port of this machine. The
first process writes the result of the levels, end.npz.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxprune import checkpoint, data, imp, models, sharding, train, tree
from jaxprune.study import runner
from tests.study.tiny_study import DIGITS, cell, study

DENSITIES = (0.5, 0.2)
REWIND_ITERATION = 2


def _start_hosts(rank: int, hosts: int, port: int) -> None:
    jax.config.update("jax_enable_x64", True)
    # Programs in flight can take the threads that a collective of another one waits for.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_num_cpu_devices", 4 // hosts)
    if hosts > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", hosts, rank)
    assert (jax.device_count(), jax.local_device_count()) == (4, 4 // hosts)


def _check_failures_are_shared(rank: int) -> None:
    """An error of one process is an error of all."""
    assert not sharding.all_hosts_agree(rank == 0)
    message = None
    try:
        with sharding.fail_together():
            if rank == 0:
                raise OSError("a full disk")
    except OSError as error:
        message = str(error)
    assert message is not None, "this process continued alone"
    assert ("a full disk" in message) == (rank == 0)


def _corrupt_level(folder: Path) -> None:
    if sharding.is_first_process():
        files = (folder / "level_0002").rglob("d/*")
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-9])
    sharding.barrier("corrupted")


def run_levels(folder: Path, rank: int, hosts: int) -> None:
    """Run, read back, and with several hosts regenerate a corrupt level."""
    mesh = sharding.make_mesh(data=2, model=2)
    model = models.create(
        "mlp", key=jax.random.key(0), input_shape=(8, 8, 1), width=0.125
    )
    model = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model)
    model = sharding.shard_params(model, mesh)
    digits = data.load(DIGITS)
    images, labels = sharding.replicate(
        (digits.train_images[:256], digits.train_labels[:256]), mesh
    )
    image_set = train.ImageSet(images, labels, data.Preprocessing((0.287,), (0.353,)))
    recipe = train.Training(2.0, 64, 0.1, precision="float64")
    trained = []

    def train_fn(model: Any, mask: Any, key: Any, level: Any) -> imp.TrainResult:
        trained.append(int(level))
        result = train.fit(
            model,
            mask.params,
            image_set,
            recipe,
            key,
            rewind_iteration=REWIND_ITERATION,
        )
        return imp.TrainResult(result.model, rewind_point=result.rewind_point)

    step = functools.partial(imp.step, train_fn=train_fn, rewind="early")

    def last_level() -> tuple[imp.State, imp.Info]:
        start = imp.init(model, jax.random.key(1))
        *_, last = checkpoint.levels(folder / "levels", start, step, DENSITIES)
        return last

    last_level()
    state, info = last_level()  # read back
    assert info.params.params["fc2"]["kernel"].sharding.mesh.shape["model"] == 2
    assert trained == [0, 1]
    if hosts > 1:
        _check_failures_are_shared(rank)
        _corrupt_level(folder / "levels")
        state, info = last_level()
        assert trained == [0, 1, 1]
        assert (folder / "levels/level_0002.corrupt").exists()
    end = sharding.gather_to_host(
        {"mask": state.mask, "rewind_point": state.params, "trained": info.params}
    )
    if sharding.is_first_process():
        np.savez(folder / "end.npz", **tree.by_name(end))


def refuse_study(folder: Path) -> None:
    """Check that a study, which runs on one host, refuses several."""
    with pytest.raises(ValueError, match=r"2 processes of jax.distributed"):
        list(runner.run(study(cell("snip")), folder, DIGITS))


def main(folder: Path, rank: int, hosts: int, port: int) -> None:
    """Run the levels."""
    _start_hosts(rank, hosts, port)
    run_levels(folder, rank, hosts)
    if hosts > 1:
        refuse_study(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
