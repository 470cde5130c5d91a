"""The library on networks that users write, in Flax NNX, Linen, Equinox and plain JAX."""

import copy
import functools
import pickle
from typing import NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jaxprune import (
    checkpoint,
    imp,
    masks,
    models,
    prune,
    scores,
    sparse_training,
    train,
    tree,
)
from tests import user_networks as nets

IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
LABELS = jnp.arange(6) % 3


def prunable_names(params, **patterns):
    chosen = tree.prunable(params, **patterns)
    return {name for name, yes in tree.by_name(chosen).items() if yes}


def arrays_of(module):
    return eqx.partition(module, eqx.is_inexact_array)


def test_kernels_of_a_transformer_are_prunable_and_nothing_else():
    params = models.functional(nets.VisionTransformer(nnx.Rngs(0))).params
    attention = {
        f"attention/{part}/kernel" for part in ("query", "key", "value", "out")
    }
    assert prunable_names(params) == attention | {
        "patch_embed/kernel", "mlp/0/kernel", "mlp/1/kernel", "head/kernel",
    }  # fmt: skip


def test_stacked_biases_and_norms_of_scanned_layers_are_not_prunable():
    params = nets.ScannedMLP().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    assert params["layers"]["norm"]["scale"].shape == (3, 8)
    assert prunable_names(params) == {
        "first/kernel", "layers/dense/kernel", "last/kernel",
    }  # fmt: skip


def test_equinox_weights_are_prunable_and_biases_and_norms_are_not():
    params, _ = arrays_of(nets.EquinoxNet(jax.random.key(0)))
    assert params.conv.bias.shape == (4, 1, 1)
    assert params.norm.weight.shape == (4, 8, 8)
    assert prunable_names(params) == {"conv/weight", "head/weight"}
    embedding, _ = arrays_of(eqx.nn.Embedding(5, 3, key=jax.random.key(0)))
    assert prunable_names({"embedding": embedding}) == set()


@pytest.mark.parametrize(
    ("name", "is_prunable"),
    [
        ("wq", True), ("bq", False), ("w1", True), ("b1", False), ("out", True),
        ("lora_b", True), ("pos_emb", False), ("posEmbedding", False), ("wte", False),
        ("cls", False), ("register_tokens", False), ("token_mixer/weight", True),
        ("LayerNorm_0/scale", False), ("ln_1/weight", False), ("bn1/weight", False),
        ("patch_embedding/weight", True), ("tok_embed/weight", False), ("bias_n", False),
        ("embed_out/kernel", True), ("normalizer/weight", True), ("running_mean", False),
        ("rmsnorm/weight", False), ("layers/3/weight", True), ("b", True),
    ],
)  # fmt: skip
def test_names_decide_what_is_prunable_by_default(name, is_prunable):
    leaf = jnp.ones((2, 2))
    params = {"wq": leaf, "w1": leaf}
    node = params
    *parents, last = name.split("/")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = leaf
    assert (name in prunable_names(params)) == is_prunable


def test_patterns_choose_other_leaves():
    params = {"embed": {"embedding": jnp.ones((3, 2))}, "head": {"kernel": jnp.ones((2, 2)),
              "bias": jnp.ones(2)}, "count": jnp.int32(0)}  # fmt: skip
    assert prunable_names(params, exclude="head/*") == set()
    assert prunable_names(params, include=["*/kernel", "embed/*"]) == {
        "head/kernel", "embed/embedding",
    }  # fmt: skip
    assert prunable_names(params, include="*") == {
        "head/kernel", "head/bias", "embed/embedding",
    }  # fmt: skip
    with pytest.raises(
        ValueError, match="include pattern 'heads/.' matches no leaf.*co"
    ):
        tree.prunable(params, include="heads/*")
    mask = masks.select(
        scores.magnitude(params), 0.5, prunable=tree.prunable(params, include="*")
    )
    assert masks.count(mask, tree.prunable(params, include="*")) == 6


def test_a_dict_key_named_value_is_part_of_the_name():
    assert tree.names({"attention": {"query": 1, "value": 2}}) == [
        "attention/query", "attention/value",
    ]  # fmt: skip
    assert tree.names(nnx.state(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))) == [
        "bias",
        "kernel",
    ]


