"""Tests of the health of embeddings in the steps and in the log of a run."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.datasets import digits
from experiments.engine import health, logs, loop
from experiments.engine.pair_batches import PairBatch
from experiments.engine.system import initial_state, train_steps
from experiments.systems import mnist_mlp
from siamese_jax.reductions import make_terms

NAN = float("nan")


def series(**figures):
    """Metrics of 100 steps, with these figures at the tenth, the twentieth, ..."""
    healthy = {"effective_rank": 9.0, "alignment": 0.5, "uniformity": -1.0}
    arrays = {"loss": np.zeros(100)}
    for name in health.FIGURES:
        array = np.full(100, NAN)
        array[9::10] = figures.get(name, healthy.get(name, 1.0))
        arrays[name] = array
    return arrays


def test_a_collapse_is_told_once_when_it_begins_and_once_when_it_ends():
    spread = np.array([0.5, 0.001, 0.001, 0.002, 0.5, 0.5, 0.5, 0.5, 0.5, 0.002])
    watch = health.CollapseWatch([])
    assert watch.told(series(spread=spread), 0) == [
        "step 20: the embeddings have collapsed to a point: their spread is 0.0010",
        "step 50: the embeddings are spread again: their spread is 0.5000, their "
        "effective rank is 9.00",
        "step 100: the embeddings have collapsed to a point: their spread is 0.0020",
    ]
    # what was told before a run was interrupted is not told again
    earlier = [
        {n: float(x[9 + 10 * i]) for n, x in series(spread=spread).items()}
        for i in range(10)
    ]
    assert health.CollapseWatch(earlier).told(series(spread=0.002), 200) == []
    assert watch.told({"loss": np.zeros(100)}, 200) == []


def test_embeddings_that_leave_a_point_have_not_collapsed():
    leaving = np.geomspace(1e-4, 0.5, 10)
    assert health.CollapseWatch([]).told(series(spread=leaving), 0) == []
    assert len(health.CollapseWatch([]).told(series(spread=0.001), 0)) == 1
    assert "not finite" in health.CollapseWatch([]).told(series(spread=NAN), 0)[0]


def test_the_health_is_measured_every_tenth_and_then_every_hundredth_step():
    steps = [step for step in range(1, 401) if health.is_measured(step)]
    assert steps == [*range(10, 101, 10), 200, 300, 400]
    assert [bool(health.is_measured(jnp.asarray(step))) for step in (0, 110, 200)] == [
        True,  # which no step is
        False,
        True,
    ]


def test_a_line_has_the_health_where_it_was_measured_and_null_where_it_means_nothing(
    tmp_path,
):
    log = logs.Log(tmp_path, 0)
    log.write(0, series(alignment=NAN), 1.0)
    log.close()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert list(lines[0]) == ["step", "loss", "seconds"]
    assert lines[9] == {"step": 10, "loss": 0.0, "seconds": 1.0} | {
        "spread": 1.0,
        "effective_rank": 9.0,
        "alignment": None,
        "uniformity": -1.0,
        "active_share": 1.0,
    }
    spread = logs.read_log(tmp_path)["spread"]
    np.testing.assert_array_equal(np.flatnonzero(spread == 1), np.arange(9, 100, 10))
    again = logs.Log(tmp_path, 15)
    again.close()
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == lines[:15]  # null is still null
    assert [line["step"] for line in again.measured] == [10]


def test_pairs_of_one_class_are_aligned_and_padding_does_not_count():
    embeddings = jnp.array([[[1.0, 0], [0, 1], [9, 9]], [[1, 0], [1, 0], [5, 0]]])
    same, where = jnp.array([True, False, True]), jnp.array([True, True, False])
    terms = make_terms(jnp.array([0.0, 2.0, 2.0]), where)

    def loss(params, statistics, batch, key):
        embedded = health.embedded_pairs(embeddings, same, where, terms, axis_name=None)
        return params, (statistics, {health.EMBEDDED: embedded, "temperature": params})

    run = jax.jit(health.measured(loss, None))
    _, (_, metrics) = run(1.0, (), (10, None), None)
    # (1, 0), (1, 0), (1, 0) and (0, 1): the mean is (3/4, 1/4)
    assert metrics["spread"] == pytest.approx(np.sqrt(1 - (9 + 1) / 16), 1e-6)
    assert metrics["effective_rank"] == pytest.approx(1, 1e-5)
    assert metrics["alignment"] == 0
    assert metrics["uniformity"] == pytest.approx(np.log((1 + np.exp(-4)) / 2), 1e-6)
    assert metrics["active_share"] == 0.5
    assert metrics["temperature"] == 1
    _, (_, metrics) = run(1.0, (), (11, None), None)
    assert all(np.isnan(metrics[name]) for name in health.FIGURES)


@pytest.mark.slow
def test_measuring_the_health_changes_no_bit_of_the_parameters(monkeypatch):
    monkeypatch.setattr(health, "is_measured", lambda step: step > 0)
    config = mnist_mlp.Config(dataset="digits", batch_size=32, num_steps=3)
    data = mnist_mlp.training_data(config, digits.load_splits("digits"))
    system = mnist_mlp.build(config)
    ends = [
        jax.jit(partial(train_steps, system, num_steps=3, with_health=with_health))(
            jax.random.key(1), initial_state(system, jax.random.key(0)), data
        )
        for with_health in (False, True)
    ]
    (plain, few), (measured, more) = ends
    jax.tree.map(np.testing.assert_array_equal, plain, measured)
    assert more.keys() - few.keys() == set(health.FIGURES)


# Runs -----------------------------------------------------------------------------------


def collapsing(system):
    """The same system, whose loss is the logarithm of the spread."""

    def loss(params, statistics, batch: PairBatch, key):
        value, (statistics, metrics) = system.loss(params, statistics, batch, key)
        embeddings = metrics[health.EMBEDDED].embeddings
        centre = jnp.mean(embeddings, axis=(0, 1), keepdims=True)
        spread = jnp.mean((embeddings - centre) ** 2) / jnp.mean(embeddings**2)
        return jnp.log(spread) + 0 * value, (statistics, metrics)

    return system._replace(loss=loss)


@pytest.mark.slow
def test_a_run_names_its_collapse_and_a_healthy_run_has_none(tmp_path, capsys):
    config = mnist_mlp.Config(
        dataset="digits",
        dropout=0.0,
        num_steps=200,
        steps_per_call=50,
        checkpoint_every=100,
        batch_size=32,
    )
    data = mnist_mlp.training_data(config, digits.load_splits("digits"))
    system = mnist_mlp.build(config)
    shown = {}
    fast = collapsing(mnist_mlp.build(dataclasses.replace(config, learning_rate=0.01)))
    for name, one in (("healthy", system), ("collapsing", fast)):
        run = dataclasses.replace(config, workdir=tmp_path / name)
        loop.start(run)
        loop.train(run, one, data)
        shown[name] = [
            line for line in capsys.readouterr().out.splitlines() if "embeddings" in line
        ]
    assert shown["healthy"] == []
    assert len(shown["collapsing"]) == 1
    assert "the embeddings have collapsed to a point" in shown["collapsing"][0]
    logged = logs.read_log(tmp_path / "healthy")
    measured = ~np.isnan(logged["spread"])
    assert logged["step"][measured].tolist() == [*range(10, 101, 10), 200]
    assert (logged["spread"][measured] > 0.2).all()
    assert (logged["effective_rank"][measured] > 5).all()
    active = logged["active_share"][measured]
    assert active[-1] < active[0]  # pairs beyond the margin teach no more
