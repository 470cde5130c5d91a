"""Training: what continues, what is masked, what diverges."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import data, masks, models, train

HOW = data.Preprocessing((0.5,), (0.25,), pad=1, flip=True)


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 70).astype(np.int32)
    images = generator.integers(0, 60, (70, 4, 4, 1)) + 60 * labels.reshape(-1, 1, 1, 1)
    return train.ImageSet(jnp.asarray(images, jnp.uint8), jnp.asarray(labels), HOW)


@pytest.fixture(scope="module")
def model():
    return models.create(
        "mlp", key=jax.random.key(0), input_shape=(4, 4, 1), num_classes=3, width=0.05
    )


def recipe(**changes):
    defaults = {"epochs": 3, "batch_size": 32, "learning_rate": 0.1}
    return train.Training(**{**defaults, **changes})


def fit(model, pictures, training, mask=None, params=None, state=None, **options):
    params = model.params if params is None else params
    return train.fit(
        model.apply,
        params,
        model.state if state is None else state,
        masks.ones_like(model.params) if mask is None else mask,
        pictures,
        training,
        jax.random.key(1),
        **options,
    )


def test_training_learns(model, pictures):
    fitted = fit(model, pictures, recipe(epochs=10))
    assert fitted.history[-1]["loss"] < 0.7 * fitted.history[0]["loss"]
    found = train.evaluate(
        model.apply, fitted.params, fitted.state, pictures, batch_size=32
    )
    assert found.accuracy > 80


def test_training_leaves_its_arguments_whole(model, pictures):
    fit(model, pictures, recipe(epochs=1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model.params))


@pytest.mark.parametrize(
    "training",
    [
        recipe(optimizer="adam", learning_rate=0.01, weight_decay=0.1),
        recipe(weight_decay=0.1, decay="kernels", schedule="steps", drop_epochs=(1, 2)),
        recipe(schedule="cosine", warmup_epochs=1, smoothing=0.1, precision="bfloat16"),
    ],
    ids=["adam", "steps", "bfloat16"],
)
def test_pruned_weights_stay_zero_through_training(model, pictures, training):
    mask = masks.select(jax.tree.map(jnp.abs, model.params), 0.3)
    fitted = fit(model, pictures, training, mask)
    pruned = jax.tree.map(
        lambda w, m: jnp.where(m, jnp.zeros_like(w), w), fitted.params, mask
    )
    chex.assert_trees_all_equal(pruned, jax.tree.map(jnp.zeros_like, pruned))
    assert not fitted.diverged


def test_continuing_from_an_iteration_is_training_on(model, pictures):
    """Plain SGD has no state: stopping at an iteration and going on gives the same bits."""
    training = recipe(momentum=0.0, schedule="cosine")
    whole = fit(model, pictures, training, early=4)  # in the midst of the second epoch
    params, state = whole.early
    resumed = fit(model, pictures, training, params=params, state=state, start=4)
    chex.assert_trees_all_equal(resumed.params, whole.params)
    chex.assert_trees_all_equal(resumed.state, whole.state)


def test_the_early_iteration_may_be_the_first_or_the_last(model, pictures):
    first = fit(model, pictures, recipe(epochs=1), early=0)
    chex.assert_trees_all_equal(first.early[0], model.params)
    last = fit(model, pictures, recipe(epochs=1), early=3)
    chex.assert_trees_all_equal(last.early[0], last.params)


def test_every_example_counts_once_an_epoch(model, pictures):
    # 70 examples in batches of 32: the third batch has 6, its filling no weight.
    fitted = fit(model, pictures, recipe(epochs=1, learning_rate=1e-9, momentum=0.0))
    assert fitted.history[0]["accuracy"] * 70 / 100 == pytest.approx(
        round(fitted.history[0]["accuracy"] * 70 / 100)
    )


def test_the_filling_of_the_last_batch_has_no_gradient(pictures):
    """Full batch of 70, or 70 filled up to 96: without normalization the same step."""
    plain = models.create(
        "mlp", key=jax.random.key(0), input_shape=(4, 4, 1), num_classes=3, width=0.05,
        batch_norm=False,
    )  # fmt: skip
    still = pictures._replace(how=data.Preprocessing((0.5,), (0.25,)))
    full, filled = (
        fit(plain, still, recipe(epochs=1, momentum=0.0, batch_size=size))
        for size in (70, 96)
    )
    chex.assert_trees_all_close(full.params, filled.params, rtol=1e-5, atol=1e-6)


def test_evaluation_does_not_depend_on_the_batch(model, pictures):
    one, other = (
        train.evaluate(model.apply, model.params, model.state, pictures, size)
        for size in (70, 32)
    )
    assert one.accuracy == other.accuracy
    assert one.loss == pytest.approx(other.loss, rel=1e-5)


def test_a_loss_that_is_not_finite_ends_training(model, pictures):
    fitted = fit(model, pictures, recipe(learning_rate=1e30, epochs=5))
    assert fitted.diverged
    assert len(fitted.history) < 5


def test_five_levels_compile_the_step_once(model, pictures, caplog):
    training = recipe(epochs=1, momentum=0.8)
    scored = jax.tree.map(jnp.abs, model.params)
    with jax.log_compiles():
        for density in (0.9, 0.7, 0.5, 0.3, 0.1):
            fit(model, pictures, training, masks.select(scored, density))
    assert sum("Compiling jit(_step)" in line for line in caplog.messages) == 1


def test_a_scan_is_the_same_training_as_a_loop(model, pictures, monkeypatch):
    """Accelerators scan an epoch, split where the early iteration lies."""
    looped = fit(model, pictures, recipe(), early=4)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    scanned = fit(model, pictures, recipe(), early=4)
    chex.assert_trees_all_close(scanned.params, looped.params, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(scanned.early, looped.early, rtol=1e-4, atol=1e-5)
    assert scanned.history[-1]["loss"] == pytest.approx(
        looped.history[-1]["loss"], rel=1e-3
    )


def test_learning_rates_by_hand():
    steps = recipe(epochs=10, learning_rate=1.0, schedule="steps", drop_epochs=(2, 4))
    rate = train.learning_rate(steps, 10)
    values = [rate(jnp.int32(i)).item() for i in (0, 19, 20, 39, 40)]
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cosine = recipe(epochs=10, learning_rate=1.0, schedule="cosine", warmup_epochs=2)
    rate = train.learning_rate(cosine, 10)
    values = [rate(jnp.int32(i)).item() for i in (0, 9, 20, 60, 100)]
    assert values == pytest.approx([0.05, 0.5, 1, 0.5, 0], abs=1e-6)


def test_bad_recipes_are_refused(model, pictures):
    with pytest.raises(
        ValueError, match="optimizer 'lion' is not known. Pass one of adam, sgd"
    ):
        recipe(optimizer="lion")
    with pytest.raises(
        ValueError, match="learning_rate -1 must be positive and finite"
    ):
        recipe(learning_rate=-1)
    with pytest.raises(ValueError, match="epochs nan, batch_size 32"):
        recipe(epochs=float("nan"))
    with pytest.raises(ValueError, match="momentum -1, weight_decay 0.0"):
        recipe(momentum=-1)
    with pytest.raises(ValueError, match="start is iteration 99, but training has 9"):
        fit(model, pictures, recipe(), start=99)


def test_a_line_of_one_point_is_refused(model, pictures):
    end = (model.params, model.state)
    with pytest.raises(ValueError, match="points is how many points.*got 1"):
        train.errors_between(model.apply, end, end, pictures, points=1)
