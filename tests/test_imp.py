"""Iterative magnitude pruning: what is rewound, what nests, and what survives a kill."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import checkpoint, imp, masks

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)}


def train_fn(params, mask, key, level):
    """Move each living weight by noise of the level; the early iteration is half way."""
    noise = masks.apply({"w": jax.random.normal(key, (6, 6))}, mask)
    early = jax.tree.map(lambda w, n: w + 0.5 * n, params, noise)
    late = jax.tree.map(lambda w, n: w + n, params, noise)
    return imp.Trained(late, {"norm": jnp.linalg.norm(late["w"])}, early)


def run(rewind, densities=(0.5, 0.25), **options):
    state = imp.init(PARAMS, jax.random.key(3))
    states, infos, started = [state], [], []

    def watched(params, mask, key, level):
        started.append(params)
        return train_fn(params, mask, key, level)

    for density in densities:
        state, info = imp.step(state, watched, density, rewind=rewind, **options)
        states.append(state)
        infos.append(info)
    return states, infos, started


def test_rewinds_to_the_initial_weights_bit_for_bit():
    states, _, started = run("init")
    chex.assert_trees_all_equal(started[1], masks.apply(PARAMS, states[1].mask))


def test_rewinds_to_the_early_iteration_bit_for_bit_at_every_level():
    states, _, started = run("early", (0.5, 0.25, 0.125))
    key, _ = jax.random.split(jax.random.key(3))
    early = train_fn(PARAMS, masks.ones_like(PARAMS), key, 0).early
    for level in (1, 2):
        chex.assert_trees_all_equal(
            started[level], masks.apply(early, states[level].mask)
        )


def test_keeps_the_trained_weights_where_nothing_is_rewound():
    states, infos, started = run("weights_kept")
    chex.assert_trees_all_equal(
        started[1], masks.apply(infos[0].trained, states[1].mask)
    )


@pytest.mark.parametrize("rewind", imp.REWINDS)
def test_masks_nest_and_count_against_all_weights(rewind):
    states, infos, _ = run(rewind)
    assert [masks.count(s.mask) for s in states] == [36, 18, 9]
    assert [info.density for info in infos] == [0.5, 0.25]
    assert not bool((states[2].mask["w"] & ~states[1].mask["w"]).any())


def test_regrowth_lets_stale_weights_compete():
    """As the published study ran: a pruned weight keeps its value and may come back."""

    def shrink_the_living(params, mask, key, level):
        return imp.Trained(
            jax.tree.map(lambda w, m: jnp.where(m, 0.1 * w, w), params, mask)
        )

    state = imp.init(PARAMS, jax.random.key(0))
    for density in (0.5, 0.5):
        before = state.mask
        state, _ = imp.step(
            state, shrink_the_living, density, rewind="weights_kept", regrow=True
        )
    assert bool((state.mask["w"] & ~before["w"]).any())


def test_levels_trace_training_once():
    traced = jax.jit(chex.assert_max_traces(train_fn, n=1))
    state = imp.init(PARAMS, jax.random.key(0))
    for density in (0.8, 0.6, 0.4, 0.2, 0.1):
        state, _ = imp.step(state, traced, density, rewind="early")
    assert state.level == 5


def test_bad_rewinds_are_refused():
    state = imp.init(PARAMS, jax.random.key(0))
    with pytest.raises(
        ValueError, match="rewind 'late' is not known. Pass one of init, early"
    ):
        imp.step(state, train_fn, 0.5, rewind="late")
    with pytest.raises(ValueError, match="needs the weights after iteration k"):
        imp.step(state, lambda p, m, k, level: imp.Trained(p), 0.5, rewind="early")


def bound(rewind="early"):
    return functools.partial(imp.step, train_fn=train_fn, rewind=rewind)


@pytest.mark.parametrize("rewind", imp.REWINDS)
def test_levels_from_disk_are_the_bits_of_levels_in_memory(rewind, tmp_path):
    densities = (0.5, 0.25, 0.1)
    states, infos, _ = run(rewind, densities)
    for _ in range(2):  # written, then read
        start = imp.init(PARAMS, jax.random.key(3))
        saved = list(checkpoint.levels(tmp_path, start, bound(rewind), densities))
        assert len(saved) == 3
        for (state, info), expected, seen in zip(saved, states[1:], infos, strict=True):
            chex.assert_trees_all_equal(
                state._replace(key=None), expected._replace(key=None)
            )
            key = jax.random.key_data(state.key)
            assert (key == jax.random.key_data(expected.key)).all()
            chex.assert_trees_all_equal(info.trained, seen.trained)
            assert info.density == seen.density


def test_a_run_resumes_after_its_newest_whole_level(tmp_path):
    start = imp.init(PARAMS, jax.random.key(3))
    next(checkpoint.levels(tmp_path, start, bound(), (0.5, 0.25)))
    (
        tmp_path / "level_0002"
    ).mkdir()  # what a kill may leave: a folder without a commit
    ran = []

    def counted(state, density):
        ran.append(density)
        return bound()(state, density=density)

    list(checkpoint.levels(tmp_path, start, counted, (0.5, 0.25)))
    assert ran == [0.25]


def test_other_densities_and_other_networks_are_refused(tmp_path):
    start = imp.init(PARAMS, jax.random.key(3))
    list(checkpoint.levels(tmp_path, start, bound(), (0.5,)))
    with pytest.raises(ValueError, match="pruned to density 0.5, but 0.4 is asked for"):
        list(checkpoint.levels(tmp_path, start, bound(), (0.4,)))
    for params, seed in (
        ({"w": jnp.ones((2, 2))}, 3),
        ({"w": PARAMS["w"] + 1}, 3),
        (PARAMS, 4),
    ):
        other = imp.init(params, jax.random.key(seed))
        with pytest.raises(
            ValueError, match="begun from other weights, another mask or"
        ):
            list(checkpoint.levels(tmp_path, other, bound(), (0.5,)))


def test_early_weights_of_a_killed_run_are_written_anew(tmp_path):
    checkpoint.save(
        tmp_path / "rewind_level_0001", {"params": {"w": jnp.zeros((6, 6))}}
    )
    start = imp.init(PARAMS, jax.random.key(3))
    ((state, _),) = checkpoint.levels(tmp_path, start, bound(), (0.5,))
    expected, _ = imp.step(
        imp.init(PARAMS, jax.random.key(3)), train_fn, 0.5, rewind="early"
    )
    chex.assert_trees_all_equal(state.rewind, expected.rewind)


def test_lists_of_more_than_ten_layers_come_back_in_their_places(tmp_path):
    params = [jnp.full((2, 2), float(i)) for i in range(12)]
    keep = lambda params, mask, key, level: imp.Trained(params)
    step = functools.partial(imp.step, train_fn=keep, rewind="init")
    start = imp.init(params, jax.random.key(0))
    ((_, info),) = checkpoint.levels(tmp_path, start, step, (1.0,))
    assert [int(leaf[0, 0]) for leaf in info.trained] == list(range(12))


def test_missing_and_damaged_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        checkpoint.load(tmp_path / "nothing")
    checkpoint.save(tmp_path / "held", {"w": jnp.ones((64, 64))})
    for file in (tmp_path / "held").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ValueError, match="held is damaged .*Run again what wrote it"):
        checkpoint.load(tmp_path / "held")


@pytest.mark.parametrize("where", ["level_0001", "level_0002", "rewind_level_0001"])
def test_a_damaged_level_is_kept_aside_and_made_anew(where, tmp_path):
    start = imp.init(PARAMS, jax.random.key(3))
    whole = list(checkpoint.levels(tmp_path, start, bound(), (0.5, 0.25)))
    file = max(
        (tmp_path / where).rglob("d/*"), key=lambda p: p.is_file() and p.stat().st_size
    )
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)
    start = imp.init(PARAMS, jax.random.key(3))
    # With what it rewinds to, a level is made anew.
    named = where.removeprefix("rewind_")
    with pytest.warns(UserWarning, match=f"{named} was damaged; it is kept as"):
        again = list(checkpoint.levels(tmp_path, start, bound(), (0.5, 0.25)))
    assert (tmp_path / f"{where}.corrupt").exists()
    if where.startswith("rewind"):  # the level itself is whole, and kept too
        assert checkpoint.load(tmp_path / "level_0001.corrupt")["level"] == 1
    for one, other in zip(whole, again, strict=True):
        chex.assert_trees_all_equal(one[0].mask, other[0].mask)
        chex.assert_trees_all_equal(one[0].rewind, other[0].rewind)


def test_levels_after_one_that_was_made_anew_with_other_bits_are_made_anew(tmp_path):
    """As on a device that adds up in another order each time."""
    again = lambda params, mask, key, level: train_fn(
        jax.tree.map(lambda w: w + 1e-3, params), mask, key, level
    )

    def run_levels(step):
        start = imp.init(PARAMS, jax.random.key(3))
        return list(checkpoint.levels(tmp_path, start, step, (0.5, 0.25)))

    run_levels(bound())
    (tmp_path / "level_0001" / "checksums.json").write_text("{}")
    with pytest.warns(match="level_0001 was"), pytest.warns(match="level_0002 was"):
        remade = run_levels(functools.partial(imp.step, train_fn=again, rewind="early"))
    for one, other in zip(remade, run_levels(bound()), strict=True):  # read back
        chex.assert_trees_all_equal(one[1].trained, other[1].trained)


def test_what_another_version_wrote_is_not_deleted(tmp_path):
    checkpoint.save(tmp_path / "held", {"w": jnp.ones(2)})
    (tmp_path / "held" / "checksums.json").unlink()
    with pytest.warns(UserWarning, match="is kept as held.corrupt"):
        checkpoint.save(tmp_path / "held", {"w": jnp.zeros(2)})
    assert checkpoint.load(tmp_path / "held")["w"].tolist() == [0, 0]


def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="mine is there and is no checkpoint. Pass a"):
        checkpoint.save(tmp_path / "mine", {"w": jnp.ones(2)})
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    checkpoint.save(tmp_path / "held", {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="held holds a checkpoint already"):
        checkpoint.save(tmp_path / "held", {"w": jnp.ones(2)})


VICTIM = """
import functools, sys, time
import jax, jax.numpy as jnp, numpy as np
from jaxprune import checkpoint, imp, masks

