"""Two processes of two devices each do what one process of four does."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxprune.study import records

ROOT = Path(__file__).parent.parent

HOST = """
import sys
from pathlib import Path

import jax

folder, rank, hosts, port = Path(sys.argv[1]), *map(int, sys.argv[2:5])
sys.path.insert(0, sys.argv[5])
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 4 // hosts)
if hosts > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", hosts, rank)
assert (jax.device_count(), jax.local_device_count()) == (4, 4 // hosts)

import functools
import jax.numpy as jnp
import numpy as np
from jaxprune import checkpoint, data, imp, models, sharding, train

mesh = sharding.make_mesh(data=2, model=2)
model = models.create("mlp", key=jax.random.key(0), input_shape=(8, 8, 1), width=0.125)
wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model[:2])
digits = data.load(data.find("digits"))
images, labels = sharding.replicate((digits.train_images[:256], digits.train_labels[:256]), mesh)
how = data.Preprocessing((0.287,), (0.353,))
recipe = train.Training(2.0, 64, 0.1, precision="float64")


def train_fn(params, mask, key, level):
    fitted = train.fit(
        model.apply, params, sharding.replicate(wide[1], mesh), mask,
        train.ImageSet(images, labels, how), recipe, key, early=2,
    )
    return imp.Trained(fitted.params, early=fitted.early[0])


params = sharding.shard_params(wide[0], mesh)
step = functools.partial(imp.step, train_fn=train_fn, rewind="early")
trained = []


def counted(state, density):
    trained.append(density)
    return step(state, density=density)


for _ in range(2):  # run and saved, then read back
    state = imp.init(params, jax.random.key(1))
    for state, info in checkpoint.levels(folder / "levels", state, counted, [0.5, 0.2]):
        assert info.trained["fc2"]["kernel"].sharding.mesh.shape["model"] == 2
assert trained == [0.5, 0.2]
if hosts > 1:  # one of them finds damage, all make it anew
    assert not sharding.all_hosts_agree(rank == 0)
    try:
        with sharding.fail_together():
            if rank == 0:
                raise OSError("a full disk")
    except OSError as error:
        assert ("a full disk" in str(error)) == (rank == 0)
    else:
        raise AssertionError("this host went on alone")
    if sharding.is_first_process():
        file = max((folder / "levels/level_0002").rglob("d/*"), key=lambda p: p.stat().st_size)
        file.write_bytes(file.read_bytes()[:-9])
    sharding.barrier("damaged")
    state = imp.init(params, jax.random.key(1))
    for state, info in checkpoint.levels(folder / "levels", state, counted, [0.5, 0.2]):
        pass
    assert trained == [0.5, 0.2, 0.2]
    assert (folder / "levels/level_0002.corrupt").exists()
end = sharding.gather_to_host({"mask": state.mask, "rewind": state.rewind, "trained": info.trained})
if sharding.is_first_process():
    flat = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(end)}
    np.savez(folder / "end.npz", **flat)

if hosts > 1:
    jax.config.update("jax_enable_x64", False)
    from jaxprune.study import runner
    from tests.study.test_study import FOUND, cell, study

    (record,) = runner.run(study(cell("snip")), folder, FOUND, mesh=(2, 2))
    (folder / f"record-{rank}").write_text(f"{record.accuracy} {record.layers}")
"""


def run_on(folder: Path, hosts: int) -> None:
    folder.mkdir()
    script = folder / "host.py"
    script.write_text(HOST)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [
                sys.executable,
                str(script),
                str(folder),
                *map(str, (rank, hosts, port)),
                str(ROOT),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(hosts)
    ]
    try:
        for process in running:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in running:
            process.kill()


def test_two_hosts_do_what_one_does(tmp_path):
    """Levels trained, pruned, rewound, saved and restored across both; and a study."""
    for hosts in (1, 2):
        run_on(tmp_path / f"{hosts}", hosts)
    one, two = (dict(np.load(tmp_path / f"{hosts}" / "end.npz")) for hosts in (1, 2))
    assert one.keys() == two.keys()
    for name, array in one.items():
        if array.dtype == bool:
            np.testing.assert_array_equal(two[name], array)
        else:
            np.testing.assert_allclose(two[name], array, rtol=1e-9, atol=1e-12)
    kernels = [
        array for name, array in one.items() if "mask" in name and "kernel" in name
    ]
    share = sum(a.sum() for a in kernels) / sum(a.size for a in kernels)
    assert share == pytest.approx(0.2, abs=1e-3)

    # Both return the record that the first has written.
    (record,) = records.read_all(tmp_path / "2" / "tiny")
    told = {(tmp_path / "2" / f"record-{rank}").read_text() for rank in range(2)}
    assert told == {f"{record.accuracy} {record.layers}"}
    assert record.latency["call_p50_s"] > 0
    assert record.compaction["file_masked"] is None
