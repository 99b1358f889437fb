"""Tests of labels as people have them: each form works, or is refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config

from siamese_jax import identification, relations, samplers
from siamese_jax._labels import host_labels
from siamese_jax.images import LabelledImages

NUMBERS = [3, 1, 1, 7]
NAMES = ["bert", "anna", "anna", "carl"]


@pytest.fixture(autouse=True)
def _as_for_a_user(monkeypatch):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)


FORMS = {
    "list": (NUMBERS, NUMBERS),
    "tuple": (tuple(NUMBERS), NUMBERS),
    "range": (range(4), range(4)),
    "bytes of eight bits": (np.array(NUMBERS, np.uint8), NUMBERS),
    "list of array entries": (list(np.array(NUMBERS)), NUMBERS),
    "list of JAX entries": (list(jnp.array(NUMBERS)), NUMBERS),
    "JAX": (jnp.array(NUMBERS), NUMBERS),
    "objects": (np.array(NUMBERS, object), NUMBERS),
    "whole floats": (np.array(NUMBERS, np.float32), NUMBERS),
    "list of whole floats": ([3.0, 1.0, 1, 7], NUMBERS),
    "half floats": (np.array(jnp.array(NUMBERS, jnp.bfloat16)), NUMBERS),
    "names": (NAMES, NAMES),
    "array of names": (np.array(NAMES), NAMES),
    "objects that are names": (np.array(NAMES, object), NAMES),
    "list of NumPy names": (list(np.array(NAMES)), NAMES),
    "bytes": ([name.encode() for name in NAMES], [name.encode() for name in NAMES]),
    "truth values": ([True, False, False, True], [True, False, False, True]),
    "other numbers": ([0.5, 0.25, 0.25, 1.5], [0.5, 0.25, 0.25, 1.5]),
}


@pytest.mark.parametrize(("labels", "wanted"), FORMS.values(), ids=FORMS)
def test_labels_on_the_host_take_every_form(labels, wanted):
    wanted = list(wanted)
    assert host_labels("labels", labels).tolist() == wanted
    index = samplers.class_index(labels, groups=labels)
    names, numbers = np.unique(wanted, return_inverse=True)
    np.testing.assert_array_equal(index.class_of, numbers)
    assert index.smallest_class[0] in names.tolist()
    assert type(index.smallest_class[0]) is type(wanted[0])
    distances = np.array([[0.1, 0.5, 0.6, 0.7], [0.9, 0.2, 0.8, 0.7]])
    nearest = identification.nearest_classes(distances, labels)
    assert nearest.labels.tolist() == wanted[:2]
    rates = identification.identification_rates(nearest, labels[:2], labels, 1.0)
    assert rates["one_shot_accuracy"] == 1
    assert identification.strangers_let_in(np.ones((4, 4)), labels, 2.0) == 1
    images = LabelledImages(np.zeros((4, 1, 1, 1), np.uint8), labels)
    assert images.only(np.array([1, 3])).labels.tolist() == [wanted[1], wanted[3]]


ONE_AND_A_NAME = "labels must be all strings or all numbers; got 1 and 'a'"
WRONG = {
    "none of them": (["a", None, "b"], TypeError, "got 'a' and None"),
    "missing name": (np.array(["a", np.nan], object), TypeError, "got 'a' and nan"),
    "a number and a name": ([1, "a"], TypeError, ONE_AND_A_NAME),
    "objects of two kinds": (np.array([1, "a"], object), TypeError, ONE_AND_A_NAME),
    "not a number": ([1.0, np.nan], ValueError, "must be finite; got nan for example 1"),
    "infinite": (
        np.array([np.inf, 1]),
        ValueError,
        "must be finite; got inf for example 0",
    ),
    "a column": (np.zeros((3, 1), int), ValueError, r"shape \(n,\).*; got \(3, 1\)"),
    "a list of lists": ([[1], [2]], ValueError, r"one label for each example.*\(1,\)"),
    "a ragged list": ([[1], [2, 3]], ValueError, "one label for each example"),
    "objects that are lists": (np.array([[1], [2, 3]], object), ValueError, "one label"),
    "one name": ("anna", ValueError, r"shape \(n,\).*; got \(\)"),
    "one number": (3, ValueError, r"shape \(n,\).*; got \(\)"),
    "complex": (np.array([1j, 2j]), TypeError, "must be strings or numbers; got dtype"),
    "very large": ([2**70, 1], ValueError, "must fit 64 bits"),
}


@pytest.mark.parametrize(("labels", "error", "words"), WRONG.values(), ids=WRONG)
def test_other_labels_are_refused_in_one_line(labels, error, words):
    for call in (
        lambda: samplers.class_index(labels),
        lambda: identification.nearest_classes(np.ones((1, 2)), labels),
        lambda: relations.within(relations.Items(labels)),
    ):
        with pytest.raises(error, match=words) as refused:
            call()
        assert len(str(refused.value).splitlines()) == 1


def test_groups_are_refused_by_their_own_name():
    with pytest.raises(TypeError, match="groups must be all strings or all numbers"):
        samplers.class_index([1, 2], groups=["a", None])
    with pytest.raises(ValueError, match="labels must have at least one example"):
        samplers.class_index([])


WHOLE = {name: form for name, form in FORMS.items() if isinstance(form[1][0], int)}
del WHOLE["truth values"]


@pytest.mark.parametrize(("labels", "wanted"), WHOLE.values(), ids=WHOLE)
def test_relations_take_every_form_of_integers(labels, wanted):
    wanted = np.asarray(wanted)
    for compile in (lambda fn: fn, jax.jit):
        same = compile(lambda: relations.within(relations.Items(labels)).same)()
        np.testing.assert_array_equal(same, wanted[:, None] == wanted[None])
        rows = relations.Items([1, 9])
        same, where = relations.between(rows, relations.Items(labels))
        np.testing.assert_array_equal(same, np.array([1, 9])[:, None] == wanted[None])
        assert where.all()


def test_labels_may_be_traced_one_by_one():
    def same(a, b):
        return relations.within(relations.Items([a, b, a])).same

    found = jax.jit(same)(jnp.array(4), jnp.array(5))
    np.testing.assert_array_equal(found, np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]]) == 1)
    assert relations.within(relations.Items([])).same.shape == (0, 0)


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (NAMES, TypeError, "labels must be integers; got strings: number them by samplers"),
        (np.array(NAMES, object), TypeError, "got strings: number them by samplers"),
        ([0.5, 1.5], TypeError, "labels must be an integer array; got dtype float64"),
        (jnp.ones(2), TypeError, "labels must be an integer array; got dtype float32"),
        ([True, False], TypeError, "labels must be an integer array; got dtype bool"),
        ([2**40, 1], ValueError, r"must fit int32; got numbers from 1 to 1099511627776"),
        (np.array([2**63], np.uint64), ValueError, "must fit uint32; got numbers from"),
        (jnp.zeros((2, 1), int), ValueError, "labels must have 1 axis"),
    ],
)
def test_relations_refuse_other_labels_in_one_line(labels, error, words):
    for call in (
        lambda: relations.within(relations.Items(labels)),
        lambda: relations.between(relations.Items([1]), relations.Items(labels)),
        lambda: relations.equal_labels(labels, labels),
    ):
        with pytest.raises(error, match=words) as refused:
            call()
        assert len(str(refused.value).splitlines()) == 1


def test_label_sets_are_left_to_their_own_function():
    sets = np.array([[True, False], [True, True], [False, True]])
    for labels in (sets, jnp.asarray(sets), sets.tolist()):
        items = relations.Items(labels)
        found = relations.within(items, same_fn=relations.shared_label)
        np.testing.assert_array_equal(found.same, sets @ sets.T)
