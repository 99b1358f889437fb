"""The benchmarks run, in small, and say what is wrong."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import importlib
import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from benchmarks import cases, keras_reference, train_step
from experiments import pairs


def test_a_small_run_writes_what_it_promises(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        train_step, "why_not", lambda rival: None if rival == "keras-jax" else "not here"
    )
    path = tmp_path / "results" / "train_step.json"
    systems, rivals = ["mnist_mlp", "mnist_towers"], ["keras-torch", "keras-jax"]
    train_step.main(
        f"--smoke --rounds 3 --systems {' '.join(systems)} --rivals {' '.join(rivals)} "
        f"--json {path}".split()
    )
    results = json.loads(path.read_text())
    assert [row["system"] for row in results["rows"]] == systems
    for row in results["rows"]:
        assert row["rival"] == "keras-jax"
        assert (row["batch_size"], row["num_steps"], row["rounds"]) == (4, 4, 3)
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["ours_pairs_per_second"] > 0
        assert row["rival_pairs_per_second"] > 0
        assert row["loss_difference"] < train_step.LARGEST_DIFFERENCE
        assert row["ours_device"] == row["rival_device"] == "cpu"
    assert results["skipped"] == {"keras-torch": "not here"}
    assert results["smoke"]
    assert results["machine"]["versions"]["jax"] == jax.__version__
    printed = capsys.readouterr().out
    assert "skipped: keras-torch: not here" in printed
    assert printed.count("| keras-jax | 4 |") == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--systems mnist", "invalid choice: 'mnist' (choose from 'mnist_mlp'"),
        ("--rivals keras", "invalid choice: 'keras' (choose from 'keras-jax'"),
        ("--rounds 0", "--rounds must be at least 1; got 0"),
    ],
)
def test_wrong_flags_are_named(capsys, flags, words):
    with pytest.raises(SystemExit):
        train_step.main(flags.split())
    assert words in capsys.readouterr().err


def test_a_rival_that_is_not_installed_is_skipped(monkeypatch, capsys):
    monkeypatch.setattr(train_step.importlib.util, "find_spec", lambda name: None)
    train_step.main(["--rivals", "keras-torch"])
    assert "skipped: keras-torch: keras and torch not installed" in capsys.readouterr().out


def test_a_contestant_that_fails_is_named_with_its_words():
    with (
        pytest.raises(
            train_step.BenchmarkError, match=r"(?s)ours failed at .*KeyError: 'x'"
        ),
        train_step.started("ours") as ask,
    ):
        ask(do="prepare", system="x", smoke=True)


# Agreement ------------------------------------------------------------------------------


def answering(losses):
    return lambda **request: {"losses": losses}


def test_losses_that_agree_give_the_largest_difference():
    asked = {"ours": answering([1.0, 2.0]), "keras-jax": answering([1.0, 2.001])}
    assert train_step.compare_losses("mnist_mlp", asked) == {
        "keras-jax": pytest.approx(0.0005)
    }


@pytest.mark.parametrize("losses", [[1.0, 2.01], [1.0001, 2.0], [float("nan"), 2.0]])
def test_a_rival_that_computes_something_else_is_refused(losses):
    asked = {"ours": answering([1.0, 2.0]), "keras-jax": answering(losses)}
    with pytest.raises(train_step.BenchmarkError, match="mnist_mlp: ours and keras-jax do"):
        train_step.compare_losses("mnist_mlp", asked)


def test_a_ratio_is_that_of_one_round():
    seconds = {"ours": [1.0, 2.0, 4.0], "keras-jax": [2.0, 8.0, 12.0]}
    about = {name: {"compile_seconds": 1.0, "device": "cpu"} for name in seconds}
    row = train_step.make_row("mnist_mlp", "keras-jax", seconds, about, 0.0, smoke=True)
    assert (row.ratio_min, row.ratio, row.ratio_max) == (2.0, 3.0, 4.0)
    assert (row.ours_pairs_per_second, row.rival_pairs_per_second) == (8.0, 2.0)


# Cases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("system", cases.CASES)
def test_cases_are_those_of_the_experiments(system):
    experiment = importlib.import_module(f"experiments.{system}")
    full, small = (cases.get_case(system, smoke=smoke) for smoke in (False, True))
    assert full.batch_size == experiment.Config().batch_size
    for case in (full, small):
        config = experiment.Config(**{**case.config, **case.without_dropout})
        params = jax.eval_shape(partial(experiment.initial_state, config)).params
        batch = pairs.Batch(
            jnp.zeros((2, 1, *case.image_shape)), jnp.ones(1, bool), jnp.ones(1, bool)
        )
        jax.eval_shape(
            partial(experiment.loss_fn, config), params, (), batch, jax.random.key(0)
        )
    with jax.numpy_rank_promotion("allow"):
        options = {**small.options, **small.without_dropout}
        reference = keras_reference.build(system, **options)
        keras_reference.set_weights(reference, jax.tree.map(zeros, params))
    assert reference.model.input_shape[0][1:] == small.image_shape


def zeros(described):
    return jnp.zeros(described.shape)


def test_pairs_are_the_same_in_every_process():
    case = cases.get_case("mnist_mlp", smoke=True)
    code = (
        "from benchmarks.cases import *\n"
        "pairs = make_pairs(get_case('mnist_mlp', smoke=True))\n"
        "print(*[int(array.astype(int).sum()) for array in pairs])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=train_step.ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    sums = [int(array.astype(int).sum()) for array in cases.make_pairs(case)]
    assert printed.split() == [str(number) for number in sums]
