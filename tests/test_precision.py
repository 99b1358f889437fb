"""Tests of `--compute-dtype`: which type of number each part of a run computes in."""

import dataclasses
import inspect
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main as run_experiment
from experiments.engine import loop, photographs, precision, processes
from experiments.engine.config import RunConfig
from experiments.engine.data import ClassData
from experiments.engine.logs import read_log
from experiments.engine.pair_batches import PairData
from experiments.engine.system import (
    initial_state,
    load_system,
    system_names,
    train_steps,
)
from experiments.evaluations import digit_pairs, unseen_faces
from experiments.evaluations.digit_pairs import DigitEvaluation
from experiments.systems import (
    embedding_head,
    image_folder,
    letter_names,
    mnist_mlp,
    omniglot_supcon,
    orl_hog,
)
from siamese_jax import samplers
from siamese_jax.errors import UserError
from siamese_jax.model import load_model
from tests.contract.jaxprs import equations
from tests.test_systems import EACH_VARIANT, VARIANTS, small_system


def small_data(config, system):
    """Images of noise: 16 classes, in two groups, of eight images each."""
    state = jax.eval_shape(lambda: initial_state(system, jax.random.key(0)))
    kind = inspect.signature(system.sample).parameters["data"].annotation
    rng, labels = np.random.default_rng(0), np.arange(128) // 8
    index = samplers.class_index(labels, groups=np.array(["a", "b"])[labels // 8])
    if kind is embedding_head.HeadData:
        return state, embedding_head.training_data(rng.normal(size=(128, 12)), labels)
    shape = system.model(state).preparation.image_shape
    images = jnp.asarray(rng.integers(0, 256, (128, *shape), np.uint8))
    if kind is letter_names.LetterData:
        names = rng.integers(1, 38, (16, letter_names.LENGTH), np.int8)
        return state, kind(images, index, jnp.asarray(names))
    if kind is not PairData:
        return state, ClassData(images, index)
    pairs = samplers.sample_pairs(jax.random.key(0), index, 20)
    return state, PairData(images, pairs)


def traced_step(name, settings):
    """The new state, the metrics and all operations of one training step."""
    config, system = small_system(name, settings, 10)
    state, data = small_data(config, system)

    def step(state):
        return train_steps(system, jax.random.key(0), state, data, 1)

    program, (new, metrics) = jax.make_jaxpr(step, return_shape=True)(state)
    return new, metrics, [eqn for eqn, _ in equations(program.jaxpr)]


def float_types(tree):
    types = {getattr(x, "dtype", None) for x in jax.tree.leaves(tree)} - {None}
    return {str(x) for x in types if jnp.issubdtype(x, jnp.floating)}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), EACH_VARIANT)