def test_functional_runs_modules_in_both_modes():
    for module in (nets.ConvNet, nets.VisionTransformer, nets.ConvNetWithArgument):
        model = models.functional(module(nnx.Rngs(0)))
        outputs, state = model.apply(model.params, model.state, IMAGES)
        again, _ = model.apply(model.params, model.state, IMAGES)
        chex.assert_trees_all_equal(outputs, again)  # evaluation draws nothing
        chex.assert_trees_all_equal(key_data(state), key_data(model.state))
        trained, after = jax.jit(functools.partial(model.apply, train=True))(
            model.params, model.state, IMAGES
        )
        assert not np.allclose(trained, outputs)
        assert jax.tree.structure(after) == jax.tree.structure(model.state)
        assert not trees_equal(key_data(after), key_data(model.state))


def key_data(arrays):
    return jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        ),
        arrays,
    )


def trees_equal(one, other):
    return all(
        jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))
    )


def test_evaluation_mode_equals_the_module_itself():
    module = nets.ConvNet(nnx.Rngs(0))
    model = models.functional(module)
    module.eval()
    chex.assert_trees_all_equal(
        model.apply(model.params, model.state, IMAGES)[0], module(jnp.asarray(IMAGES))
    )


def test_equal_networks_share_compiled_programs():
    traces = []

    @jax.jit
    def forward(model, x):
        traces.append(x.shape)
        return model.apply(model.params, model.state, x)[0]

    for seed in range(3):
        model = models.functional(nets.ConvNet(nnx.Rngs(seed)))
        forward(pickle.loads(pickle.dumps(model)), IMAGES)
        forward(copy.deepcopy(model), IMAGES)
    assert len(traces) == 1
    assert hash(model.apply) == hash(models.functional(nets.ConvNet(nnx.Rngs(9))).apply)
    assert model.apply != models.functional(nets.ConvNetWithArgument(nnx.Rngs(0))).apply


def test_flow_replaces_norm_layers_whatever_their_epsilon_or_parameters():
    model = models.functional(nets.ConvNet(nnx.Rngs(0)))
    flow = models.flow(model)
    kernel, bias = model.params["conv"]["kernel"], model.params["conv"]["bias"]
    hidden = jax.nn.relu(
        jax.lax.conv_general_dilated(
            IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        + bias.reshape(1, 1, 1, -1)
    )
    head = model.params["head"]
    expected = hidden.mean((1, 2)) @ head["kernel"] + head["bias"].reshape(1, -1)
    chex.assert_trees_all_close(flow(model.params, IMAGES), expected, rtol=1e-5)


def test_layer_norm_and_rms_norm_do_not_stop_the_flow():
    model = models.functional(nets.VisionTransformer(nnx.Rngs(0)))
    synflow = jax.jit(functools.partial(scores.synflow, models.flow(model)))
    scored = synflow(model.params, jnp.ones((1, 8, 8, 1)))
    named = tree.by_name(scored)
    total = named["head/kernel"].sum()
    assert total > 1
    assert float(named["norm1/scale"].sum() + named["norm2/scale"].sum()) == 0


def test_health_takes_tokens():
    model = models.functional(nets.LanguageModel(nnx.Rngs(0)))
    mask = masks.ones_like(model.params)
    mask["hidden"]["kernel"] = jnp.zeros((8, 8), bool).at[:, 0].set(True)
    fn = lambda params, tokens: model.apply(params, model.state, tokens)[0]
    chosen = tree.prunable(model.params)
    health = masks.health(
        fn, model.params, mask, jnp.array([[1, 2, 3]]), prunable=chosen
    )
    assert health.densities == {"hidden/kernel": 1 / 8}
    assert health.effective == {"hidden/kernel": 1 / 8}


TREE = {
    "weights": {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]]), "none": None},
    "rng": {"key": jax.random.key(0), "count": jnp.uint32(3)},
}


