"""Training: learning, masks, continuing from an iteration, short batches, divergence."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import data, masks, models, scores, train, tree

PREPROCESSING = data.Preprocessing((0.5,), (0.25,), pad=1, flip=True)
PLAIN = data.Preprocessing((0.5,), (0.25,))


@pytest.fixture(scope="module")
def image_set():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 70).astype(np.int32)
    images = generator.integers(0, 60, (70, 4, 4, 1)) + 60 * labels.reshape(-1, 1, 1, 1)
    return train.ImageSet(
        jnp.asarray(images, jnp.uint8), jnp.asarray(labels), PREPROCESSING
    )


def create(**changes):
    options: Any = {"input_shape": (4, 4, 1), "num_classes": 3, "width": 0.05}
    return models.create("mlp", key=jax.random.key(0), **options, **changes)


@pytest.fixture(scope="module")
def model():
    return create()


def recipe(**changes):
    defaults = {"epochs": 3, "batch_size": 32, "learning_rate": 0.1}
    return train.Training(**{**defaults, **changes})


def fit(model, image_set, training, mask=None, **options):
    mask = masks.ones_like(model.params) if mask is None else mask
    return train.fit(model, mask, image_set, training, jax.random.key(1), **options)


def test_training_learns(model, image_set):
    history = []
    result = fit(model, image_set, recipe(epochs=10), on_epoch=history.append)
    assert result.history == history
    assert [entry["epoch"] for entry in history] == list(range(1, 11))
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert result.rewind_point is None
    assert train.evaluate(result.model, image_set, batch_size=32).metric > 80


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_training_does_not_change_its_arguments(loop, model, image_set):
    """Steps donate what they are given, and this optimizer keeps the parameters."""

    def keeping(rate):
        slow = lambda update, first, param: -rate * (update + 0.1 * (param - first))
        return optax.GradientTransformation(
            lambda params: params,
            lambda updates, state, params: (
                jax.tree.map(slow, updates, state, params),
                state,
            ),
        )

    mask = masks.ones_like(model.params)
    before = jax.tree.map(np.array, (model, mask))
    fit(model, image_set, recipe(epochs=1, optimizer=keeping, loop=loop), mask)
    chex.assert_trees_all_equal((model, mask), before)


@pytest.mark.parametrize(
    "training",
    [
        recipe(optimizer="adam", learning_rate=0.01, weight_decay=0.1),
        recipe(
            weight_decay=0.1, decay_mask="kernels", schedule="steps", drop_epochs=(1, 2)
        ),
        recipe(
            schedule="cosine",
            warmup_epochs=1,
            label_smoothing=0.1,
            precision="bfloat16",
        ),
    ],
    ids=["adam", "steps", "bfloat16"],
)
def test_pruned_weights_stay_zero_through_training(model, image_set, training):
    mask = masks.select(jax.tree.map(jnp.abs, model.params), 0.3)
    result = fit(model, image_set, training, mask)
    masked = masks.apply(result.model.params, mask)
    chex.assert_trees_all_equal(result.model.params, masked)
    assert not result.diverged


def test_continuing_from_an_iteration_gives_the_same_bits(model, image_set):
    """Plain SGD has no state, so that a fresh optimizer changes nothing."""
    training = recipe(momentum=0.0, schedule="cosine")
    # Iteration 4 is in the second epoch, after its first step.
    whole = fit(model, image_set, training, rewind_iteration=4)
    resumed = fit(whole.rewind_point, image_set, training, start=4)
    chex.assert_trees_all_equal(resumed.model, whole.model)
    assert resumed.history[-1] == whole.history[-1]


def test_the_rewind_point_may_be_the_first_or_the_last_iteration(model, image_set):
    first = fit(model, image_set, recipe(epochs=1), rewind_iteration=0)
    chex.assert_trees_all_equal(first.rewind_point, model)
    last = fit(model, image_set, recipe(epochs=1), rewind_iteration=3)
    chex.assert_trees_all_equal(last.rewind_point, last.model)
    assert last.rewind_point is not None
    assert last.rewind_point.apply == model.apply
    never = fit(model, image_set, recipe(epochs=1), rewind_iteration=4)
    assert never.rewind_point is None


def test_every_example_counts_once_per_epoch(model, image_set):
    result = fit(model, image_set, recipe(epochs=1, learning_rate=1e-9, momentum=0.0))
    correct = result.history[0]["accuracy"] * 70 / 100
    assert correct == pytest.approx(round(correct))


def test_the_last_batch_of_an_epoch_runs_at_its_own_size(image_set):
    """BatchNorm sees 32, 32 and 6 examples, and no filling."""
    model = create()
    still = image_set._replace(preprocessing=PLAIN)  # no augmentation
    # The weights do not move, so that the statistics can be computed by hand.
    training = recipe(epochs=1, learning_rate=1e-30, momentum=0.0)
    result = fit(model, still, training)
    chex.assert_trees_all_close(result.model.params, model.params, atol=1e-25)

    order_key, _ = jax.random.split(jax.random.key(1))
    order = data.epoch_order(order_key, 70, epoch=0)
    state, losses = model.state, []
    for batch in (order[:32], order[32:64], order[64:]):
        inputs = data.preprocess(still.images[batch], PLAIN)
        logits, state = model.apply(model.params, state, inputs, train=True)
        loss = train.cross_entropy(logits, still.labels[batch])
        losses += [loss.item()] * len(batch)
    chex.assert_trees_all_close(result.model.state, state, rtol=1e-5, atol=1e-6)
    assert result.history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)

    # By hand, for the first layer: each step moves the mean by a tenth.
    mean = np.zeros(model.params["fc1"]["kernel"].shape[1])
    for batch in (order[:32], order[32:64], order[64:]):
        inputs = data.preprocess(still.images[batch], PLAIN).reshape(len(batch), -1)
        hidden = inputs @ model.params["fc1"]["kernel"]
        mean = 0.9 * mean + 0.1 * np.asarray(hidden).mean(0)
    np.testing.assert_allclose(result.model.state["bn1"]["mean"], mean, rtol=1e-4)


def test_bfloat16_keeps_weights_and_batch_norm_statistics_in_float32(image_set):
    """Statistics in bfloat16 stop changing early: they would differ by 1 to 2 %."""
    model, still = create(), image_set._replace(preprocessing=PLAIN)
    options: Any = {"epochs": 20, "learning_rate": 1e-30, "momentum": 0.0}
    exact = fit(model, still, recipe(**options)).model
    got = fit(model, still, recipe(**options, precision="bfloat16")).model
    chex.assert_trees_all_equal_dtypes(got, model)
    for name, leaf in tree.by_name(exact.state).items():
        error = np.abs(tree.by_name(got.state)[name] - leaf).max()
        assert error <= 0.008 * np.abs(leaf).max(), name


def test_without_shuffling_step_s_takes_the_rows_from_s_times_the_batch_size_on():
    """SGD on (w x - y)^2 by hand: 6 examples in batches of 2, for 5 steps."""
    x = np.array([1.0, 2.0, -1.0, 0.5, 3.0, -2.0], np.float32)
    y = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], np.float32)
    squared = lambda outputs, targets: (outputs[:, 0] - targets) ** 2
    objective = train.Objective(squared, squared, "error", higher_is_better=False)
    examples = train.Examples(jnp.asarray(x[:, None]), jnp.asarray(y), objective)
    apply = lambda params, state, inputs, train=False: (inputs @ params["w"], state)
    start = models.Model({"w": jnp.ones((1, 1))}, {}, apply)
    training = recipe(
        epochs=5 / 3, batch_size=2, learning_rate=0.01, momentum=0.0, shuffle=False
    )
    weight = 1.0
    for step in range(5):
        rows = slice(2 * step % 6, 2 * step % 6 + 2)
        gradient = np.mean(2 * (weight * x[rows] - y[rows]) * x[rows])
        weight -= 0.01 * gradient
    for seed in (0, 1):
        mask, key = {"w": jnp.ones((1, 1), bool)}, jax.random.key(seed)
        result = train.fit(start, mask, examples, training, key)
        assert result.model.params["w"].item() == pytest.approx(weight, rel=1e-5)


def test_a_batch_larger_than_the_set_is_a_full_batch(image_set):
    plain = create(batch_norm=False)
    still = image_set._replace(preprocessing=PLAIN)
    full, larger = (
        fit(plain, still, recipe(epochs=1, momentum=0.0, batch_size=size))
        for size in (70, 96)
    )
    chex.assert_trees_all_close(full.model, larger.model, rtol=1e-5, atol=1e-6)


def test_evaluation_does_not_depend_on_the_batch_size(model, image_set):
    one, other = (
        train.evaluate(model, image_set, batch_size=size) for size in (70, 32)
    )
    assert one.metric == other.metric
    assert one.loss == pytest.approx(other.loss, rel=1e-5)


def test_a_loss_that_is_not_finite_ends_training(model, image_set):
    result = fit(model, image_set, recipe(learning_rate=1e30, epochs=5))
    assert result.diverged
    assert len(result.history) < 5


def test_five_levels_compile_one_step_per_batch_size(model, image_set, caplog):
    """70 examples in batches of 32 give two sizes: 32 and 6."""
    training = recipe(epochs=1, momentum=0.8)
    scored = jax.tree.map(jnp.abs, model.params)
    with jax.log_compiles():
        for density in (0.9, 0.7, 0.5, 0.3, 0.1):
            fit(model, image_set, training, masks.select(scored, density))
    assert sum("Compiling jit(_step)" in line for line in caplog.messages) == 2


@pytest.mark.parametrize(
    ("network", "training", "rewind_iteration"),
    [
        ("mlp", recipe(epochs=2, sparse=train.SparseTraining("gradual", 0.3)), None),
        ("conv2", recipe(epochs=1, schedule="cosine", weight_decay=0.1), 1),
    ],
    ids=["sparse", "convolutions"],
)
def test_a_scan_trains_as_a_loop_of_steps_does(
    network, training, rewind_iteration, image_set
):
    """An epoch has two full batches and a short one; a rewind point splits the scan."""
    model = models.create(
        network, key=jax.random.key(0), input_shape=(4, 4, 1), num_classes=3, width=0.05
    )
    scanned, looped = (
        fit(
            model,
            image_set,
            dataclasses.replace(training, loop=loop),
            rewind_iteration=rewind_iteration,
        )
        for loop in ("scan", "python")
    )
    chex.assert_trees_all_equal(scanned.mask, looped.mask)
    chex.assert_trees_all_close(
        (scanned.model, scanned.rewind_point, scanned.history),
        (looped.model, looped.rewind_point, looped.history),
        rtol=1e-3,
        atol=1e-5,
    )
    assert (scanned.rewind_point is None) == (rewind_iteration is None)


def test_learning_rates_by_hand():
    steps = recipe(epochs=10, learning_rate=1.0, schedule="steps", drop_epochs=(2, 4))
    rate = train.learning_rate(steps, 10)
    values = [rate(jnp.int32(i)).item() for i in (0, 19, 20, 39, 40)]
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cosine = recipe(epochs=10, learning_rate=1.0, schedule="cosine", warmup_epochs=2)
    rate = train.learning_rate(cosine, 10)
    values = [rate(jnp.int32(i)).item() for i in (0, 9, 20, 60, 100)]
    assert values == pytest.approx([0.05, 0.5, 1, 0.5, 0], abs=1e-6)


def test_a_cosine_after_a_warm_up_is_one_cycle():
    """It falls as that of optax, which ends at peak / 250,000. Its rise is linear."""
    training = recipe(epochs=10, learning_rate=0.4, schedule="cosine", warmup_epochs=3)
    ours = jax.vmap(train.learning_rate(training, 10))(jnp.arange(100))
    cycle = optax.cosine_onecycle_schedule(100, 0.4, pct_start=0.3)
    rise = optax.linear_schedule(0.4 / 30, 0.4, 29)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies by bools
        fall = jax.vmap(cycle)(jnp.arange(30, 100))
        np.testing.assert_allclose(ours[:30], rise(jnp.arange(30)), rtol=1e-5)
    np.testing.assert_allclose(ours[30:], fall, atol=1e-5)


@pytest.mark.usefixtures("without_type_checks")
def test_invalid_recipes_are_refused(model, image_set):
    with pytest.raises(ValueError, match="optimizer is 'lion'. Pass one of adam, sgd"):
        recipe(optimizer="lion")
    with pytest.raises(
        ValueError, match="'while' is unknown. Pass one of auto, python"
    ):
        recipe(loop="while")
    with pytest.raises(
        ValueError, match="learning_rate -1 must be positive and finite"
    ):
        recipe(learning_rate=-1)
    with pytest.raises(ValueError, match="epochs nan, batch_size 32"):
        recipe(epochs=float("nan"))
    with pytest.raises(ValueError, match="momentum -1, weight_decay 0.0"):
        recipe(momentum=-1)
    with pytest.raises(ValueError, match="start is iteration 99, but training has 9"):
        fit(model, image_set, recipe(), start=99)


@pytest.mark.usefixtures("without_type_checks")
def test_image_sets_of_another_kind_are_refused(model, image_set):
    pair = (image_set.images, image_set.labels)
    floats = image_set._replace(images=image_set.images.astype(jnp.float32) / 255)
    wrong: Any
    for wrong, sentence in (
        (pair, "examples is a tuple. Pass train.ImageSet"),
        (floats, r"images are float32, where uint8.*0..1, pass .255 \* images.\.round"),
    ):
        with pytest.raises(TypeError, match=sentence):
            fit(model, wrong, recipe())
        with pytest.raises(TypeError, match=sentence):
            train.evaluate(model, wrong)


@pytest.mark.usefixtures("without_type_checks")
def test_networks_and_numbers_of_another_kind_are_refused(model, image_set):
    result: Any = fit(model, image_set, recipe())
    apply = lambda params, state, inputs, **mode: model.apply(params, state, inputs)[0]
    batch = jnp.ones((4, *image_set.images.shape[1:])), jnp.arange(4)
    outputs_only = dataclasses.replace(model, apply=apply)
    for call in (
        lambda wrong: fit(wrong, image_set, recipe(), mask=result.mask),
        lambda wrong: train.evaluate(wrong, image_set),
        lambda wrong: train.recalibrate(wrong, image_set),
    ):
        with pytest.raises(TypeError, match=r"model is a FitResult.*result\.model"):
            call(result)
    for call in (
        lambda wrong: fit(wrong, image_set, recipe()),
        lambda wrong: train.evaluate(wrong, image_set),
        lambda wrong: train.loss_function(wrong)(wrong.params, batch),
    ):
        with pytest.raises(TypeError, match=r"returned float32\[.*\(outputs, state\)"):
            call(outputs_only)
    for batch_size in (0, 2.5, "9"):
        with pytest.raises(ValueError, match=f"per batch; got {batch_size!r}. Pass an"):
            train.evaluate(model, image_set, batch_size=batch_size)
        with pytest.raises(ValueError, match=f"per batch; got {batch_size!r}. Pass an"):
            train.recalibrate(model, image_set, batch_size=batch_size)
    with pytest.raises(TypeError, match="training is a dict. Pass a train.Training"):
        fit(model, image_set, {})


def test_masks_and_precisions_that_do_not_fit_are_refused(model, image_set):
    with pytest.raises(ValueError, match="mask has no leaf at .*which params has"):
        fit(model, image_set, recipe(), mask={"fc1": {}})
    with pytest.raises(ValueError, match='precision="float64" needs 64-bit mode'):
        fit(model, image_set, recipe(precision="float64"))


def test_a_line_of_one_point_is_refused(model, image_set):
    with pytest.raises(ValueError, match="points is the number of points.*got 1"):
        train.errors_between(model, model, image_set, points=1)


def test_errors_between_two_networks_interpolate_weights_and_statistics(
    model, image_set
):
    result = fit(model, image_set, recipe())
    ends = [
        100 - train.evaluate(end, image_set).metric for end in (model, result.model)
    ]
    errors = train.errors_between(model, result.model, image_set, points=3)
    assert errors[::2] == pytest.approx(ends)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, model, result.model)
    assert errors[1] == pytest.approx(100 - train.evaluate(middle, image_set).metric)
    assert train.error_barrier(errors) == max(errors) - (errors[0] + errors[2]) / 2


def test_recalibration_gives_the_statistics_of_the_whole_set(image_set, model):
    """Of batches of one size, the mean of the means is the mean of all."""
    kept = masks.select(scores.magnitude(model.params), 0.3)
    pruned = dataclasses.replace(model, params=masks.apply(model.params, kept))
    plain = image_set._replace(preprocessing=PLAIN)
    got = train.recalibrate(pruned, plain, batch_size=35)
    weights, state = tree.by_name(pruned.params), tree.by_name(got.state)
    inputs = (image_set.images.astype(jnp.float32) / 255 - 0.5) / 0.25
    inputs = inputs.reshape(70, 16)
    hidden = inputs @ weights["fc1/kernel"] + weights["fc1/bias"].reshape(1, -1)
    np.testing.assert_allclose(state["bn1/mean"], hidden.mean(0), atol=1e-5)
    both = (hidden[:35].var(0) + hidden[35:].var(0)) / 2
    np.testing.assert_allclose(state["bn1/var"], both, rtol=1e-4)
    # The statistics from before have no influence.
    again = train.recalibrate(got, plain, batch_size=35)
    chex.assert_trees_all_close(again.state, got.state, rtol=1e-4, atol=1e-5)
    large = image_set._replace(preprocessing=data.Preprocessing((0.5,), (1e-5,)))
    scale = 0.25 / 1e-5
    wide = tree.by_name(train.recalibrate(pruned, large, batch_size=35).state)
    no_bias = jnp.square(scale) * both
    np.testing.assert_allclose(wide["bn1/var"], no_bias, rtol=1e-3)
    with pytest.raises(ValueError, match="batch_size is the number of examples per b"):
        train.recalibrate(model, plain, batch_size=0)


def test_state_that_is_no_average_stays():
    def apply(params, state, x, *, train=False):
        norm = jnp.sqrt(jnp.square(state["u"]).sum() + 1e-12)
        mean = 0.99 * state["mean"] + 0.01 * x.mean(0)
        return x, {"u": state["u"] / norm, "count": state["count"] + 1, "mean": mean}

    state = {"u": jnp.full(2, 3.0), "count": jnp.int32(4), "mean": jnp.zeros(1)}
    model = models.Model({}, state, apply)
    examples = train.Examples(jnp.arange(4.0).reshape(4, 1), jnp.zeros(4))
    got = train.recalibrate(model, examples, batch_size=2).state
    assert got["u"].tolist() == [3.0, 3.0]
    assert got["count"] == 4
    np.testing.assert_allclose(got["mean"], [1.5], rtol=1e-5)


def test_sparse_training_starts_at_the_beginning_and_changes_at_most_so_often(
    image_set, model
):
    sparse = train.SparseTraining("gradual", 0.3, changes=2)
    result = fit_plain(model, image_set, recipe(epochs=1, sparse=sparse))
    assert masks.density(result.mask) == pytest.approx(0.3, abs=0.01)
    chex.assert_trees_all_equal(
        result.model.params, masks.apply(result.model.params, result.mask)
    )
    with pytest.raises(ValueError, match="start is iteration 1, but sparse training"):
        train.fit(
            model, masks.ones_like(model.params), image_set, recipe(sparse=sparse),
            jax.random.key(0), start=1,
        )  # fmt: skip
    with pytest.raises(ValueError, match="a whole number of changes; got.*changes=0"):
        train.SparseTraining("gradual", 0.3, changes=0)


def fit_plain(model, image_set, training):
    ones = masks.ones_like(model.params)
    return train.fit(model, ones, image_set, training, jax.random.key(0))


def test_a_first_result_compiles_few_programs():
    """Every eager operation of a new shape is a program, which takes 0.05 s and more."""
    programs: list[str] = []

    def on_event(event: str, duration: float, **_: Any) -> None:
        del duration
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(on_event)
    try:
        images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), np.uint8)
        labels = jnp.arange(10, dtype=jnp.int32)
        image_set = train.ImageSet(jnp.asarray(images), labels, PLAIN)
        model = models.create(
            "conv2", key=jax.random.key(0), input_shape=(8, 8, 1), width=0.03
        )
        mask = masks.select(scores.magnitude(model.params), 0.5)
        training = recipe(epochs=2, batch_size=4)
        result = train.fit(model, mask, image_set, training, jax.random.key(1))
        train.evaluate(result.model, image_set)
    finally:
        jax.monitoring.unregister_event_duration_listener(on_event)
    assert 8 <= len(programs) <= 20, programs