def test_in_float64_nothing_but_the_learning_rate_is_float32(name, settings):
    with jax.enable_x64(True):
        state, metrics, operations = traced_step(
            name, settings | {"compute_dtype": "float64"}
        )
    assert float_types((state, metrics)) == {"float64"}
    rounded = [
        eqn
        for eqn in operations
        for x in eqn.outvars
        if "float32" in float_types(x.aval) and x.aval.size > 2  # the schedule's two parts
    ]
    assert not rounded, rounded[0].source_info.traceback


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - {"orl_hog"}))
def test_in_bfloat16_the_network_computes_and_the_rest_is_float32(name):
    state, metrics, operations = traced_step(
        name, VARIANTS[name][0] | {"compute_dtype": "bfloat16"}
    )
    assert float_types((state, metrics)) == {"float32"}
    products = [
        {x.aval.dtype for x in eqn.invars}
        for eqn in operations
        if eqn.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    kernels = [x for x in jax.tree.leaves(state.params["encoder"]) if x.ndim > 1]
    num_layers = len(kernels) - (name == "omniglot_supcon")  # whose last one is float32
    assert products.count({jnp.dtype("bfloat16")}) >= 2 * num_layers  # and their gradients


def test_oriented_gradients_are_not_measured_in_bfloat16():
    config = orl_hog.Config(compute_dtype="bfloat16")
    words = "--compute-dtype bfloat16 is of no use with --encoder hog"
    with pytest.raises(UserError, match=words):
        photographs.check_encoder(config, unseen_faces.PREPARATION, "size")
    conv = dataclasses.replace(config, encoder="conv")
    photographs.check_encoder(conv, unseen_faces.PREPARATION, "size")


def test_a_network_of_ones_own_is_not_trained_by_pmap():
    config = orl_hog.Config(encoder="flax.linen:Dense", parallel="pmap")
    with pytest.raises(UserError, match="--parallel pmap does not take --encoder"):
        photographs.check_encoder(config, unseen_faces.PREPARATION, "size")


# The type that a run chooses ------------------------------------------------------------


def device(platform, **named):
    return SimpleNamespace(platform=platform, device_kind=f"some {platform}", **named)


@pytest.mark.parametrize(
    ("device", "seconds", "wanted"),
    [
        (device("tpu"), None, "bfloat16"),
        (device("gpu", compute_capability="9.0"), None, "bfloat16"),
        (device("gpu", compute_capability="8.0"), None, "bfloat16"),
        (device("gpu", compute_capability="7.5"), (1.0, 1.1), "float32"),
        (device("gpu", compute_capability="gfx90a"), (1.0, 2.0), "bfloat16"),
        (device("cpu"), (1.0, 2.0), "bfloat16"),
        (device("cpu"), (1.0, 1.19), "float32"),
        (device("cpu"), (1.0, 0.8), "float32"),
    ],
)
def test_bfloat16_is_chosen_by_the_kind_of_the_device_or_by_what_is_measured(
    device, seconds, wanted, monkeypatch
):
    monkeypatch.setattr(precision, "measured_seconds", lambda: seconds)
    choice = precision.choose(omniglot_supcon.Config(), device)
    assert choice.dtype == wanted
    assert device.device_kind in choice.reason


@pytest.mark.parametrize(
    ("config", "on_cpu", "on_tpu"),
    [
        (omniglot_supcon.Config(), "bfloat16", "bfloat16"),
        (image_folder.Config(), "float32", "bfloat16"),
        (orl_hog.Config(), "float32", "float32"),
        (orl_hog.Config(encoder="conv"), "float32", "bfloat16"),
    ],
)
def test_networks_without_bfloat16_products_compute_in_float32(
    config, on_cpu, on_tpu, monkeypatch
):
    monkeypatch.setattr(precision, "measured_seconds", lambda: (1.0, 9.0))
    found = [precision.choose(config, device(name)).dtype for name in ("cpu", "tpu")]
    assert found == [on_cpu, on_tpu]


@pytest.mark.slow
def test_the_measured_convolution_multiplies_in_its_type():
    narrow, wide = precision.measured_seconds()
    assert 0 < narrow < 10
    assert 0 < wide < 10
    for dtype in ("bfloat16", "float32"):
        run = precision._convolution_in(jnp.dtype(dtype))
        operations = [eqn for eqn, _ in equations(jax.make_jaxpr(run)().jaxpr)]
        products = [
            {str(x.aval.dtype) for x in eqn.invars}
            for eqn in operations
            if eqn.primitive.name == "dot_general" and eqn.outvars[0].aval.size > 10_000
        ]
        assert products.count({dtype}) >= 3


def test_a_choice_is_said_and_kept_for_the_folder_of_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(precision, "measured_seconds", lambda: (0.5, 1.0))
    asked = omniglot_supcon.Config(num_steps=3)
    config = precision.settled(asked)
    said = capsys.readouterr().out
    assert said.startswith(
        "computes in bfloat16: a convolution takes 0.5000 s in bfloat16,"
    )
    assert said.endswith("(--compute-dtype float32 or bfloat16 sets the type)\n")
    assert config.compute_dtype == "bfloat16"
    assert config.directory == asked.directory  # is not named by what was chosen
    assert loop.start(config)
    assert json.loads((config.directory / "config.json").read_text())["compute_dtype"] == (
        "bfloat16"
    )

    monkeypatch.setattr(precision, "measured_seconds", lambda: (2.0, 1.0))
    assert precision.settled(asked).compute_dtype == "float32"  # there is no step yet
    (config.directory / "metrics.jsonl").touch()
    capsys.readouterr()
    assert precision.settled(asked) == config
    assert "was started in it" in capsys.readouterr().out
    other = dataclasses.replace(asked, workdir=config.directory, compute_dtype="float32")
    with pytest.raises(UserError, match="compute_dtype: bfloat16 there, float32 asked"):
        loop.start(precision.settled(other))


def test_a_type_that_is_given_is_not_measured_and_wrong_settings_come_first(monkeypatch):
    monkeypatch.setattr(precision, "choose", None)
    config = mnist_mlp.Config(compute_dtype="bfloat16")
    assert precision.settled(config) is config
    with pytest.raises(UserError, match="--num-steps must be at least 0; got -1"):
        precision.settled(omniglot_supcon.Config(num_steps=-1))


def test_all_processes_take_the_choice_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "from_first", lambda make_fn, like: like + 1)
    config = RunConfig(workdir=tmp_path, compute_dtype="auto")
    assert precision.settled(config).compute_dtype == "bfloat16"


