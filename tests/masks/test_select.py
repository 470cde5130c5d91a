"""Selection keeps exactly the requested number of weights, with or without ties."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, strategies as st

from jaxprune import graph, masks, sharding

SHAPES = {"a": (3, 5), "b": (2, 2, 2), "bias": (4,)}  # 23 prunable weights


def drawn(seed, distinct):
    generator = np.random.default_rng(seed)
    values = np.concatenate([[0.0, -0.0], generator.normal(size=distinct)])
    return {
        k: jnp.asarray(generator.choice(values, s), jnp.float32)
        for k, s in SHAPES.items()
    }


@pytest.fixture(scope="module", params=["one CPU", "two devices"])
def placed(request):
    """NumPy selects on one CPU, and XLA on several devices: both keep each promise."""
    if request.param == "one CPU":
        return lambda tree: tree
    mesh = sharding.make_mesh(data=2)
    return lambda tree: sharding.replicate(tree, mesh)


def flat(tree):
    return np.concatenate([np.asarray(tree[k]).ravel() for k in ("a", "b")])


@given(
    keep=st.integers(1, 23), distinct=st.integers(1, 6), seed=st.integers(0, 2**31 - 1)
)
def test_keeps_exactly_the_requested_number(placed, keep, distinct, seed):
    # Few distinct values give many ties, which a threshold gets wrong. The shapes are
    # fixed, because every new shape compiles.
    mask = masks.select(placed(drawn(seed, distinct)), keep / 23)
    assert masks.count(mask) == masks.num_kept(keep / 23, 23)
    assert bool(mask["bias"].all())


@given(
    keep=st.integers(1, 23), distinct=st.integers(1, 6), seed=st.integers(0, 2**31 - 1)
)
def test_keeps_the_same_weights_as_a_stable_sort(placed, keep, distinct, seed):
    scores = placed(drawn(seed, distinct))
    best = np.argsort(-flat(scores), kind="stable")[: masks.num_kept(keep / 23, 23)]
    expected = np.zeros(23, bool)
    expected[best] = True
    np.testing.assert_array_equal(flat(masks.select(scores, keep / 23)), expected)


@given(keep=st.integers(1, 23), seed=st.integers(0, 2**31 - 1))
def test_16_bit_scores_keep_the_same_weights_as_in_32_bits(placed, keep, seed):
    generator = np.random.default_rng(seed)
    wide = placed(
        {k: jnp.asarray(generator.normal(size=s), "f4") for k, s in SHAPES.items()}
    )
    for dtype in (jnp.float16, jnp.bfloat16):
        narrow = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), wide)
        again = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
        expected = masks.select(again, keep / 23)
        chex.assert_trees_all_equal(masks.select(narrow, keep / 23), expected)
    mixed = {**wide, "a": wide["a"].astype(jnp.bfloat16)}
    expected = masks.select({**wide, "a": mixed["a"].astype(jnp.float32)}, keep / 23)
    chex.assert_trees_all_equal(masks.select(mixed, keep / 23), expected)


@given(
    keep=st.integers(1, 22), distinct=st.integers(1, 6), seed=st.integers(0, 2**31 - 1)
)
def test_reference_ties_keep_only_strictly_greater_scores(placed, keep, distinct, seed):
    scores, density = placed(drawn(seed, distinct)), keep / 23
    k = int((1.0 - density) * 23)
    expected = np.ones(23, bool)
    if k >= 1:
        expected = flat(scores) > np.sort(flat(scores))[k - 1]
    mask = masks.select(scores, density, ties="reference")
    np.testing.assert_array_equal(flat(mask), expected)


@given(
    first=st.integers(8, 23),
    share=st.integers(1, 8),
    seed=st.integers(0, 2**31 - 1),
    ties=st.sampled_from(["exact", "reference"]),
)
def test_pruned_weights_stay_pruned(placed, first, share, seed, ties):
    before = masks.select(placed(drawn(seed, 5)), first / 23)
    after = masks.select(placed(drawn(seed + 1, 5)), share / 23, mask=before, ties=ties)
    assert not (flat(after) & ~flat(before)).any()
    if ties == "exact":
        assert masks.count(after) == masks.num_kept(share / 23, 23)


@given(keep=st.integers(1, 8), seed=st.integers(0, 2**31 - 1))
def test_layer_scope_selects_in_each_layer_separately(placed, keep, seed):
    mask = masks.select(placed(drawn(seed, 3)), keep / 8, scope="layer")
    assert int(mask["a"].sum()) == masks.num_kept(keep / 8, 15)
    assert int(mask["b"].sum()) == masks.num_kept(keep / 8, 8)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_selects_in_every_float_dtype(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        scores = {"w": jnp.asarray([[-1.0, 0.5, 3.0], [2.0, -0.0, 1e-4]], dtype)}
        assert masks.select(scores, 0.5)["w"].tolist() == [
            [False, True, True],
            [True, False, False],
        ]


def test_float64_scores_are_ranked_in_float64():
    with jax.enable_x64(True):
        scores = {"w": jnp.array([[1.0, 1.0 + 1e-15]])}
        assert masks.select(scores, 0.5)["w"].tolist() == [[False, True]]


def test_counts_of_vgg16_are_the_published_ones():
    """Kept weights at c = 0.05 .. 2 out of 14,715,584; float32 is off by one at c = .05."""
    counts = [masks.num_kept(10**-c, 14_715_584) for c in (0.05, 0.1, 0.2, 0.5, 1, 2)]
    assert counts == [13115279, 11689004, 9284906, 4653477, 1471559, 147156]


def test_a_new_density_or_mask_does_not_recompile(caplog):
    scores = {"w": jnp.arange(12.0).reshape(3, 4)}
    mask = masks.select(scores, 0.95, mask=masks.ones_like(scores))
    with jax.log_compiles():
        for density in (0.9, 0.7, 0.5, 0.3, 0.1):
            mask = masks.select(scores, density, mask=mask)
    assert not [line for line in caplog.messages if line.startswith("Compiling")]


def test_select_runs_under_jit():
    scores = {"w": jnp.arange(4.0).reshape(2, 2)}
    mask = jax.jit(lambda s: masks.select(s, 0.5))(scores)
    chex.assert_trees_all_equal(mask, masks.select(scores, 0.5))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("density", [95, 0, -0.1, float("nan"), "half"])
def test_a_density_out_of_range_is_refused(density):
    with pytest.raises(
        ValueError, match="fraction of prunable weights.*got.*pass 1 - s"
    ):
        masks.select({"w": jnp.ones((2, 2))}, density)


def test_invalid_options_and_trees_are_refused():
    scores = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    ones = masks.ones_like(scores)
    with pytest.raises(
        ValueError, match="scope 'kernel' is unknown. Pass one of global, layer, row"
    ):
        masks.select(scores, 0.5, scope="kernel")
    with pytest.raises(ValueError, match="ties 'random' is unknown"):
        masks.select(scores, 0.5, ties="random")
    with pytest.raises(ValueError, match="mask has no leaf at 'b', which scores has"):
        masks.select(scores, 0.5, mask={"a": ones["a"]})
    with pytest.raises(ValueError, match="mask has a leaf at 'c', which scores lacks"):
        masks.select(scores, 0.5, mask={**ones, "c": ones["a"]})
    with pytest.raises(TypeError, match="mask has dtype float32 at 'b'.*m != 0"):
        masks.select(scores, 0.5, mask={**ones, "b": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="not finite at 'b' .1 of 4 entries are nan"):
        masks.select({**scores, "b": jnp.array([[1.0, jnp.nan], [0, 0]])}, 0.5)
    with pytest.raises(
        ValueError, match=r'no leaf of scores is prunable.*include="\*"'
    ):
        masks.select({"bias": jnp.ones(3)}, 0.5)
    with pytest.raises(ValueError, match="density 1e-20 keeps none of 8 weights"):
        masks.select(scores, 1e-20)
    with pytest.raises(TypeError, match="mask has dtype float32 at 'a'"):
        masks.count({"a": jnp.ones((2, 2))})
    with pytest.raises(
        ValueError, match="prunable has no leaf at 'b', which params has"
    ):
        masks.select(scores, 0.5, prunable={"a": True})
    half = masks.select(scores, 0.5)
    with pytest.raises(ValueError, match="asks for 6 of 8 weights.*only 4 left"):
        masks.select(scores, 0.75, mask=half)


def test_scores_that_are_not_finite_are_refused(placed):
    for wrong in (jnp.nan, jnp.inf, -jnp.inf):
        scores = placed({"w": jnp.array([[1.0, wrong], [0.0, 0.0]])})
        with pytest.raises(ValueError, match="not finite at 'w' .1 of 4 entries"):
            masks.select(scores, 0.5)


def test_denormal_scores_are_ranked(placed):
    scores = np.array([[1e-45, 3e-45, 0, 2e-40], [1e-39, 0, -0.0, 3e-39]])
    for dtype in (jnp.float32, jnp.bfloat16):
        scored = placed({"w": jnp.asarray(scores.astype(dtype))})
        assert np.argwhere(masks.select(scored, 0.25)["w"]).tolist() == [[1, 0], [1, 3]]
        by_row = masks.select(scored, 0.25, scope=0)["w"]
        assert np.argwhere(by_row).tolist() == [[0, 3], [1, 3]]


def test_float64_is_not_rounded_without_x64():
    scores = {"w": np.array([[1.0, 1 + 1e-12], [1 + 3e-12, 1 + 2e-12]])}
    assert masks.select(scores, 0.5)["w"].tolist() == [[False, False], [True, True]]
    by_row = masks.select(scores, 0.5, scope="row")["w"]
    assert by_row.tolist() == [[False, False], [True, True]]
    with pytest.raises(ValueError, match="float64 at 'w', which JAX rounds to float32"):
        jax.jit(lambda number: masks.highest(scores, number))(2)


@given(
    keep=st.integers(1, 15),
    distinct=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
    ties=st.sampled_from(["exact", "reference"]),
    is_masked=st.booleans(),
)
def test_rows_are_selected_as_leaves_of_their_own(
    placed, keep, distinct, seed, ties, is_masked
):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=distinct)
    scores = jnp.asarray(generator.choice(values, (3, 2, 5, 4)), jnp.float32)
    mask = generator.permuted(np.arange(120).reshape(2, 4, 15) < 60, axis=2)
    mask[:] = generator.permuted(np.arange(15) < 12) if is_masked else True
    keep = min(keep, 11)  # 12 of 15 may be counted as 13
    mask = jnp.asarray(mask.reshape(2, 4, 3, 5).transpose(2, 0, 3, 1))
    options = {"ties": ties, "prunable": {"w": True}}
    selected = masks.select(
        placed({"w": scores}),
        keep / 15,
        mask=placed({"w": mask}),
        scope={"w": (1, 3)},
        **options,
    )
    for i, j in np.ndindex(2, 4):
        row = {"w": scores[:, i, :, j]}
        alone = masks.select(row, keep / 15, mask={"w": mask[:, i, :, j]}, **options)
        np.testing.assert_array_equal(selected["w"][:, i, :, j], alone["w"])


def test_leaves_without_entries_are_kept_whole(placed):
    scores = {"a": jnp.zeros((2, 2)), "b": jnp.zeros((0, 3)), "c": jnp.zeros((3, 0))}
    mask = masks.select(placed(scores), 0.5)
    assert mask["a"].tolist() == [[True, True], [False, False]]
    assert [mask[name].shape for name in "bc"] == [(0, 3), (3, 0)]


@given(seed=st.integers(0, 2**31 - 1), density=st.floats(1e-5, 1))
def test_many_scores_are_selected_as_a_sort_does(seed, density):
    # So many that a part of them is sampled first, and an order that misleads the sample.
    generator, shape = np.random.default_rng(seed), (512, 512)
    drawn = generator.choice(generator.normal(size=2**16), shape).astype(np.float32)
    scores = np.where(np.arange(2**18).reshape(shape) % 5, drawn, 100 + drawn)
    mask = generator.random(shape) < 0.7
    keep = masks.num_kept(density, 2**18)
    assume(keep <= mask.sum())
    best = np.argsort(-np.where(mask, scores, -np.inf), axis=None, kind="stable")
    expected = np.zeros(2**18, bool)
    expected[best[:keep]] = True
    selected = masks.select(
        {"w": jnp.asarray(scores)}, density, mask={"w": jnp.asarray(mask)}
    )
    np.testing.assert_array_equal(selected["w"], expected.reshape(shape))


def test_a_mask_lies_where_its_scores_lie():
    scores = jnp.arange(4.0).reshape(2, 2)
    assert not masks.select({"w": scores}, 0.5)["w"].committed
    second = jax.devices()[1]
    mask = masks.select({"w": jax.device_put(scores, second)}, 0.5)
    assert mask["w"].devices() == {second}


def test_a_number_of_weights_is_whole_and_not_negative():
    scored = {"w": jnp.arange(25.0).reshape(5, 5)}
    for wrong in (-1, 0.5, jnp.float32(2), jnp.array([1, 2])):
        with pytest.raises(ValueError, match="number is how many weights to keep"):
            masks.highest(scored, wrong)
    for wrong in ("3", [3], None):
        with pytest.raises(ValueError, match="number is how many weights to keep"):
            masks.highest(scored, wrong)
    assert masks.highest(scored, 0)["w"].sum() == 0
    assert jax.jit(lambda s: masks.highest(s, 2**33))(scored)["w"].all()
    assert masks.highest(scored, 99)["w"].all()


def test_scopes_that_are_no_axes_get_a_sentence():
    scored = {"w": jnp.arange(25.0).reshape(5, 5)}
    kept = masks.select(scored, 0.4, scope={"w": 0})["w"]
    assert kept.sum(1).tolist() == [2] * 5
    with pytest.raises(TypeError, match="scope is a function. Pass its result"):
        masks.select(scored, 0.4, scope=graph.outputs)
    for axis in (np.int64(0), {"w": np.int64(0)}, {"w": (np.int64(0),)}):
        chex.assert_trees_all_equal(masks.select(scored, 0.4, scope=axis)["w"], kept)
    for wrong in ((1.0,), None, "0"):
        with pytest.raises(TypeError, match="where axes are whole numbers"):
            masks.select(scored, 0.4, scope={"w": wrong})


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_score_or_mask_gets_a_sentence():
    scored = {"w": jnp.ones((2, 2))}
    shapes = jax.eval_shape(lambda: scored)
    with pytest.raises(TypeError, match="scores has a ShapeDtypeStruct at 'w'"):
        masks.select(shapes, 0.5)
    only_shapes = {"w": jax.ShapeDtypeStruct((2, 2), jnp.bool_)}
    with pytest.raises(TypeError, match="mask has a ShapeDtypeStruct at 'w'"):
        masks.select(scored, 0.5, mask=only_shapes)
    with pytest.raises(TypeError, match="mask has a ShapeDtypeStruct at 'w'"):
        masks.count(only_shapes)
    with pytest.raises(TypeError, match="mask has a bool at 'w'"):
        masks.count({"w": True})
    with pytest.raises(TypeError, match="mask is traced, and its count is a Python"):
        jax.jit(masks.density)(masks.ones_like(scored))
    for dtype in ("complex64", "longdouble", "object"):
        with pytest.raises(TypeError, match="at 'w', where floats of at most 64 bits"):
            masks.select({"w": np.ones((2, 2), dtype)}, 0.5)
    with pytest.raises(TypeError, match="scores is 0.5. The scores come first"):
        masks.select(0.5, scored)
    none_in_a_row = {"w": jnp.array([[True, True], [False, False]])}
    with pytest.raises(ValueError, match="keeps no weight in a row of 'w'"):
        masks.select(scored, 0.5, mask=none_in_a_row, scope=0)
