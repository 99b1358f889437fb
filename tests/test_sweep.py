"""Tests of sweeps: each run equals the single run, resuming, diverging, figures, flags."""

import csv
import dataclasses
import json
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main as run_experiment
from experiments.engine import checkpoints, devices, loop
from experiments.engine.data import ClassData
from experiments.engine.pair_batches import PairData
from experiments.engine.system import initial_state
from experiments.evaluations import results_table
from experiments.sweeps import many_runs, summary, sweep
from experiments.sweeps.many_runs import Runs, check_can_be_traced, stack_data
from experiments.sweeps.summary import CHOICE, RunResult
from experiments.sweeps.sweep import Config, Values
from experiments.systems import glyphs, mnist_mlp
from siamese_jax import samplers
from siamese_jax.errors import UserError
from siamese_jax.model import save_model
from siamese_jax.samplers import Pairs

pytestmark = pytest.mark.slow

SHORT = {"num_steps": 6, "steps_per_call": 2, "checkpoint_every": 2}
SEEDS, MARGINS = (0, 2**32 - 1), (4.0, 1.0)


def digits_config(workdir, **changes):
    return mnist_mlp.Config(
        **{"workdir": workdir, "dataset": "digits", "batch_size": 16, **SHORT} | changes
    )


def over_margins(workdir):
    return Config(digits_config(workdir), SEEDS, (Values("margin", MARGINS),))