def test_every_system_settles_its_type_before_any_work(tmp_path, monkeypatch):
    class Settled(Exception):
        pass

    def settle(config):
        assert config.compute_dtype == "auto"
        raise Settled

    names = [name for name in system_names() if hasattr(load_system(name), "build")]
    assert len(names) >= 11
    for name in names:
        module = load_system(name)
        monkeypatch.setattr(module, "settled", settle)
        with pytest.raises(Settled):
            module.main(module.Config(workdir=tmp_path, compute_dtype="auto"))


def test_what_was_not_chosen_is_not_trained(tmp_path):
    with pytest.raises(ValueError, match=r"compute_dtype must be what .* chose; got auto"):
        loop.start(RunConfig(workdir=tmp_path, compute_dtype="auto"))
    with pytest.raises(TypeError, match="auto"):
        omniglot_supcon.build(omniglot_supcon.with_preset(omniglot_supcon.Config()))


# Runs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_command_in_float64_has_parameters_and_loss_in_float64(tmp_path, monkeypatch):
    """It goes on in float64 too, leaves no trace in the process, and saves float32."""
    finished, finish = [], loop.finish

    def catch(config, metrics, trained, model):
        finished.append(trained.state)
        finish(config, metrics, trained, model)

    monkeypatch.setattr(loop, "finish", catch)
    monkeypatch.setattr(
        digit_pairs,
        "evaluate",
        lambda config, splits, model, **options: DigitEvaluation(model, {}, *[None] * 4),
    )
    monkeypatch.setattr(digit_pairs, "write_report", lambda *_: None)
    command = ["mnist_mlp", "--dataset", "digits", "--compute-dtype", "float64"]
    command += ["--batch-size", "8", "--steps-per-call", "1", "--checkpoint-every", "1"]
    workdir = tmp_path / "run"
    run_experiment([*command, "--num-steps", "3", "--workdir", str(workdir)])
    assert not jax.config.jax_enable_x64
    assert float_types(finished[0]) == {"float64"}
    losses = read_log(workdir)["loss"]
    assert (losses != losses.astype(np.float32)).all()
    run_experiment([*command, "--num-steps", "4", "--workdir", str(workdir)])
    unbroken = tmp_path / "unbroken"
    run_experiment([*command, "--num-steps", "4", "--workdir", str(unbroken)])
    _, lengthened, wanted = finished
    jax.tree.map(np.testing.assert_array_equal, lengthened, wanted)
    assert float_types(lengthened) == {"float64"}
    model = load_model(workdir / "model")
    assert float_types(model.params) == {"float32"}
    kernel = wanted.params["encoder"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(
        model.params["Dense_0/kernel"], np.asarray(kernel).astype(np.float32)
    )
    assert model.embed(np.zeros((2, 8, 8, 1), np.uint8)).dtype == jnp.float32


def test_a_run_in_float64_starts_from_the_parameters_of_one_in_float32():
    system = mnist_mlp.build(mnist_mlp.Config(dataset="digits"))
    narrow = initial_state(system, jax.random.key(0)).params
    with jax.enable_x64(True):
        wide = initial_state(system, jax.random.key(0)).params
    jax.tree.map(np.testing.assert_array_equal, wide, narrow)
    assert float_types(wide) == {"float64"}


def test_a_type_that_the_process_does_not_have_is_refused_before_any_work(tmp_path):
    config = mnist_mlp.Config(workdir=tmp_path / "run", compute_dtype="float64")
    with pytest.raises(UserError, match="--compute-dtype float64 needs jax_enable_x64 to"):
        loop.start(config)
    with jax.enable_x64(True), pytest.raises(UserError, match="float32 needs jax_enable_x"):
        loop.start(dataclasses.replace(config, compute_dtype="float32"))
    assert not config.workdir.exists()
