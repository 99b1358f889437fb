"""Tests of the table of results: one row for a command, each seed once."""

from experiments.evaluations import results_table


def result(seed, accuracy, seconds=10.0):
    return {
        "command": "python -m experiments glyphs",
        "seed": seed,
        "metrics": {"one_shot_accuracy": accuracy},
        "seconds": seconds,
        "num_steps": 800,
    }


def test_a_seed_counts_once():
    runs = [result(0, 0.5), result(1, 0.7), result(0, 0.6), result(1, 0.7)]
    ((name, figure, value, spread, seeds, steps, _),) = results_table.make_rows(runs)
    assert (name, figure, steps) == ("`glyphs`", "one_shot_accuracy", "800")
    assert (value, spread, seeds) == ("0.6500", "0.0707", "2")  # .6 and .7
