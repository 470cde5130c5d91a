"""Studies of the user's own: any network, data, loss, score and optimizer, from a file."""

import dataclasses
import functools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxprune import masks, models, report, train
from jaxprune.study import code, config, load_cell, runner, select, stages, user
from jaxprune.study.files import RunsError
from jaxprune.study.methods import Method
from tests.study.own_tokens import STUDY

FILE = Path(__file__).with_name("own_tokens.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The study of tokens: its folder and its records by title."""
    folder = tmp_path_factory.mktemp("runs")
    study, data = user.load(FILE).build()
    return folder, {r.title: r for r in runner.run(study, folder, data)}


def test_tokens_a_loss_a_metric_and_an_optimizer_of_the_user_are_compared(ran):
    by_title = ran[1]
    assert list(by_title) == ["Dense", "GraSP", "Power"]
    for record in by_title.values():
        assert record.status == "finished"
        assert (record.metric_name, record.metric_unit) == ("surprise", "nats")
        assert not record.higher_is_better
        assert record.metric == pytest.approx(
            record.loss, rel=1e-5
        )  # the same function
        # It learns: a guess costs log(12) nats.
        assert record.metric < 0.8 * math.log(12)
        assert record.history[-1]["surprise"] < record.history[0]["surprise"]
        assert (record.latency, record.memory, record.compaction) == ({}, {}, {})
    # A half of the two kernels; the embedding is not prunable.
    assert by_title["Power"].density == 0.5
    assert [layer.name for layer in by_title["Power"].layers] == [
        "hidden/kernel",
        "out/kernel",
    ]


def test_a_score_of_the_user_selects_its_highest_weights(ran):
    """The function raises magnitudes to a power, which keeps their order."""
    folder, by_title = ran
    record = by_title["Power"]
    mask = masks.load(folder / "tokens" / record.id / "mask.npz")
    start = jax.jit(STUDY.model)(jax.random.fold_in(jax.random.key(0), 0)).params
    expected = masks.select(jax.tree.map(jnp.abs, start), 0.5)
    for layer in ("hidden", "out"):
        np.testing.assert_array_equal(
            mask[f"{layer}/kernel"], expected[layer]["kernel"]
        )


def test_the_network_of_a_users_cell_is_loaded_with_its_study(ran):
    folder, by_title = ran
    record = by_title["Power"]
    for study in (FILE, user.load(FILE)):
        loaded = load_cell(folder / "tokens", record.id, study=study)
        test = STUDY.data.examples("test")
        assert train.evaluate(loaded.model, test).metric == pytest.approx(record.metric)
    with pytest.raises(RunsError, match="has a model of a user's study, init@1-"):
        load_cell(folder / "tokens", record.id)
    other = dataclasses.replace(STUDY, version="2")
    with pytest.raises(RunsError, match="the study has init@2-.* now. Pass the study"):
        load_cell(folder / "tokens", record.id, study=other)


def ids(study, method="power"):
    """Return the ids of the stages of a method, by kind."""
    (cell,) = (c for c in study.build()[0].cells if c.method.name == method)
    return {stage.kind: stage.id for stage in stages.chain(cell)}


CHANGES = {
    "return x**SHARPNESS": "return x**SHARPNESS + 1",  # a function that the score calls
    "SHARPNESS = 12, 1.0": "SHARPNESS = 12, 3.0",  # a constant of that function
    "losses.mean(-1)": "losses.max(-1)",
    "/ 4,": "/ 5,",
    'version="1"': 'version="2"',
    "sentences(0, 64)": "sentences(2, 64)",
    "optax.lion": "optax.adabelief",
}


@pytest.mark.parametrize("old", CHANGES)
def test_a_changed_source_gives_the_stages_that_use_it_new_ids(old, tmp_path):
    text = FILE.read_text()
    assert text.count(old) == 1
    same, changed = tmp_path / "same.py", tmp_path / "changed.py"
    same.write_text(text)
    changed.write_text(text.replace(old, CHANGES[old]))
    before, after = ids(user.load(same)), ids(user.load(changed))
    assert before == ids(user.load(FILE))  # whatever the name of the file
    assert before["evaluate"] != after["evaluate"]
    # Weights and scores do not depend on the loss, the data and the optimizer.
    kept = {"losses.mean(-1)", "sentences(0, 64)", "optax.lion"}
    assert (before["select"] == after["select"]) == (old in kept)
    assert (before["initialize"] == after["initialize"]) == (
        old not in {"/ 4,", 'version="1"'}
    )


def test_a_changed_module_gives_the_functions_that_use_it_new_names(tmp_path):
    """Whether the module is named, or a function of it, or it is imported by another."""
    files = {
        "far.py": "def shift(x):\n    return x + 1\n",
        "near.py": "import far\nfrom far import shift\n",
        "uses.py": (
            "import near\nfrom near import shift\n"
            "def by_module(x): return near.far.shift(x)\n"
            "def by_name(x): return shift(x)\n"
            "def inside(x):\n    import near as other\n    return other.shift(x)\n"
        ),
    }

    def names():
        code_ = "import json, sys; sys.path.insert(0, '.'); import uses\n"
        code_ += "from jaxprune.study import code\n"
        code_ += "functions = uses.by_module, uses.by_name, uses.inside\n"
        code_ += "print(json.dumps([code.of(f, '1').name for f in functions]))"
        done = subprocess.run(
            [sys.executable, "-c", code_], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = names()
    assert names() == before
    (tmp_path / "far.py").write_text(files["far.py"].replace("+ 1", "+ 2"))
    assert not set(names()) & set(before)


def test_a_file_that_is_edited_while_it_runs_is_named_by_what_ran(tmp_path):
    text = FILE.read_text()
    edits = "\nfrom pathlib import Path\nPath(__file__).write_text('')\n"
    path = tmp_path / "edited.py"
    path.write_text(text + edits)
    assert ids(user.load(path))["select"] == ids(STUDY)["select"]


def test_two_versions_of_a_method_are_never_averaged(tmp_path):
    """The cells of a changed score stay on disk, but the tables have only the new ones."""
    study, examples = dataclasses.replace(STUDY, methods=STUDY.methods[2:]).build()
    list(runner.run(study, tmp_path, examples))
    text = FILE.read_text().replace("return x**SHARPNESS", "return -x")
    (tmp_path / "own_tokens.py").write_text(text)
    other = user.load(tmp_path / "own_tokens.py")
    study, examples = dataclasses.replace(other, methods=other.methods[2:]).build()
    assert runner.plan(study, tmp_path / "tokens").unlisted == 1
    (record,) = runner.run(study, tmp_path, examples)
    assert report.records(tmp_path / "tokens")["id"].to_list() == [record.id]


def test_a_changed_density_or_method_repeats_no_other_stage():
    more = dataclasses.replace(STUDY, methods=("snip", "dense"), densities=(0.5, 0.3))
    assert ids(more, "dense") == ids(STUDY, "dense")


def test_a_value_that_a_function_reads_is_part_of_its_name():
    def named(value):
        return code.of(lambda x: x * value, "1").name

    key = jax.random.key(1)
    for value in (3, "text", (1, 2), {"a": 1}, np.arange(3), jnp.ones(2), key, None):
        assert named(value) == named(value)
    assert named(3) != named(4)
    assert named(np.arange(3)) != named(np.arange(3.0))
    assert named(jnp.ones(2)) != named(jnp.ones(3))
    assert named(key) != named(jax.random.key(2))
    assert named(train.Training(1, 2, 0.1)) != named(train.Training(1, 2, 0.2))
    with pytest.raises(ValueError, match="uses a generator, which can't be hashed. Bu"):
        named(x for x in "ab")


def double(x):
    return 2 * x


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


def with_gradient(backward):
    function = jax.custom_vjp(double)
    function.defvjp(lambda x: (double(x), None), backward)
    return function


def test_functions_that_differ_only_in_how_they_are_wrapped_have_different_names():
    functions = [
        double,
        jax.jit(double),
        jax.grad(double),
        jax.value_and_grad(double),
        jax.vmap(double),
        jax.vmap(double, in_axes=1),
        jax.checkpoint(double),
        nnx.jit(double),
        functools.partial(double, 1),
        functools.partial(double, 2),
        *(with_gradient(f) for f in (lambda r, g: (g,), lambda r, g: (2 * g,))),
        *(lambda x: x + 1, lambda x: x + 2),
        *(Scale(1.0), Scale(2.0), Scale(2.0).__call__, Scale),
        *(optax.adam, optax.adam(1e-3), optax.adam(1e-2)),
        optax.chain(optax.clip(1.0), optax.adam(1e-3)),
    ]
    names = [code.digest(function, "function") for function in functions]
    assert len(set(names)) == len(functions)
    assert code.digest(Scale(2.0), "scale") == code.digest(Scale(2.0), "scale")


def test_densities_are_exact_counts():
    for density in (0.3, 0.5, 0.7, 1 / 3):
        cell = next(
            cell
            for cell in dataclasses.replace(STUDY, densities=(density,))
            .build()[0]
            .cells
            if cell.compression
        )
        assert config.density(cell) == pytest.approx(density, abs=1e-12)
        assert masks.num_kept(config.density(cell), 1000) == masks.num_kept(
            density, 1000
        )


def test_other_methods_and_densities_of_a_study_are_compared():
    study = STUDY.build(seeds=2)[0]
    varied = select.vary(study, methods=("power", "imp2"), densities=(0.5, 0.1))
    cells = [(c.method.title, config.density(c), c.seed) for c in varied.cells]
    assert sorted(cells) == sorted(
        (title, density, seed)
        for title in ("Power", "IMP-2")
        for density in (0.5, 0.1)
        for seed in (0, 1)
    )
    assert select.vary(study) == study
    assert len(select.vary(study, methods=["dense"], densities=(0.5, 0.1)).cells) == 2
    with pytest.raises(ValueError, match="'powder' is unknown. Pass one of dense, gra"):
        select.vary(study, methods=["powder"])
    with pytest.raises(ValueError, match=r"in \(0, 1\]; got 95. For a sparsity"):
        select.vary(study, densities=[95])


def changed(**changes):
    return dataclasses.replace(STUDY, **changes).build()


def data(inputs=None, targets=None, **options):
    """Return data of three numbers an example, with changes."""
    inputs = np.ones((5, 3), np.float32) if inputs is None else inputs
    targets = np.zeros(5, int) if targets is None else targets
    pair = inputs, targets
    return user.Data("d", **{"train": pair, "test": pair, **options})


INVALID = {
    "first axis counts": lambda: data(targets=np.zeros(4, int)),
    "labels are integers from 0": lambda: data(targets=np.zeros(5)),
    "not finite": lambda: data(inputs=np.full((5, 3), np.nan)),
    "not finite in float32": lambda: data(inputs=np.full((5, 3), 1e300)),
    "integers beyond int32": lambda: data(inputs=np.full((5, 3), 2**40)),
    "an array of <U1": lambda: data(inputs=np.array(["a"] * 5)),
    "is not a pair": lambda: data(train=np.ones(3)),
    "shape (3,) in train and (2,) in test": lambda: data(
        test=(np.ones((5, 2)), np.zeros(5, int))
    ),
    "in (0, 1]; got 5": lambda: dataclasses.replace(STUDY, densities=(5,)).build(),
    "methods of the study is ()": lambda: changed(methods=()),
    "methods of the study is 'snip'": lambda: changed(methods="snip"),
    "densities of the study is 0.1": lambda: changed(densities=0.1),
    "got '0.5a'. For a sparsity": lambda: changed(densities=("0.5a",)),
    "(0.5, 0.5) has one twice": lambda: changed(densities=(0.5, 0.5)),
    "train_mode_scores 'snipp' is unknown": lambda: changed(
        recipe=dataclasses.replace(STUDY.recipe, train_mode_scores=("snipp",))
    ),
    "score_examples is the number of examples": lambda: changed(
        recipe=dataclasses.replace(STUDY.recipe, score_examples=0)
    ),
    "objective of the data 'd' is a NoneType": lambda: data(objective=None),
    "model of the study is a Linear": lambda: changed(
        model=nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    ),
    "done by the magnitude of the trained weights": lambda: Method(
        "m", "M", "snip", levels=2, pretrained=True
    ),
    "named 'a/b'": lambda: dataclasses.replace(STUDY, name="a/b").build(),
    "data of the study is a dict": lambda: dataclasses.replace(STUDY, data={}).build(),
    "model of the study is a int": lambda: dataclasses.replace(STUDY, model=3).build(),
    "two methods are named snip": lambda: dataclasses.replace(
        STUDY, methods=("snip", "snip")
    ).build(),
    "method 'snap' is unknown": lambda: dataclasses.replace(
        STUDY, methods=("snap",)
    ).build(),
    "needs 'data' is unknown": lambda: Method("m", "M", abs, needs="data"),
    "named 'a b'": lambda: Method("a b", "M", abs),
    "rounds of scoring; got 0": lambda: Method("m", "M", abs, rounds=0),
    "time=False leaves out": lambda: dataclasses.replace(
        STUDY, recipe=dataclasses.replace(STUDY.recipe, memory="cell")
    ).build(),
    "width scales the networks of jaxprune": lambda: select.reduced(
        STUDY.build()[0], width=0.5
    ),
}


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("sentence", INVALID)
def test_invalid_studies_are_refused(sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        INVALID[sentence]()


def fail(*args, **options):
    raise KeyError("no such thing")


def with_broken_apply(key):
    return models.Model(STUDY.model(key).params, {}, fail)


def only_outputs(params, state, tokens, *, train=False):
    return STUDY.model(jax.random.key(0)).apply(params, state, tokens)[0]


def with_loss(loss):
    return dataclasses.replace(STUDY.data, objective=train.Objective(loss, loss))


FAILING = {
    "returned outputs of (2, 5, 12) for 2 examples": {
        "data": user.Data("labels", *[(STUDY.data.train[0], np.arange(64))] * 2)
    },
    "snip scores with 99 examples, but the training set has 64": {
        "methods": ("snip",),
        "recipe": dataclasses.replace(STUDY.recipe, score_examples=99),
    },
    "done for image sets only": {"methods": ("imp_connect",)},
    "model fail (test_user.py:": {"model": fail},
    "score <lambda> returned PyTreeDef": {"methods": (lambda *a, mask: 3.0,)},
    "entries that are not finite at 'embedding'": {
        "methods": (lambda loss, params, batches, mask: jax.tree.map(jnp.log, params),)
    },
    "Return the outputs and the state": {
        "model": lambda key: models.Model(STUDY.model(key).params, {}, only_outputs)
    },
    "the metric 'accuracy' is nan on the test set": {
        "data": dataclasses.replace(
            STUDY.data,
            objective=train.Objective(
                STUDY.data.objective.loss,
                lambda logits, tokens: logits[:, 0, 0] * jnp.nan,
            ),
        )
    },
    "model (test_user.py:": {"model": with_broken_apply},
    "loss <lambda> (test_user.py:": {
        "data": with_loss(lambda logits, tokens: tokens.none)
    },
    "model <lambda>@1-": {"model": lambda key: 3},
    "raised KeyError: 'no such thing'": {"methods": (fail,)},
    "a plain function, in which no norm layers": {"methods": ("synflow",)},
    "loss returned float32[16, 5] for a batch of 16": {
        "data": with_loss(lambda logits, tokens: logits.max(-1))
    },
    "the optimizer factory returned a int": {
        "recipe": dataclasses.replace(
            STUDY.recipe,
            training=train.Training(8, 16, 0.01, lambda rate: 3),
        )
    },
}


@pytest.mark.parametrize("sentence", FAILING)
def test_a_function_that_fails_is_named(sentence, tmp_path):
    changed = dataclasses.replace(STUDY, **FAILING[sentence])
    study, examples = changed.build()
    last = study._replace(cells=[study.cells[-1]])
    with pytest.raises(ValueError, match=re.escape(sentence)):
        list(runner.run(last, tmp_path, examples))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "has no STUDY. Define STUDY = user.Study"),
        ("STUDY = 3\n", "has a STUDY that is a int"),
        ("import jax\nx = jax.nothing\n", "wrong.py (wrong.py:2) raised AttributeError"),
        ("def\n", "raised SyntaxError"),
        ("raise SystemExit('bye')\n", "raised SystemExit: bye"),
    ],
)  # fmt: skip
def test_a_file_without_a_study_is_refused(text, sentence, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        user.load(path)


def test_the_example_compares_a_new_score_from_the_command_line(tmp_path):
    arguments = ["--method", "sensitivity,snip", "--density", "0.05"]
    command = [sys.executable, "scripts/study.py", "run", "experiments/own_study.py"]
    command += [*arguments, "--epochs-scale", "0.1", "--runs-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "[2/2] SNIP" in done.stdout
    assert "Sensitivity" in (tmp_path / "own_study/report/index.html").read_text()
    written = [path.parent.name for path in tmp_path.glob("own_study/*/record.json")]
    assert sorted(name.split("-")[0] for name in written) == ["sensitivity", "snip"]
    again = subprocess.run(
        [*command, "--plan"], capture_output=True, text=True, cwd=ROOT
    )
    assert "(2 cells and" in again.stdout  # another process finds the same ids
    cell = json.loads((tmp_path / "own_study" / written[0] / "config.json").read_text())
    assert cell["model"].startswith("<lambda>@1-")


def test_a_network_of_functions_is_pruned_by_synflow_where_a_recipe_says_how():
    model = STUDY.model(jax.random.key(0))
    flow = models.flow(model, batch_norm="absolute")
    assert flow(model.params, jnp.ones((1, 5), jnp.int32)).shape == (1, 5, 12)
