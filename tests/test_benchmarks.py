"""Tests of the benchmarks with tiny cases, and of their error messages."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import importlib
import json
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    cases,
    contestants,
    inference,
    keras_reference,
    losses,
    record_step,
    results,
    retrieval,
    scale,
    start_up,
    sweep,
    time_to_accuracy,
    train_step,
)
from experiments.engine import machine
from experiments.engine.pair_batches import PairBatch
from experiments.engine.system import initial_state
from experiments.systems import omniglot_supcon

pytestmark = pytest.mark.slow


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
        assert row["dtype"] == "float32"
        assert row["ours_gigaflops_per_second"] > 0
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
        ("--batch-size 1", "--batch-size must be at least 2; got 1"),
        ("--dtype float16", "invalid choice: 'float16'"),
    ],
)
def test_wrong_flags_are_named(capsys, flags, words):
    with pytest.raises(SystemExit):
        train_step.main(flags.split())
    assert words in capsys.readouterr().err


def test_another_checkout_is_a_rival_that_trains_the_same(tmp_path, capsys):
    path = tmp_path / "train_step.json"
    train_step.main(
        f"--smoke --rounds 1 --systems mnist_mlp --rivals flattened checkout "
        f"--checkout {train_step.ROOT} --json {path}".split()
    )
    rows = json.loads(path.read_text())["rows"]
    assert [row["rival"] for row in rows] == ["flattened", "checkout"]
    assert all(row["loss_difference"] < 1e-6 for row in rows)
    with pytest.raises(SystemExit):
        train_step.main(["--rivals", "checkout"])
    assert "--checkout DIR and --rivals checkout go together" in capsys.readouterr().err


def test_a_rival_that_is_not_installed_is_skipped(monkeypatch, capsys):
    monkeypatch.setattr(train_step.importlib.util, "find_spec", lambda name: None)
    train_step.main(["--rivals", "keras-torch", "torch"])
    printed = capsys.readouterr().out
    assert "skipped: keras-torch: keras and torch not installed" in printed
    assert "skipped: torch: torch not installed" in printed


def test_a_contestant_that_fails_is_named_with_its_words():
    with (
        pytest.raises(
            train_step.BenchmarkError, match=r"(?s)ours failed at .*KeyError: 'x'"
        ),
        train_step.started("ours") as ask,
    ):
        ask(do="prepare", system="x", smoke=True)


def test_ours_in_bfloat16_agrees_with_float32_roughly(tmp_path):
    losses = []
    for dtype in ("float32", "bfloat16"):
        case = cases.get_case("mnist_mlp", smoke=True, dtype=dtype)
        made = contestants.make_ours("mnist_mlp", case, cases.make_pairs(case))
        losses.append(made.losses_fn(str(tmp_path / "weights.npz")))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=train_step.HALF_DIFFERENCE)


@pytest.mark.parametrize("system", cases.CASES)
def test_pytorch_trains_the_same(system, tmp_path):
    pytest.importorskip("torch")
    case = cases.get_case(system, smoke=True)
    drawn, path = cases.make_pairs(case), str(tmp_path / "weights.npz")
    ours = contestants.make_ours(system, case, drawn).losses_fn(path)
    theirs = contestants.make_torch(system, case, drawn, compiled=False).losses_fn(path)
    assert ours == pytest.approx(theirs, rel=train_step.LARGEST_DIFFERENCE)


def test_the_record_s_step_beside_pytorch_in_small(tmp_path, capsys):
    pytest.importorskip("torch")
    path = tmp_path / "record.json"
    flags = f"--smoke --rounds 1 --presets short --rivals torch --json {path}"
    record_step.main(flags.split())
    rows = json.loads(path.read_text())["rows"]
    assert [row["dtype"] for row in rows] == ["bfloat16", "float32"]
    for row in rows:
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    assert "| short | bfloat16 | torch |" in capsys.readouterr().out


def test_the_record_s_nets_are_compared_before_they_are_timed():
    pytest.importorskip("torch")
    small = record_step.SMOKE | {"compute_dtype": "bfloat16"}
    config = omniglot_supcon.Config(**small, num_steps=1)
    images, labels, alphabets = record_step.make_images(config.size)
    from benchmarks import record_torch

    trainer = record_torch.Trainer(config, images, labels, alphabets)
    state = initial_state(omniglot_supcon.build(config), jax.random.key(0))
    record_step.compare_losses(config, state, trainer)
    wrong = jax.tree.map(lambda leaf: leaf, state.params)
    wrong["log_temperature"] = jnp.log(0.2)
    with pytest.raises(ValueError, match="the losses of one batch differ"):
        record_step.compare_losses(config, state._replace(params=wrong), trainer)


def test_pytorch_centres_the_record_s_drawings_as_we_do():
    torch = pytest.importorskip("torch")
    from benchmarks import record_torch

    nothing = (
        "max_rotation",
        "max_shear",
        "max_scale",
        "max_shift",
        "elastic",
        "thickness",
    )
    config = omniglot_supcon.Config(**record_step.SMOKE | dict.fromkeys(nothing, 0.0))
    ink = np.zeros((3, 16, 16, 1), np.float32)
    ink[0, 1:4, 9:15], ink[1, 8:15, 2] = 1.0, 0.5  # and a blank one
    distort = jax.vmap(partial(omniglot_supcon.distort, config))
    ours = distort(jax.random.split(jax.random.key(0), 3), jnp.asarray(ink))
    trainer = record_torch.Trainer(config, *record_step.make_images(16))
    theirs = trainer.distort(torch.from_numpy(np.moveaxis(ink, 3, 1)))
    np.testing.assert_allclose(np.moveaxis(theirs.numpy(), 1, 3), ours, atol=1e-5)
    assert np.abs(np.asarray(ours) - ink).max() > 0.4  # they have moved


# Other questions ------------------------------------------------------------------------


def test_inference_in_small(tmp_path, capsys):
    path = tmp_path / "inference.json"
    flags = f"--smoke --rounds 2 --systems mnist_mlp --rivals keras-jax --json {path}"
    inference.main(flags.split())
    rows = json.loads(path.read_text())["rows"]
    assert [row["task"] for row in rows] == ["embed", "verify", "identify"]
    for row in rows:
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    assert capsys.readouterr().out.count("| mnist_mlp |") == 3


def test_our_inference_computes_what_the_rival_does(tmp_path):
    case = cases.get_case("mnist_mlp", smoke=True)
    images = inference.make_images("mnist_mlp", smoke=True)
    weights = tmp_path / "weights.npz"
    ours = inference.make_ours("mnist_mlp", case, 4, 4, weights)
    with jax.numpy_rank_promotion("allow"):  # Keras adds biases [m] to [n, m]
        theirs = inference.make_rival("keras-jax", "mnist_mlp", case, 4, 4, weights)
        found = {task: theirs[task](images) for task in ours}
    for task, fn in ours.items():
        np.testing.assert_allclose(found[task], fn(images), rtol=1e-4, atol=1e-5)
    embeddings = np.asarray(ours["embed"](images))
    a, b = np.split(embeddings, 2)
    np.testing.assert_allclose(
        ours["verify"](images), np.linalg.norm(a - b, axis=1), rtol=1e-5
    )
    away = np.linalg.norm(embeddings[:, None] - embeddings[None, :4], axis=-1)
    np.testing.assert_array_equal(ours["identify"](images), np.argmin(away, axis=1))


def test_embeddings_of_a_rival_that_differ_are_refused():
    def answering(embeddings):
        return lambda **_: {"embeddings": embeddings}

    asked = {"ours": answering([[1.0, 2.0]]), "torch": answering([[1.0, 2.001]])}
    with pytest.raises(train_step.BenchmarkError, match="of torch differ from ours by 0"):
        inference.prepare("mnist_mlp", asked, smoke=True)
    inference.prepare("mnist_mlp", asked | {"torch": asked["ours"]}, smoke=True)


def test_a_command_is_shown_without_the_file_of_its_results():
    flags = ["--rounds", "3", "--json", "a.json", "--json=b.json", "--smoke"]
    wanted = "python -m benchmarks.sweep --rounds 3 --smoke"
    assert results.command("sweep", flags) == wanted


def test_a_sweep_in_small(tmp_path):
    path = tmp_path / "sweep.json"
    flags = f"--smoke --rounds 1 --num-seeds 2 --systems mnist_mlp --json {path}"
    sweep.main(flags.split())
    (row,) = json.loads(path.read_text())["rows"]
    assert row["num_seeds"] == 2
    assert row["ratio"] == pytest.approx(
        row["vmap_pairs_per_second"] / row["single_pairs_per_second"]
    )


def test_start_up_in_small(tmp_path):
    path = tmp_path / "start_up.json"
    start_up.main(f"--rounds 1 --json {path}".split())
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 4
    assert all(row["seconds"] > 0 for row in rows)


def test_our_accuracy_climbs():
    epochs = list(time_to_accuracy.train_ours("tutorial", "digits", 2))
    seconds, found = zip(*epochs, strict=True)
    assert 0 < seconds[0] < seconds[1]
    assert found[-1] > 0.7


def test_an_accuracy_counts_from_the_first_epoch_that_reaches_it():
    epochs = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.8)]
    reached, missed = time_to_accuracy.make_rows("tuned", epochs, [0.8, 0.95])
    assert (reached["epochs"], reached["seconds"], reached["best"]) == (2, "2.0", 0.9)
    assert missed["epochs"] == "not reached"


def test_tables_go_between_their_comments(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    rows = [{"what": "import jax", "seconds": 0.5}]
    results.report("start_up", rows, tmp_path / "start_up.json", [])
    text = "".join(f"# {n}\n<!-- {n} -->\n<!-- end of {n} -->\n" for n in results.COLUMNS)
    once = results.write_tables(text)
    assert "| import jax | 0.50 |\n<!-- end of start_up -->" in once
    assert "Not measured yet: `python -m benchmarks.sweep`." in once
    assert results.write_tables(once) == once
    results.report("start_up", rows, tmp_path / "newest" / "start_up.json", [])
    twice = results.write_tables(once)
    assert twice.count("| import jax | 0.50 |\n") == 2
    assert twice.count(f"start_up`: {machine.description()}; Python ") == 2
    for path in tmp_path.rglob("start_up.json"):
        path.unlink()
    assert results.write_tables(twice) == twice  # what was measured stays
    with pytest.raises(ValueError, match="<!-- train_step -->"):
        results.write_tables("")


def test_the_readme_has_a_place_for_every_table():
    results.write_tables(results.README.read_text())


def test_flops_are_those_of_the_layers():
    dense = 21_632 * 128, 26 * 26 * 32 * 9
    wanted = 2 * 2 * (3 * dense[0] + 2 * dense[1])  # pairs, multiply and add, three passes
    assert cases.CASES["mnist_conv"].flops_per_pair == pytest.approx(wanted, rel=0.001)
    wanted = 2 * 2 * 2 * 784 * 128  # no gradient of the images
    assert cases.CASES["mnist_towers"].flops_per_pair == pytest.approx(wanted, rel=0.001)


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
    case = cases.get_case("mnist_mlp", smoke=True)
    row = train_step.make_row("mnist_mlp", "keras-jax", seconds, about, 0.0, case)
    assert (row.ratio_min, row.ratio, row.ratio_max) == (2.0, 3.0, 4.0)
    assert (row.ours_pairs_per_second, row.rival_pairs_per_second) == (8.0, 2.0)


# Cases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("system", cases.CASES)
def test_cases_are_those_of_the_experiments(system):
    experiment = importlib.import_module(f"experiments.systems.{system}")
    full, small = (cases.get_case(system, smoke=smoke) for smoke in (False, True))
    assert full.batch_size == experiment.Config().batch_size
    for case in (full, small):
        config = experiment.Config(**{**case.config, **case.without_dropout})
        built = experiment.build(config)
        params, statistics = jax.eval_shape(built.init, jax.random.key(0))
        batch = PairBatch(
            jnp.zeros((2, 1, *case.image_shape)), jnp.ones(1, bool), jnp.ones(1, bool)
        )
        jax.eval_shape(built.loss, params, statistics, batch, jax.random.key(0))
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


def test_a_loss_is_measured_and_stopped_at_its_limit(tmp_path):
    found = losses.measure("SupConLoss", "ours", 8, time.process_time)
    assert found["value"] > 0
    assert found["seconds"] > 0
    path, limit = tmp_path / "losses.json", "--limit-seconds 0.05 --processor-time"
    losses.main(f"--num-rows 8 --names SupConLoss {limit} --json {path}".split())
    (row,) = json.loads(path.read_text())["rows"]
    assert row["ours"]["stopped"] == row["theirs"]["stopped"] == "over 0.05 s"


def test_memory_of_many_rows_in_small(tmp_path, capsys):
    path = tmp_path / "scale.json"
    scale.main(["--smoke", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["loss"] for row in rows] == ["info_nce_loss", "supervised_contrastive_loss"]
    for row in rows:
        dense, tiled = row["found"]["dense"], row["found"]["tiled"]
        assert dense["value"] == pytest.approx(tiled["value"], rel=1e-5)
        assert 0 < tiled["seconds"]
        assert 0 < tiled["temporaries_gb"] < dense["temporaries_gb"] < tiled["process_gb"]
        assert row["found"]["pml"] == {}
        assert row["pml"] == ""
    assert capsys.readouterr().out.count("| `info_nce_loss` | 256 |") == 1


def test_in_tiles_the_memory_of_every_loss_grows_with_the_rows_alone():
    def temporaries(name, num_rows):
        loss = scale.make_ours(name, "tiled", tile_size=64)
        return scale.compile_gradient(loss, scale.CASES[name], num_rows)[1]

    for name in scale.CASES:
        small, large = (temporaries(name, num_rows) for num_rows in (1024, 4096))
        assert large < 4.2 * small, name


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({}, ""),
        ({"stopped": "not tried"}, "not tried"),
        ({"stopped": "over 8 GB", "process_gb": 8.1}, "over 8 GB"),
        ({"stopped": "over 8 GB", "temporaries_gb": 56.5}, "56.5 GB, not run"),
        ({"stopped": "over 9 s", "process_gb": 0.5}, "over 9 s, 0.50 GB"),
        ({"seconds": 0.25, "process_gb": 0.5}, "0.25 s, 0.50 GB"),
        (
            {"seconds": 82.51, "process_gb": 0.67, "temporaries_gb": 0.266},
            "82.5 s, 0.266 of 0.67 GB",
        ),
    ],
)
def test_a_cell_says_what_was_found_or_what_stopped_it(found, text):
    assert scale.text_of(found) == text


def test_retrieval_is_measured_and_a_missing_rival_named(tmp_path, monkeypatch, capsys):
    found = {task: retrieval.measure(task, "ours", smoke=True) for task in retrieval.TASKS}
    assert len(found["product"]["result"]) == len(found["distance"]["result"]) == 5
    assert len(found["figures"]["result"]) == 5
    assert all(one["seconds"] > 0 for one in found.values())

    # the rival stands in for faiss, and agrees in all but one neighbour of 50
    def answer(task, side, *, smoke):
        result = np.array(found[task]["result"])
        result[0, 0] += side == "theirs"
        return {"result": result.tolist(), "seconds": 1.0 + (side == "theirs")} | {
            "memory_gb": 0.5
        }

    present = lambda name: None if name == "pytorch_metric_learning" else name  # noqa: E731
    monkeypatch.setattr(retrieval, "measure_apart", answer)
    monkeypatch.setattr(retrieval.importlib.util, "find_spec", present)
    path = tmp_path / "retrieval.json"
    retrieval.main(f"--smoke --rounds 1 --json {path}".split())
    rows = json.loads(path.read_text())["rows"]
    assert [(row["task"], row["ratio"]) for row in rows] == [
        ("product", 2.0),
        ("distance", 2.0),
    ]
    assert rows[0]["difference"] == pytest.approx(1 / 50)
    assert "figures: pytorch_metric_learning not installed" in capsys.readouterr().out


def test_retrieval_refuses_no_rounds(capsys):
    with pytest.raises(SystemExit):
        retrieval.main(["--rounds", "0"])
    assert "--rounds must be at least 1; got 0" in capsys.readouterr().err