def loss_with_key(params, batch):
    noise = 0 * jax.random.normal(params["rng"]["key"], (2,))
    return ((batch @ params["weights"]["kernel"] + noise.reshape(1, 2)) ** 2).mean()


@pytest.mark.parametrize("name", scores.SCORERS)
def test_keys_counters_and_none_pass_through_scores_and_masks(name):
    bound = {
        "random": functools.partial(scores.random, jax.random.key(1)),
        "magnitude": scores.magnitude,
        "snip": functools.partial(scores.snip, loss_with_key, batches=[jnp.eye(2)]),
        "grasp": functools.partial(scores.grasp, loss_with_key, batches=[jnp.eye(2)]),
        "lamp": scores.lamp,
        "prospr": functools.partial(scores.prospr, loss_with_key, batches=[jnp.eye(2)]),
        "wanda": functools.partial(
            scores.wanda,
            lambda params, x: x @ params["weights"]["kernel"],
            batches=[jnp.eye(2)],
        ),
        "ria": functools.partial(
            scores.ria,
            lambda params, x: x @ params["weights"]["kernel"],
            batches=[jnp.eye(2)],
        ),
        "ntk_sap": functools.partial(
            scores.ntk_sap,
            jax.random.key(2),
            lambda params, x: x @ params["weights"]["kernel"],
            inputs=jnp.eye(2),
        ),
        "fisher": functools.partial(scores.fisher, loss_with_key, batches=[jnp.eye(2)]),
        "synflow": functools.partial(
            scores.synflow,
            lambda params, x: x @ params["weights"]["kernel"],
            inputs=jnp.ones((1, 2)),
        ),
    }[name]
    with jax.debug_key_reuse(False):  # the loss draws the same numbers at each call
        mask, _ = prune.prune(bound, TREE, 0.5)
    assert masks.count(mask) == 2
    assert bool(mask["rng"]["key"])
    masked = masks.apply(TREE, mask)
    chex.assert_trees_all_equal(key_data(masked["rng"]), key_data(TREE["rng"]))
    assert masked["weights"]["none"] is None


class Pair(NamedTuple):
    first: object
    second: object


def test_checkpoints_return_the_containers_and_dtypes_they_were_given(tmp_path):
    module, static = arrays_of(nets.EquinoxNet(jax.random.key(0)))
    _, state = nnx.split(nets.ConvNet(nnx.Rngs(0)))
    saved = Pair(
        {"equinox": module, "nnx": state, "model": models.functional(nets.ConvNet(nnx.Rngs(1)))},
        [jnp.ones(2, jnp.bfloat16), jax.random.key(5), None, jnp.zeros((0, 3)), jnp.eye(2, dtype=bool)]
        + [jnp.full(1, float(i)) for i in range(9)],
    )  # fmt: skip
    checkpoint.save(tmp_path / "tree", saved)
    loaded = checkpoint.load(tmp_path / "tree", like=saved)
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    chex.assert_trees_all_equal_shapes_and_dtypes(key_data(loaded), key_data(saved))
    chex.assert_trees_all_equal(key_data(loaded), key_data(saved))
    x = jnp.ones((1, 8, 8))
    chex.assert_trees_all_equal(
        eqx.combine(loaded.first["equinox"], static)(x), eqx.combine(module, static)(x)
    )
    with pytest.raises(
        ValueError, match="tree has no leaf at 'third', which `like` has"
    ):
        checkpoint.load(tmp_path / "tree", like={"third": jnp.ones(1)})
    checkpoint.save(tmp_path / "w", {"w": jnp.ones((2, 2))})
    with pytest.raises(
        ValueError, match=r"float32\[2, 2\] at 'w', where `like` has floa"
    ):
        checkpoint.load(tmp_path / "w", like={"w": jnp.ones(3)})


