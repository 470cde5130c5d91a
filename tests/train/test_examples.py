"""Training on any examples: other inputs, losses, metrics and optimizers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import data, masks, train
from jaxprune.models import Model
from jaxprune.train import Examples, Objective

X = jax.random.normal(jax.random.key(0), (21, 3))
WEIGHTS = jnp.array([[1.0], [-2.0], [0.0]])


def apply(params, state, x, *, train=False):
    return jnp.dot(x, params["kernel"])[:, 0], state


def squared(outputs, targets):
    return (outputs - targets) ** 2


REGRESSION = Objective(squared, squared, "squared error", higher_is_better=False)


def model():
    return Model({"kernel": jnp.full((3, 1), 0.5)}, {}, apply)


def recipe(**changes):
    return train.Training(
        **{"epochs": 2, "batch_size": 8, "learning_rate": 0.1} | changes
    )


def fit(examples, training, mask=None):
    mask = masks.ones_like(model().params) if mask is None else mask
    return train.fit(model(), mask, examples, training, jax.random.key(1))


def regression(**changes):
    return Examples(X, jnp.dot(X, WEIGHTS)[:, 0], REGRESSION)._replace(**changes)


def test_a_regression_finds_the_weights_that_its_mask_keeps():
    mask = {"kernel": jnp.array([[True], [True], [False]])}
    result = fit(regression(), recipe(epochs=40, schedule="cosine"), mask)
    np.testing.assert_allclose(result.model.params["kernel"], WEIGHTS, atol=1e-3)
    loss, metric = train.evaluate(result.model, regression(), batch_size=4)
    assert loss == pytest.approx(metric, rel=1e-5)
    assert (
        result.history[-1]["squared error"] < 0.01 * result.history[0]["squared error"]
    )


def test_evaluation_averages_every_example_once_whatever_the_batch_size():
    expected = float(np.mean((X.sum(1) * 0.5 - X @ WEIGHTS[:, 0]) ** 2))
    for batch_size in (1, 4, 21, 64):
        result = train.evaluate(model(), regression(), batch_size=batch_size)
        assert result == pytest.approx((expected, expected), rel=1e-5)


def test_a_metric_in_percent_is_a_share():
    is_close = lambda outputs, targets: abs(outputs - targets) < 1.0
    objective = Objective(squared, is_close, "close", "%")
    share = np.mean(abs(X.sum(1) * 0.5 - X @ WEIGHTS[:, 0]) < 1.0)
    result = train.evaluate(model(), regression(objective=objective))
    assert result.metric == pytest.approx(100 * share)


@pytest.mark.parametrize(
    ("name", "factory"),
    [
        ("adam", optax.adam),
        ("sgd", lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True)),
    ],
)
def test_an_optax_factory_does_what_the_optimizer_of_that_name_does(name, factory):
    schedule = {"schedule": "steps", "drop_epochs": (1,), "weight_decay": 0.1}
    ours = fit(regression(), recipe(optimizer=name, **schedule)).model
    theirs = fit(regression(), recipe(optimizer=factory, **schedule)).model
    chex.assert_trees_all_close(ours.params, theirs.params, rtol=1e-6)


def test_inputs_are_augmented_in_training_only():
    """The augmentation turns every input to zero, so that nothing can be learned."""
    augmented = regression(augment=lambda key, inputs: jnp.zeros_like(inputs))
    result = fit(augmented, recipe(momentum=0.0))
    chex.assert_trees_all_equal(result.model.params, model().params)
    plain = train.evaluate(model(), regression())
    assert train.evaluate(model(), augmented) == plain


def test_images_are_examples_whose_preprocessing_is_known():
    images = jax.random.bits(jax.random.key(2), (9, 2, 2, 1), "uint8")
    labels = jnp.arange(9, dtype=jnp.int32) % 2
    preprocessing = data.Preprocessing((0.5,), (0.25,))
    weights = jax.random.normal(jax.random.key(3), (4, 2))
    classify = lambda p, s, x: (jnp.dot(x.reshape(len(x), 4), p["kernel"]), s)
    network = Model({"kernel": weights}, {}, classify)
    image_set = train.ImageSet(images, labels, preprocessing)
    inputs = data.preprocess(images, preprocessing)
    assert train.evaluate(network, image_set) == pytest.approx(
        train.evaluate(network, Examples(inputs, labels)), rel=1e-6
    )


@pytest.mark.usefixtures("without_type_checks")
def test_invalid_examples_objectives_and_optimizers_are_refused():
    with pytest.raises(ValueError, match="first axis counts the same examples"):
        train.evaluate(model(), regression(targets=jnp.zeros(20)))
    with pytest.raises(TypeError, match="or train.Examples\\(inputs, targets\\)"):
        train.evaluate(model(), (X, X))
    with pytest.raises(TypeError, match="Pass a train.Objective"):
        train.evaluate(model(), regression(objective=squared))
    scalar = Objective(lambda *a: squared(*a).mean(), squared)
    with pytest.raises(ValueError, match=r"loss returned float32\[\] for a batch of 8"):
        fit(regression(objective=scalar), recipe())
    wide = Objective(squared, lambda outputs, targets: jnp.ones((len(targets), 2)))
    with pytest.raises(ValueError, match=r"metric returned float32\[\d+, 2\] for a"):
        train.evaluate(model(), regression(objective=wide))
    counted = Objective(lambda *a: jnp.ones(len(a[1]), int), squared)
    with pytest.raises(ValueError, match="loss returned int32.*Return floating values"):
        fit(regression(objective=counted), recipe())
    with pytest.raises(ValueError, match="label_smoothing 0.1 needs the cross-entropy"):
        fit(regression(), recipe(label_smoothing=0.1))
    with pytest.raises(ValueError, match="augment returned float32.* same shape"):
        fit(regression(augment=lambda key, x: x[:, :2]), recipe())
    with pytest.raises(TypeError, match="factory returned a float. Return an optax"):
        fit(regression(), recipe(optimizer=lambda rate: 0.1))
    with pytest.raises(
        ValueError, match="optimizer is 'lion'. Pass one of adam, sgd, or a"
    ):
        recipe(optimizer="lion")
    with pytest.raises(
        ValueError, match="is 'a GradientTransformationExtraArgs'. Pass"
    ):
        recipe(optimizer=optax.adam(1e-3))
    with pytest.raises(ValueError, match="batch_size must be a whole number; got 8.0"):
        recipe(batch_size=8.0)
    with pytest.raises(
        TypeError, match="state of this optimizer holds its learning rat"
    ):
        fit(regression(), recipe(optimizer=optax.inject_hyperparams(optax.adam)))
    with pytest.raises(ValueError, match="metric_name 'loss' is another entry of the"):
        Objective(squared, squared, "loss")
    with pytest.raises(TypeError, match="loss is a str. Pass a function"):
        Objective("mse", squared)