folder, pause = sys.argv[1], float(sys.argv[2])
params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(40, 40)), jnp.float32)}

def train_fn(params, mask, key, level):
    weights = params
    for i in range(20):
        draw = jax.random.normal(jax.random.fold_in(key, i), (40, 40))
        noise = masks.apply({"w": draw}, mask)
        weights = jax.tree.map(lambda w, n: w + 0.1 * n, weights, noise)
        early = weights if i == 2 else (early if i > 2 else None)
        print("iteration", int(level), i, flush=True)
        time.sleep(pause)
    return imp.Trained(weights, {"level": level}, early)

step = functools.partial(imp.step, train_fn=train_fn, rewind="early")
state = imp.init(params, jax.random.key(0))
for state, info in checkpoint.levels(folder, state, step, (0.6, 0.3, 0.1)):
    pass
end = {"mask": state.mask["w"], "rewind": state.rewind["w"], "last": info.trained["w"]}
np.savez(folder + "/end.npz", **end)
"""


def end(folder: Path, kills: list[str]) -> dict[str, np.ndarray]:
    """Run the victim, killed with -9 when it prints each of `kills`; then to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "victim.py"
    script.write_text(VICTIM)
    for moment in kills:
        command = [sys.executable, str(script), str(folder), "0.02"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
            for line in victim.stdout:
                if line.strip() == moment:
                    time.sleep(0.01)
                    os.kill(victim.pid, signal.SIGKILL)
                    break
        assert victim.returncode == -signal.SIGKILL
    subprocess.run(
        [sys.executable, str(script), str(folder), "0"], check=True, capture_output=True
    )
    with np.load(folder / "end.npz") as held:
        return dict(held)


def test_a_run_killed_in_every_level_ends_with_the_same_bits(tmp_path):
    whole = end(tmp_path / "whole", [])
    killed = end(
        tmp_path / "killed", ["iteration 0 10", "iteration 1 19", "iteration 2 3"]
    )
    for name, array in whole.items():
        np.testing.assert_array_equal(killed[name], array)
    assert int(whole["mask"].sum()) == 160