def test_a_mask_alone_is_a_plain_npz_file(tmp_path):
    _, params, _ = nnx.split(nets.ConvNet(nnx.Rngs(0)), nnx.Param, ...)
    mask = masks.select(scores.magnitude(params), 0.5)
    masks.save(tmp_path / "mask.npz", mask)
    with np.load(tmp_path / "mask.npz") as file:
        np.testing.assert_array_equal(
            file["conv/kernel"], mask["conv"]["kernel"].get_value()
        )
    loaded = masks.load(tmp_path / "mask.npz", like=params)
    chex.assert_trees_all_equal(loaded, mask)
    assert set(masks.load(tmp_path / "mask.npz")) == set(tree.names(params))
    other, _ = arrays_of(nets.EquinoxNet(jax.random.key(0)))
    with pytest.raises(
        ValueError, match="mask.npz does not hold a mask of this network"
    ):
        masks.load(tmp_path / "mask.npz", like=other)


def test_a_mask_in_other_containers_is_accepted():
    _, params, _ = nnx.split(nets.ConvNet(nnx.Rngs(0)), nnx.Param, ...)
    mask = nnx.to_pure_dict(masks.select(scores.magnitude(params), 0.5))
    masked = masks.apply(params, mask)
    assert jax.tree.structure(masked) == jax.tree.structure(params)


def test_statistics_and_callables_are_refused_by_scores():
    module = nets.ConvNet(nnx.Rngs(0))
    graphdef, state = nnx.split(module)
    loss = lambda params, batch: nnx.merge(graphdef, params)(batch).sum()
    with pytest.raises(
        ValueError, match="BatchNorm statistic at 'norm/mean'.*nnx.Param"
    ):
        scores.snip(loss, state, [IMAGES])
    with pytest.raises(ValueError, match="'batch_stats', which are not trained"):
        scores.snip(
            loss, {"params": {}, "batch_stats": {"mean": jnp.ones(2)}}, [IMAGES]
        )
    with pytest.raises(TypeError, match=r"at 'activation'.*eqx.partition\(model"):
        scores.magnitude(nets.EquinoxNet(jax.random.key(0)))
    with pytest.raises(TypeError, match="needs a Flax NNX module; got a EquinoxNet"):
        models.functional(nets.EquinoxNet(jax.random.key(0)))


def test_one_batch_in_place_of_a_list_is_refused():
    loss = lambda params, batch: params["w"].sum()
    with pytest.raises(ValueError, match=r"a tuple of arrays. Pass a list.*\[\(inputs"):
        scores.snip(loss, {"w": jnp.ones((2, 2))}, (jnp.ones(2), jnp.ones(2)))
    with pytest.raises(ValueError, match="batches is a dict"):
        scores.grasp(loss, {"w": jnp.ones((2, 2))}, {"x": jnp.ones(2)})


def test_select_takes_a_traced_density():
    scored = scores.random(jax.random.key(0), {"w": jnp.ones((40, 25))})
    kept = jax.jit(lambda d: masks.select(scored, d)["w"].sum())
    assert [int(kept(d)) for d in (0.1, 0.5, 1.0)] == [100, 500, 1000]
    _, counts = jax.lax.scan(
        lambda carry, d: (carry, masks.select(scored, d)["w"].sum()),
        None,
        jnp.array([0.25, 0.75, 1e-9]),
    )
    assert counts.tolist() == [250, 750, 1]  # at least one is kept


def residual(params, x):
    for name in sorted(params):
        x = x + x @ params[name]
    return x


def chain(params, x):
    for name in sorted(params):
        x = x @ params[name]
    return x


@pytest.mark.parametrize("network", [residual, chain])
@pytest.mark.parametrize("jit", [True, False])
def test_rescaled_synflow_selects_what_float64_selects(network, jit):
    keys = jax.random.split(jax.random.key(0), 30)
    params = {
        f"w{i:02}": jax.random.normal(key, (9, 9)) * 10.0 ** (i % 4)
        for i, key in enumerate(keys)
    }
    score = functools.partial(scores.synflow, network, rescale=True)
    ours = (jax.jit(score) if jit else score)(params, jnp.ones((1, 9)))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda w: w.astype(jnp.float64), params)
        exact = scores.synflow(network, wide, jnp.ones((1, 9), jnp.float64))
        expected = masks.select(exact, 0.3)
    kept = masks.select(ours, 0.3)
    differing = sum(int((a != b).sum()) for a, b in zip(
        jax.tree.leaves(kept), jax.tree.leaves(expected), strict=True))  # fmt: skip
    assert differing <= 2  # neighbors of the threshold, by rounding


