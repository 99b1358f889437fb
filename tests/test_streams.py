"""Tests of streams: images that are read when a batch needs them."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.datasets import sources
from experiments.datasets.sources import ImageSource
from experiments.engine import checkpoints, loop, streams, supcon
from experiments.engine.config import RunConfig
from experiments.engine.data import batch_of_step
from experiments.engine.system import System, initial_state
from experiments.systems import image_folder
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages, Preparation
from siamese_jax.model import Model
from tests.stripes import write_stripes

ROOT = pathlib.Path(__file__).parent.parent
SHAPE = (2, 3, 1)
NUM_IMAGES = 10
BATCH_SIZE = 4


def numbered(reads=None, broken=()):
    """Images whose pixels are their numbers, and a list of the reads."""

    def read(number):
        if reads is not None:
            reads.append(number)
        if number in broken:
            raise UserError(f"{number}.png cannot be read")
        return np.full(SHAPE, number, np.uint8)

    return ImageSource(read, np.arange(NUM_IMAGES) // 2, SHAPE)


# The order of the images ------------------------------------------------------------------


def test_each_epoch_has_every_image_once_and_batches_go_on_over_its_end():
    def order(seed):
        stream = streams.in_epochs(numbered(), BATCH_SIZE, seed=seed)
        return np.concatenate([stream.order(step) for step in range(5)])

    epochs = order(0).reshape(2, NUM_IMAGES)
    assert np.sort(epochs).tolist() == [list(range(NUM_IMAGES))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    np.testing.assert_array_equal(order(0), order(0))
    assert order(1).tolist() != order(0).tolist()
    # the second epoch of a seed is not the first one of the next
    assert order(1)[:NUM_IMAGES].tolist() != epochs[1].tolist()


def test_a_selection_reads_nothing():
    reads = []
    odd = numbered(reads).only(np.arange(NUM_IMAGES) % 2 == 1)
    assert odd.labels.tolist() == [0, 1, 2, 3, 4]
    assert not reads
    some = odd.only(np.array([4, 0]))
    assert sources.load(some).images[:, 0, 0, 0].tolist() == [9, 1]
    assert reads == [9, 1]
    assert sources.in_memory(sources.load(some)).read(1).max() == 1


# Training -------------------------------------------------------------------------------


class Counted(NamedTuple):
    images: jax.Array
    examples: jax.Array
    labels: jax.Array


def counting_system():
    """Counts how often it sees each image, by its pixels, its number and its class."""

    def init(key):
        return {"encoder": jnp.zeros(())}, {"seen": jnp.zeros((3, NUM_IMAGES), jnp.int32)}

    def sample(key, step, data):
        images, labels, examples = batch_of_step(data, step)
        return Counted(images, examples, labels)

    def loss(params, statistics, batch, key):
        pixels = jnp.round(batch.images[:, 0, 0, 0] * 255).astype(int)
        seen = statistics["seen"]
        for row, numbers in enumerate((pixels, batch.examples, batch.labels)):
            seen = seen.at[row, numbers].add(1)
        return params["encoder"] ** 2, ({"seen": seen}, {})

    def model(state):
        return Model(state.params, lambda params, x: x.reshape(-1, 1), Preparation(SHAPE))

    return System(init, sample, loss, optax.sgd(0.1), model)


def counting_run(workdir, source, *, lost_step=None, **changes):
    """A run of four epochs in two calls. The batch of `lost_step` cannot be read."""
    config = RunConfig(
        workdir, num_steps=10, steps_per_call=5, checkpoint_every=5, **changes
    )
    loop.start(config)
    stream = streams.in_epochs(source, BATCH_SIZE, seed=config.seed)

    def order(step):
        if step == lost_step:
            raise UserError("the disk has failed")
        return stream.order(step)

    found = loop.train(config, counting_system(), stream._replace(order=order))
    return found.state.statistics["seen"]


def test_a_run_that_goes_on_sees_each_image_as_often_as_an_unbroken_one(tmp_path):
    wanted = counting_run(tmp_path / "unbroken", numbered())
    assert np.asarray(wanted[:2]).tolist() == [[4] * NUM_IMAGES] * 2  # each epoch once
    assert np.asarray(wanted[2]).tolist() == [8] * 5 + [0] * 5

    with pytest.raises(UserError, match="the disk has failed"):
        counting_run(tmp_path / "broken", numbered(), lost_step=7)
    like = initial_state(counting_system(), jax.random.key(0))
    assert int(checkpoints.load_state(tmp_path / "broken", like).step) == 5
    reads = []
    found = counting_run(tmp_path / "broken", numbered(reads))
    np.testing.assert_array_equal(found, wanted)
    assert len(reads) == 5 * BATCH_SIZE  # nothing is read that was seen before


def test_a_file_that_cannot_be_read_ends_the_run_by_its_name(tmp_path):
    with pytest.raises(UserError) as caught:
        counting_run(tmp_path, numbered(broken=[7]))
    assert str(caught.value) == "7.png cannot be read"


def test_a_step_gets_its_batch_whatever_the_form_and_the_call(tmp_path):
    by_pmap = counting_run(tmp_path, numbered(), parallel="pmap", devices=1)
    assert np.asarray(by_pmap[:2]).tolist() == [[4] * NUM_IMAGES] * 2


def test_only_some_batches_are_read_ahead():
    reads = []
    stream = streams.in_epochs(numbered(reads), BATCH_SIZE, seed=0)
    config = RunConfig(num_steps=1000, steps_per_call=5, devices=1)
    mesh = loop.devices.choose_mesh(config, BATCH_SIZE)
    calls = list(loop.calls(config, 20))
    data = streams.of_calls(config, mesh, stream, calls)
    first = next(data)
    data.close()
    assert int(first.first) == 20
    assert first.images.shape == (5, BATCH_SIZE, *SHAPE)
    np.testing.assert_array_equal(first.examples[0], stream.order(20))
    np.testing.assert_array_equal(first.images[..., 0, 0, 0], first.examples)
    np.testing.assert_array_equal(first.labels, np.asarray(first.examples) // 2)
    assert len(reads) <= (2 * 5 + 16 + 8) * BATCH_SIZE


@pytest.mark.slow
def test_each_process_reads_the_rows_of_its_own_devices(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.stream_in_processes", str(tmp_path), str(port)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [*command, number], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        for number in "01"
    ]
    assert [process.wait() for process in started] == [0, 0]
    parts = [json.loads((tmp_path / f"{number}.json").read_text()) for number in "01"]
    wanted = [4] * NUM_IMAGES
    assert [part["seen"][:2] for part in parts] == [[wanted] * 2] * 2
    assert [len(part["reads"]) for part in parts] == [10 * BATCH_SIZE // 2] * 2
    both = parts[0]["reads"] + parts[1]["reads"]
    assert [both.count(number) for number in range(NUM_IMAGES)] == wanted


# The experiment -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    names = [f"class{number}" for number in range(10)]
    return write_stripes(tmp_path_factory.mktemp("images") / "all", names=names, num=4)


def small(workdir, folder, **changes):
    return image_folder.Config(
        workdir=workdir,
        data_dir=folder,
        image_size=(16, 16),
        num_classes=4,
        num_images=2,
        widths=(4, 4),
        dim=4,
        **{"num_steps": 4, "steps_per_call": 2, "checkpoint_every": 2, "devices": 1}
        | changes,
    )


def trained(config):
    """Trains on all classes, without the evaluation."""
    loop.start(config)
    source = image_folder.find_images(config)
    data = image_folder.training_data(config, source)
    state = loop.train(config, image_folder.build(config), data).state
    return jax.tree.map(np.asarray, (state.params, state.statistics))


# what XLA does for users, which `tests/conftest.py` turns off
OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}


@pytest.mark.slow
def test_images_that_are_streamed_end_at_the_same_parameters(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=OPTIMISED))
    wanted = trained(small(tmp_path / "memory", folder))
    found = trained(small(tmp_path / "stream", folder, stream=True))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    shutil.rmtree(tmp_path / "stream" / "checkpoints" / "4")
    found = trained(small(tmp_path / "stream", folder))  # goes on in the other form
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.slow
def test_a_folder_is_streamed_and_a_broken_file_named(folder, tmp_path, monkeypatch):
    copied = shutil.copytree(folder, tmp_path / "images")
    config = small(tmp_path / "run", copied, stream=True)
    read, reads = sources.read_prepared, []

    def counted(files, preparation):
        reads.extend(files)
        return read(files, preparation)

    monkeypatch.setattr(sources, "read_prepared", counted)
    image_folder.find_images(config)
    assert not reads
    image_folder.main(config)
    names = image_folder.split_classes(image_folder.find_images(config).labels, config.seed)
    of_training = [file for file in reads if file.parent.name in names.train]
    assert len(of_training) == 4 * 8  # four batches of eight images
    assert len(reads) == len(of_training) + 4 * 4  # and the others once

    for file in copied.glob(f"{names.train[0]}/*"):
        file.write_bytes(b"no image")
    broken = dataclasses.replace(config, workdir=tmp_path / "broken", num_steps=20)
    with pytest.raises(UserError, match=rf"{names.train[0]}/\d\.png"):
        image_folder.main(broken)


def test_batches_of_a_run_in_float64_are_the_same_in_every_thread():
    """Threads that read images do not inherit the types of the thread that trains."""
    labels = np.arange(8).repeat(5)
    images = LabelledImages(np.zeros((40, 2, 2, 1), np.uint8), labels)
    source = sources.in_memory(images)
    config = supcon.SupConConfig(num_classes=4, num_images=2)
    with jax.enable_x64(True):
        order = supcon.class_stream(config, source).order
        wanted = [order(step) for step in range(4)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(order, range(4)))
    np.testing.assert_array_equal(found, wanted)
