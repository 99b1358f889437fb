"""Tests of the table of results: one row for a command, each seed once."""

from experiments.__main__ import list_experiments
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


def test_figures_that_some_of_the_runs_have_are_left_out():
    runs = [result(0, 0.5), result(1, 0.7)]
    runs[0]["metrics"]["pair_eer"] = 0.1
    ((_, figure, *_),) = results_table.make_rows(runs)
    assert figure == "one_shot_accuracy"


def test_an_interval_that_is_not_symmetric_has_two_ends():
    ends = {"let_in_at_0.01_low": 0.0, "let_in_at_0.01_high": 0.0135}
    metrics = {"let_in_at_0.01": 0.005} | ends
    found = results_table.summarize([metrics], "let_in_at_0.01")
    assert found == ("0.0050", "0.0000 to 0.0135 (95 %)")
    undefined = metrics | dict.fromkeys(ends)
    assert results_table.summarize([undefined], "let_in_at_0.01") == ("0.0050", "")


def test_every_system_has_its_figures():
    assert results_table.FIGURES.keys() == list_experiments().keys()