def read(path):
    """A JSON file, in which no number may be NaN or infinite."""
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def final_states(workdir):
    """The parameters and the state of the optimiser after the last step, of all runs."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        assert manager.latest_step() == SHORT["num_steps"]
        return manager.restore(SHORT["num_steps"], args=ocp.args.StandardRestore())


def assert_close(found, wanted, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, wanted)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = over_margins(tmp_path_factory.mktemp("sweeps") / "margins")
    sweep.main(config)
    return config


# Training -------------------------------------------------------------------------------


def test_each_run_ends_with_the_parameters_of_the_single_run(finished, tmp_path):
    assert devices.usual_devices() == 2  # two runs on each
    params = final_states(finished.directory)["params"]
    for number, config in enumerate(sweep.run_configs(finished)):
        alone = dataclasses.replace(config, workdir=tmp_path / str(number))
        loop.prepare_folder(alone)
        splits = mnist_mlp.load(alone)
        data = mnist_mlp.training_data(alone, splits)
        trained = loop.train(alone, mnist_mlp.build(alone), data)
        found = jax.tree.map(lambda leaf, number=number: leaf[number], params)
        assert_close(found, trained.state.params, rtol=0, atol=2e-5)
    kernels = np.asarray(jax.tree.leaves(params)[1])
    for one in range(4):  # no two runs are alike
        for other in range(one):
            assert np.abs(kernels[one] - kernels[other]).max() > 1e-3


def test_an_interrupted_sweep_ends_bit_for_bit_as_an_unbroken_one(
    finished, tmp_path, monkeypatch
):
    config = over_margins(tmp_path / "broken")
    save = checkpoints.save

    def save_and_stop(saved, step, states):
        save(saved, step, states)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        sweep.main(config)
    monkeypatch.setattr(checkpoints, "save", save)

    evaluate, evaluated = mnist_mlp.evaluate, []

    def evaluate_two(one, loaded, model):
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        evaluated.append(one.margin)
        return evaluate(one, loaded, model)

    monkeypatch.setattr(mnist_mlp, "evaluate", evaluate_two)
    with pytest.raises(KeyboardInterrupt):
        sweep.main(config)
    evaluated.pop()  # one more
    with pytest.raises(KeyboardInterrupt):
        sweep.main(config)
    assert evaluated == [4.0, 1.0]
    assert not (config.directory / "results.json").exists()
    monkeypatch.setattr(mnist_mlp, "evaluate", evaluate)
    sweep.main(config)

    states = [final_states(one.directory) for one in (config, finished)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    results, lines = [], []
    for one in (config, finished):
        runs = read(one.directory / "results.json")["runs"]
        results.append([(run["setting"], run["seed"], run["metrics"]) for run in runs])
        texts = (one.directory / "metrics.jsonl").read_text().splitlines()
        lines.append([json.loads(text) | {"seconds": 0} for text in texts])
    assert results[0] == results[1]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [2, 4, 6]


def test_a_run_that_diverges_does_not_stop_the_others(finished, tmp_path, capsys):
    rates = Values("learning_rate", (1e-3, 1e30))
    config = Config(digits_config(tmp_path / "rates"), SEEDS, (rates,))
    sweep.main(config)
    results = read(config.directory / "results.json")
    good, bad = results["runs"][:2], results["runs"][2:]
    assert all(run["diverged"] is None for run in good)
    assert all(run["metrics"]["pair_eer"] is not None for run in good)
    assert all(run["diverged"] == 2 for run in bad)  # after the first update
    assert all(set(run["metrics"].values()) == {None} for run in bad)
    assert results["best_setting"] == {"learning_rate": 1e-3}
    assert results["best_run"] in (0, 1)
    assert [one["num_diverged"] for one in results["settings"]] == [0, 2]
    assert results["settings"][1]["means"][CHOICE] is None
    with (config.directory / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["diverged"] for row in rows] == ["", "", "2", "2"]
    assert [float(row["seed"]) for row in rows] == [*SEEDS, *SEEDS]
    printed = capsys.readouterr().out
    assert "diverged at step 2: learning_rate 1e+30, seed 4294967295" in printed
    # the default rate and margin, beside other runs
    states = [final_states(one.directory)["params"] for one in (config, finished)]
    found, wanted = (
        jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], params)
        for params, rows in zip(states, (slice(2), slice(2, None)), strict=True)
    )
    assert_close(found, wanted, rtol=0, atol=2e-5)


def test_the_step_of_divergence_is_the_first_one_over_all_calls():
    losses = np.array([[1.0, 1.0], [np.inf, 2.0], [1.0, np.nan]])
    first = many_runs.make_line([], {"loss": losses}, 4, 1.0)
    assert first["diverged"] == [None, 5, 6]
    assert first["loss"] == [1.0, None, None]
    second = many_runs.make_line([first], {"loss": losses[[2, 1, 0]]}, 6, 1.0)
    assert second["diverged"] == [8, 5, 6]
    assert second["seconds"] == 2.0


def test_parameters_that_the_last_update_spoilt_count_as_diverged():
    params = {"a": np.array([[1.0, 2.0], [1.0, np.nan]]), "b": np.array([1.0, 1.0])}
    states = types.SimpleNamespace(params=params)
    assert many_runs.have_finite_parameters(states).tolist() == [True, False]


# Systems --------------------------------------------------------------------------------


TRACED = {
    "glyphs": ("learning_rate", "weight_decay", "temperature"),
    "mnist_conv": ("learning_rate",),
    "mnist_mlp": ("learning_rate", "margin"),
    "orl_tutorial": ("learning_rate", "margin"),
}


def small_run(name, workdir):
    """The settings of a small run, and data to train on that needs no files and fonts."""
    module, rng = sweep.load_system(name), np.random.default_rng(0)
    settings = SHORT | {"workdir": workdir}
    if name == "glyphs":
        settings |= {"num_letters": 4, "num_faces": 2, "widths": (4,), "dim": 4}
        letters = np.arange(40) // 4
        index = samplers.class_index(letters, groups=letters // 5)
        images = rng.integers(0, 256, (40, 32, 32, 1), np.uint8)
        return module.Config(**settings), ClassData(jnp.asarray(images), index)
    settings |= {"batch_size": 10}
    if name == "orl_tutorial":
        images = rng.integers(0, 256, (6, 56, 46, 1), np.uint8)
        pairs = Pairs(jnp.arange(24).reshape(2, 12) % 6, jnp.arange(12) < 6)
        return module.Config(**settings), PairData(jnp.asarray(images), pairs)
    config = module.Config(**settings, dataset="digits")
    return config, module.training_data(config, module.load(config))


@pytest.mark.parametrize("name", sweep.SYSTEMS)
def test_numbers_of_the_step_can_differ_and_others_are_refused_by_name(name, tmp_path):
    config, data = small_run(name, tmp_path)
    build = sweep.load_system(name).build

    def check(names):
        check_can_be_traced(Runs(build, [config], ("seed", *names)), stack_data([data]))

    check(TRACED[name])
    shape = "num_letters" if name == "glyphs" else "batch_size"
    flag = shape.replace("_", "-")
    with pytest.raises(UserError, match=f"--{flag} cannot differ between the runs"):
        check((shape,))


@pytest.mark.parametrize("setting", ["num_ways", "num_episodes", "num_pairs"])
def test_numbers_of_the_evaluation_alone_are_refused_before_training(setting, tmp_path):
    config, data = small_run("glyphs", tmp_path)
    configs = [dataclasses.replace(config, **{setting: number}) for number in (5, 200)]
    runs = Runs(glyphs.build, configs, ("seed", setting))
    words = f"--{setting.replace('_', '-')} cannot differ .* training does not depend on it"
    with pytest.raises(UserError, match=words):
        check_can_be_traced(runs, stack_data([data] * 2))


def test_runs_with_batch_statistics_end_as_the_single_run(tmp_path):
    config, data = small_run("glyphs", tmp_path / "alone")
    configs = [
        dataclasses.replace(config, temperature=temperature, weight_decay=weight_decay)
        for temperature in (0.1, 0.2)
        for weight_decay in (1e-4, 0.1)
    ]
    runs = Runs(glyphs.build, configs, ("seed", "temperature", "weight_decay"))
    (tmp_path / "sweep").mkdir()
    swept = many_runs.train(runs, stack_data([data] * 4), tmp_path / "sweep")
    loop.prepare_folder(configs[-1])
    alone = loop.train(configs[-1], glyphs.build(configs[-1]), data).state
    last = jax.tree.map(lambda leaf: leaf[-1], swept.states)
    assert_close(last.params, alone.params, rtol=0, atol=2e-5)
    assert_close(last.statistics, alone.statistics, rtol=1e-4, atol=1e-6)
    line = json.loads((tmp_path / "sweep" / "metrics.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(line["temperature"], [0.1, 0.1, 0.2, 0.2], rtol=0.05)


def test_the_systems_of_sweeps_are_those_with_the_functions_for_it():
    folder = pathlib.Path(mnist_mlp.__file__).parent
    texts = {path.stem: path.read_text() for path in folder.glob("*.py")}
    functions = ("load", "training_data", "evaluate")
    found = [
        name
        for name, text in texts.items()
        if all(f"\ndef {function}(" in text for function in functions)
    ]
    assert sorted(found) == sorted(sweep.SYSTEMS)
    for name in sweep.SYSTEMS:
        assert {"build", "load", "evaluate"} <= vars(sweep.load_system(name)).keys()


def test_all_runs_start_from_the_parameters_of_a_model(tmp_path):
    config = digits_config(None, init_from=tmp_path / "model")
    system = mnist_mlp.build(config)
    state = initial_state(system, jax.random.key(5))
    save_model(config.init_from, system.model(state))
    configs = [dataclasses.replace(config, seed=seed) for seed in SEEDS]
    runs = Runs(mnist_mlp.build, configs, ("seed",))
    first_states = many_runs.compile_first_states(runs, many_runs.make_mesh(2))
    found = first_states(runs.numbers()).params
    wanted = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), state.params)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_data_that_is_equal_is_shared_and_other_data_is_stacked():
    splits = mnist_mlp.load(digits_config(None))
    data = stack_data(
        mnist_mlp.training_data(digits_config(None, seed=seed), splits) for seed in SEEDS
    )
    shapes = {leaf.shape for leaf in data.shared.values()}
    assert splits.train.images.shape in shapes
    assert [leaf.shape[0] for leaf in data.own.values()] == [2]  # the pairs


# Results --------------------------------------------------------------------------------


def test_a_finished_sweep_prints_its_table_without_work(finished, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "train", lambda *args: pytest.fail("it trains"))
    sweep.main(finished)
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    head = next(line for line in lines if line[:2] == ["margin", "runs"])
    assert head[2:4] == [CHOICE, "pair_accuracy"]
    assert sum(line[:1] == ["*"] for line in lines) == 1
    assert "is complete" in printed
    assert "the best run alone: python -m experiments mnist_mlp" in printed


def test_a_sweep_is_a_row_for_each_setting_in_the_table_of_all_results(finished):
    results = results_table.find_results([finished.directory])
    assert len(results) == 4
    rows = [row for row in results_table.make_rows(results) if row[1] == "pair_eer"]
    assert [row[4] for row in rows] == ["2", "2"]
    by_margin = [one["metrics"]["pair_eer"] for one in results]
    assert rows[0][2] == f"{np.mean(by_margin[2:]):.4f}"  # the default margin comes first
    assert rows[1][2] == f"{np.mean(by_margin[:2]):.4f}"


def test_other_runs_in_the_same_folder_are_refused(finished):
    other = dataclasses.replace(finished, seeds=(0, 1))
    with pytest.raises(UserError, match=r"other settings \(seeds: \[0, 4294967295\]"):
        sweep.main(other)


def test_the_best_is_chosen_by_calibration_among_settings_without_divergence():
    def result(margin, seed, accuracy, diverged=None):
        return RunResult({"margin": margin}, seed, diverged, {CHOICE: accuracy, "b": 1.0})

    results = [
        result(1.0, 0, 0.75),
        result(1.0, 1, 0.25),
        result(2.0, 0, 0.5),
        result(2.0, 1, 0.625),
        result(3.0, 0, 0.875),
        result(3.0, 1, None, diverged=9),
    ]
    settings = summary.summarize(results)
    assert [one.means[CHOICE] for one in settings] == [0.5, 0.5625, 0.875]
    assert settings[0].deviations[CHOICE] == pytest.approx(np.sqrt(0.125))
    assert settings[2].deviations[CHOICE] is None
    assert summary.best_setting(settings) == 1
    assert summary.best_run(results) == 4
    assert summary.best_run(results[-1:]) is None
    table = summary.make_table(settings, 1, [CHOICE])
    assert [line.split() for line in table.splitlines()][2:] == [
        ["*", "2", "2", "of", "2", "0.5625", "+-", "0.0884"],
        ["3", "1", "of", "2", "0.8750"],
    ]


# Flags ----------------------------------------------------------------------------------


def test_flags_make_every_combination_with_every_seed():
    flags = (
        "mnist_mlp --seeds 0:2,7 --margin 0.5,1.0 --learning-rate=1e-3,3e-3 --pairs fresh"
    )
    config = Config.from_flags(flags.split(), "program")
    configs = sweep.run_configs(config)
    assert len(configs) == 12
    found = [(one.margin, one.learning_rate, one.seed) for one in configs]
    assert found[:4] == [(0.5, 1e-3, 0), (0.5, 1e-3, 1), (0.5, 1e-3, 7), (0.5, 3e-3, 0)]
    assert len(set(found)) == 12
    assert all(one.pairs == "fresh" for one in configs)
    other = dataclasses.replace(config, seeds=(0,))
    assert config.directory.name.startswith("sweep-mnist_mlp-")
    assert config.directory != other.directory


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "the name of a system comes first, one of glyphs, .*; got none"),
        ("mnist_towers", "the name of a system comes first.*; got mnist_towers"),
        ("mnist_mlp --seeds 0:x", "--seeds must be numbers and ranges .*; got '0:x'"),
        ("mnist_mlp --seeds 0:1:2", "--seeds must be numbers and ranges"),
        ("mnist_mlp --seeds 3:3", "--seeds needs at least one value"),
        ("mnist_mlp --seeds 0:99999", "--seeds: a sweep has at most 10,000 runs"),
        ("mnist_mlp --seeds 1,1", r"--seeds has a number twice; got \(1, 1\)"),
        ("mnist_mlp --seeds -1", "--seeds must be at least 0"),
        ("mnist_mlp --seed 3", "--seed: a sweep takes --seeds; got --seed 3"),
        ("mnist_mlp --margin 1,a", "--margin must be numbers .* between; got '1,a'"),
        ("mnist_mlp --margin 0.5,-1", "--margin must be above 0; got -1.0"),
        ("mnist_mlp --margin 0.5,nan", "--margin must be finite"),
        ("mnist_mlp --batch-size 8,9.5", "--batch-size must be integers"),
        ("mnist_mlp --compute-dtype auto", "auto is not used by a sweep; give the type"),
        ("mnist_mlp --num-steps 4,8", "--num-steps cannot differ between the runs"),
        (
            "mnist_mlp --recipe tuned --margin 0.5,1",
            "--margin is used only with --recipe tutorial",
        ),
        ("mnist_mlp --dropout 0.1,0.5", "--dropout cannot differ .*Give one value"),
    ],
)
def test_wrong_flags_are_one_line_that_names_them(flags, words, tmp_path, capsys):
    folder = tmp_path / "sweep"
    settings = ["--dataset", "digits", "--workdir", str(folder)]
    name, *rest = flags.split() or [""]
    with pytest.raises(SystemExit) as stopped:
        run_experiment(["sweep", name, *rest, *settings] if name else ["sweep"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert not folder.exists()


def test_help_names_the_systems_and_lists_the_flags_of_one(capsys):
    for flags, words in (
        (["--help"], "{glyphs,mnist_conv,mnist_mlp,orl_tutorial}"),
        (["mnist_mlp", "--help"], "--margin FLOAT"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_experiment(["sweep", *flags])
        assert stopped.value.code == 0
        assert words in capsys.readouterr().out