def test_an_overflow_under_jit_is_refused_by_select_with_both_remedies():
    params = {f"w{i}": jnp.full((9, 9), 1e9) for i in range(6)}
    scored = jax.jit(functools.partial(scores.synflow, chain))(params, jnp.ones((1, 9)))
    with pytest.raises(
        ValueError, match="rescale=True, which rescales the kernels or.*64"
    ):
        masks.select(scored, 0.5)


def test_grasp_in_training_mode_sees_the_statistics_of_the_batch():
    model = models.functional(nets.ConvNetWithArgument(nnx.Rngs(0)))
    batch = (jnp.asarray(IMAGES), LABELS)

    def reference(
        params, batch
    ):  # BatchNorm by hand, with the mean and variance of a batch
        x = jax.lax.conv_general_dilated(
            batch[0], params["conv"]["kernel"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ) + params["conv"]["bias"].reshape(1, 1, 1, -1)  # fmt: skip
        mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
        x = jax.nn.relu((x - mean) / jnp.sqrt(var + 1e-5)).mean((1, 2))
        logits = x @ params["head"]["kernel"] + params["head"]["bias"].reshape(1, -1)
        logs = jax.nn.log_softmax(logits / 200.0)
        return -jnp.take_along_axis(logs, batch[1].reshape(-1, 1), axis=1).mean()

    def grasp(loss_fn):
        score = jax.jit(functools.partial(scores.grasp, loss_fn))
        return score(model.params, [batch])

    ours = grasp(train.loss_function(model, train=True, temperature=200.0))
    expected = grasp(reference)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    chex.assert_trees_all_close(ours, expected, atol=1e-4 * largest)
    evaluated = grasp(train.loss_function(model, temperature=200.0))
    one, other = evaluated["conv"]["kernel"], ours["conv"]["kernel"]
    assert not np.allclose(one, other, rtol=0.1, atol=1e-3 * largest)


def test_imp_rewinds_a_users_model_with_its_statistics_and_keys(tmp_path):
    model = models.functional(nets.ConvNet(nnx.Rngs(0)))

    def train_fn(model, mask, key, level):
        del key, level
        params = masks.apply(jax.tree.map(lambda w: 1.1 * w, model.params), mask.params)
        _, state = model.apply(params, model.state, IMAGES, train=True)
        trained = models.Model(params, state, model.apply)
        _, state = model.apply(params, state, IMAGES, train=True)
        return imp.TrainResult(
            models.Model(params, state, model.apply), rewind_point=trained
        )

    step = functools.partial(imp.step, train_fn=train_fn, rewind="early")
    start = imp.init(model, jax.random.key(0))
    point = train_fn(model, start.mask, None, 0).rewind_point
    for _ in range(2):  # runs, then reads
        levels = list(checkpoint.levels(tmp_path, start, step, [0.5, 0.25]))
        for state, info in levels:
            chex.assert_trees_all_equal(
                key_data(state.params.state), key_data(point.state)
            )
            assert not trees_equal(info.params.state["norm"], point.state["norm"])
        assert [info.trained_density for _, info in levels] == [1.0, 0.5]
        assert masks.count(levels[-1][0].mask) == masks.num_kept(0.25, 54 + 18)


def test_a_rewind_point_of_another_tree_is_refused():
    state = imp.init({"w": jnp.ones((2, 2))}, jax.random.key(0))
    wrong = lambda params, mask, key, level: imp.TrainResult(
        params, rewind_point=(params, {})
    )
    with pytest.raises(
        ValueError, match="TrainResult.rewind_point has no leaf at 'w'.*Return t"
    ):
        imp.step(state, wrong, 0.5)
    state = imp.init({"w": jnp.ones((2, 2))}, jax.random.key(0))
    with pytest.raises(
        TypeError, match=r"train_fn returned a dict. Return imp.TrainResult\("
    ):
        imp.step(state, lambda params, *_: params, 0.5, rewind="init")


def test_scores_without_information_are_refused():
    params = {"w": jnp.ones((2, 2))}
    constant = lambda params, batch: jnp.float32(1)
    with pytest.raises(
        ValueError, match="all scores are 0: the result of the function does not depend"
    ):
        scores.snip(constant, params, [None])
    with pytest.raises(TypeError, match="scores are bool at 'w'.*not a mask"):
        masks.select(masks.ones_like(params), 0.5)
    with pytest.raises(TypeError, match=r"returned a tuple of 2.*batch\)\[0\]"):
        scores.snip(lambda params, batch: (params["w"].sum(), {}), params, [None])
    with pytest.raises(ValueError, match="result of score_fn has no leaf at 'w'"):
        prune.prune(lambda params, *, mask: {"v": params["w"]}, params, 0.5)


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
def test_float32_densities_keep_the_count_of_their_decimals(kind):
    scored = {"w": jnp.arange(1000.0).reshape(10, 100)}
    assert masks.count(masks.select(scored, kind(0.1))) == 100
    assert masks.count(masks.select(scored, kind(0.3))) == masks.num_kept(0.3, 1000)


def test_64_bit_arrays_and_numpy_scalars_come_back_bit_for_bit(tmp_path):
    saved = {
        "count": np.array([2**40 + 1]),
        "third": np.full(2, 1 / 3),
        "x": np.float32(2),
    }
    checkpoint.save(tmp_path / "wide", saved)
    loaded = checkpoint.load(tmp_path / "wide")
    np.testing.assert_array_equal(loaded["count"], saved["count"])
    np.testing.assert_array_equal(loaded["third"], saved["third"])
    with pytest.raises(
        ValueError, match="float64.2. at 'third', where `like` has float32"
    ):
        checkpoint.load(tmp_path / "wide", like={**saved, "third": jnp.zeros(2)})


def test_linen_boxes_are_no_part_of_a_name():
    dense = linen.Dense(
        3, kernel_init=linen.with_partitioning(nnx.initializers.ones, (None,))
    )
    params = dense.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert set(tree.names(params)) == {"bias", "kernel"}


def test_a_path_that_could_not_be_loaded_is_refused(tmp_path):
    """Orbax reads some characters as a pattern."""
    for name in ("run[lr=0.1]", "run*", "a?", "a\\b"):
        with pytest.raises(ValueError, match="which Orbax reads as a pattern"):
            checkpoint.save(tmp_path / name, {"w": jnp.ones(2)})
        assert not (tmp_path / name).exists()


def test_two_leaves_of_one_name_are_refused(tmp_path):
    params = {"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match="two leaves are named 'a/b'"):
        masks.save(tmp_path / "mask.npz", masks.ones_like(params))


def test_leaves_of_one_name_keep_their_own_masks():
    params = {"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}}
    mask = masks.ones_like(params)
    mask["a/b"] = jnp.zeros((2, 2), bool)
    applied = masks.apply(params, mask)
    assert (applied["a/b"].sum(), applied["a"]["b"].sum()) == (0, 4)
    held = sparse_training.hold_pruned(optax.sgd(0.1), mask).init(params).mask
    chex.assert_trees_all_equal(held, mask)
    with pytest.raises(ValueError, match="two leaves are named 'a/b'"):
        masks.apply(params, nnx.State(mask))


@pytest.mark.parametrize("flip", range(0, 300, 7))
def test_a_damaged_mask_is_refused_or_read_right(flip, tmp_path):
    mask = {"w": jnp.eye(5, dtype=bool)}
    masks.save(tmp_path / "mask.npz", mask)
    content = bytearray((tmp_path / "mask.npz").read_bytes())
    content[flip % len(content)] ^= 0x5A
    (tmp_path / "mask.npz").write_bytes(content)
    try:
        loaded = masks.load(tmp_path / "mask.npz")
    except ValueError:
        return
    np.testing.assert_array_equal(jax.tree.leaves(loaded)[0], mask["w"])


def test_files_that_are_no_masks_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*mask.npz"):
        masks.load(tmp_path / "mask.npz")
    (tmp_path / "mask.npz").write_bytes(b"not a mask")
    with pytest.raises(ValueError, match=r"mask.npz is not a mask file"):
        masks.load(tmp_path / "mask.npz")


def test_buffers_that_are_not_floating_are_left_out():
    params = {"w": jnp.arange(64.0).reshape(8, 8), "index": jnp.ones((3, 3), int)}
    mask, _ = prune.prune(scores.magnitude, params, 0.5)
    assert mask["index"].all()
    assert masks.count(mask, tree.prunable(params)) == 32
    state = imp.init(params, jax.random.key(0))
    train_fn = lambda params, mask, key, level: imp.TrainResult(params)
    state, _ = imp.step(state, train_fn, 0.5, rewind="init")
    assert masks.count(state.mask, tree.prunable(params)) == 32


def test_a_network_without_flow_is_refused_by_synflow_and_in_the_first_round():
    params = {"w": jnp.ones((2, 2))}
    constant = lambda params, x: x.sum()
    score_fn = functools.partial(scores.synflow, constant, inputs=jnp.ones((1, 2)))
    for call in (score_fn, lambda p: prune.prune(score_fn, p, 0.5)):
        with pytest.raises(ValueError, match="all scores are 0"):
            call(params)
    with pytest.raises(TypeError, match=r"loss_fn returned \(2,\), where a scalar"):
        scores.snip(lambda params, x: x @ params["w"][0], params, [jnp.ones((2, 2))])
    with pytest.raises(TypeError, match="score_fn is a str"):
        prune.prune("synflow", params, 0.5)


def test_what_a_level_cannot_reach_is_refused_before_it_trains(tmp_path):
    state = imp.init({"w": jnp.arange(16.0).reshape(4, 4)}, jax.random.key(0))

    def train_fn(*_):
        raise AssertionError("trained")

    level = functools.partial(imp.step, train_fn=train_fn, rewind="init")
    pruned = state._replace(mask={"w": jnp.zeros((4, 4), bool).at[0, 0].set(True)})
    for change, message in (
        ({"density": 95}, "density is the fraction"),
        ({"density": 0.5, "ties": "x"}, "ties 'x' is unknown"),
        ({"density": 0.5, "prunable": {"v": True}}, "prunable has no leaf at 'w'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            level(state, **change)
    with pytest.raises(ValueError, match="keeps 8 weights, but only 1 are left"):
        level(pruned, density=0.5)
    with pytest.raises(ValueError, match="density is the fraction .* got 10"):
        next(checkpoint.levels(tmp_path / "a", state, level, [0.5, 10]))
    with pytest.raises(TypeError, match="densities is 0.5. Pass a list"):
        next(checkpoint.levels(tmp_path / "a", state, level, 0.5))
    with pytest.raises(
        TypeError, match="key is 0, not a random key. Pass jax.random.key"
    ):
        imp.init(state.params, 0)


def test_levels_keep_the_count_of_float32_densities(tmp_path):
    params = {"w": jnp.arange(1000.0).reshape(10, 100)}
    state = imp.init(params, jax.random.key(0))
    train_fn = lambda params, mask, key, level: imp.TrainResult(
        params, metrics={"done": True, "scale": np.bool_(False)}
    )
    level = functools.partial(imp.step, train_fn=train_fn, rewind="init")
    run = lambda density: list(checkpoint.levels(tmp_path, state, level, [density]))
    (last, info), *_ = run(np.float32(0.1))
    assert masks.count(last.mask) == 100
    assert bool(info.metrics["done"])
    chex.assert_trees_all_equal(run(0.1)[0][0].mask, last.mask)


def test_what_cannot_be_saved_is_named(tmp_path):
    for leaf, message in (
        (optax.sgd, "function at 'a/f'"),
        (10**25, "64 bits at 'a/f'"),
    ):
        with pytest.raises(TypeError, match=message):
            checkpoint.save(tmp_path / "x", {"a": {"f": leaf}})
    with pytest.raises(ValueError, match="nothing to save"):
        checkpoint.save(tmp_path / "x", {})
    assert not list(tmp_path.iterdir())
