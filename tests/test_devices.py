"""Tests that a training step of every system is the same on one device and on several."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import devices, health
from experiments.engine.config import RunConfig
from experiments.engine.system import initial_state, train_steps
from siamese_jax import batching
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation
from siamese_jax.model import Model
from tests.test_precision import small_data
from tests.test_systems import VARIANTS, small_system


def test_a_batch_that_does_not_divide_takes_fewer_devices():
    assert jax.local_device_count() >= 2
    assert devices.choose_mesh(RunConfig(), 8).size == 2
    assert devices.choose_mesh(RunConfig(), 7).size == 1
    assert devices.choose_mesh(RunConfig(devices=1), 8).size == 1
    with pytest.raises(UserError, match="--devices must divide the 7 examples"):
        devices.choose_mesh(RunConfig(devices=2), 7)
    with pytest.raises(UserError, match=r"--devices: there are \d+; got 1000"):
        devices.choose_mesh(RunConfig(devices=1000), 1000)


def test_images_are_embedded_by_all_devices_that_hold_the_parameters():
    def embed_fn(params, images):
        return images.reshape(len(images), -1) @ params["weights"]

    mesh = devices.choose_mesh(RunConfig(devices=2), 8)
    rng = np.random.default_rng(0)
    params = {"weights": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    images = rng.integers(0, 256, (11, 2, 2, 1)).astype(np.uint8)
    one = Model(params, embed_fn, Preparation((2, 2)))
    two = dataclasses.replace(one, params=devices.replicate(mesh, params))
    np.testing.assert_allclose(two.embed(images), one.embed(images), rtol=1e-6)

    def in_batches(params, images):
        return batching.map_batches(
            lambda rows: embed_fn(params, rows), images, batch_size=8
        )

    with batching.use_devices_of(two.params):
        program = jax.jit(in_batches).lower(two.params, images / np.float32(255))
    text = program.compile().as_text()
    assert "f32[4,3]" in text  # half of a batch
    assert "f32[8,3]" in text  # the whole batch, where both halves are put together


def without_health(*args, with_health, **options):
    return train_steps(*args, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_step_of_every_system_is_the_same_on_two_devices(name, monkeypatch):
    """So is the health of its embeddings, whose figures change no parameter."""
    monkeypatch.setattr(health, "is_measured", lambda step: step > 0)
    settings = VARIANTS[name][0] | {"compute_dtype": "float64"}
    if "batch_size" in settings:
        settings["batch_size"] = 4
    states, figures = {}, {}
    with jax.enable_x64(True):
        for form in ({"devices": 1}, {"devices": 2}, {"devices": 2, "parallel": "pmap"}):
            config, system = small_system(name, settings | form, 10)
            _, data = small_data(config, system)
            state = initial_state(system, jax.random.key(0))
            batch = jax.eval_shape(system.sample, jax.random.key(1), state.step, data)
            mesh = devices.choose_mesh(config, batch.images.shape[-4])
            run = devices.compile_steps(config, system, mesh)
            key = jax.random.key(1)
            arguments = devices.replicate(mesh, (key, state, data))
            if not states:
                with monkeypatch.context() as patch:
                    patch.setattr(devices, "train_steps", without_health)
                    plain = devices.compile_steps(config, system, mesh)
                    without, _ = plain(*jax.tree.map(jnp.copy, arguments), 2)
            state, metrics = run(*arguments, 2)
            states[str(form)] = state.params, state.statistics
            figures[str(form)] = {figure: metrics[figure] for figure in health.FIGURES}
    wanted, *others = states.values()
    # A bias before a batch normalisation has a gradient of rounding errors alone, some
    # 1e-18, which AdamW divides by its epsilon of 1e-8.
    close = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9)
    for found in (*others, (without.params, without.statistics)):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert a.dtype == b.dtype
            close(np.asarray(a), np.asarray(b))
    of_one, *of_two = figures.values()
    assert all(np.isfinite(figure).all() for figure in of_one.values())
    for found in of_two:
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, of_one
        )
