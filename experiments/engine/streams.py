"""Training images that do not fit into memory: each batch is read when it is needed.

A `Stream` says which images the batch of a step has. That follows from the seed and the
number of the step alone, so the number of the step, which every checkpoint has, is the
exact position in the data: a run that goes on sees each image as often as an unbroken one.

Grain reads batches ahead in several threads, and the data of the next compiled call are
moved to the devices while a call runs, so that the devices hold the images of two calls.
With `--parallel jit` each process reads the rows of its own devices. With `--parallel pmap`
it reads the whole batch.
"""

import collections
import itertools
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.datasets.sources import ImageSource
from experiments.engine import devices
from experiments.engine.config import RunConfig
from experiments.engine.data import StreamedBatches
from siamese_jax import samplers

_NUM_THREADS = 8
_NUM_READ_AHEAD = 16  # batches, in the memory of the host
_NUM_CALLS_AHEAD = 1  # calls whose data are on the devices before they begin


class Stream(NamedTuple):
    """Images, and the batch of each step.

    Attributes:
      source: The training images.
      classes: The class number of each image.
      order: `order(step) -> examples`, the numbers of the n images of a batch. Several
        threads may call it.
    """

    source: ImageSource
    classes: np.ndarray
    order: Callable[[int], np.ndarray]


def in_epochs(source: ImageSource, batch_size: int, *, seed: int) -> Stream:
    """Streams every image once in each epoch, in an order that differs by epoch and seed.

    A batch that an epoch does not fill goes on with the images of the next epoch.
    """
    import grain

    numbers = grain.MapDataset.range(len(source.labels))
    # without `seed`, the second epoch of a seed would be the first of the next seed
    order = numbers.seed(seed).shuffle().repeat().batch(batch_size)
    classes = samplers.class_index(source.labels).class_of
    return Stream(source, np.asarray(classes), order.__getitem__)


def shapes(data: Any) -> Any:
    """What `System.sample` is given in place of the data, as far as shapes matter."""
    if not isinstance(data, Stream):
        return data
    numbers = jax.ShapeDtypeStruct((1, len(data.order(0))), np.int32)
    images = jax.ShapeDtypeStruct((*numbers.shape, *data.source.image_shape), np.uint8)
    first = jax.ShapeDtypeStruct((), np.int32)
    return StreamedBatches(first, images, numbers, numbers)


def of_calls(
    config: RunConfig, mesh: Mesh, data: Any, calls: Iterable[tuple[int, int]]
) -> Generator[Any, None, None]:
    """The data of each compiled call, on the devices.

    Args:
      config: The settings of the run.
      mesh: Its devices.
      data: A `Stream`, or data for all calls, which are moved to the devices once.
      calls: The steps before and after each call.

    Raises:
      UserError: If an image cannot be read.
    """
    if not isinstance(data, Stream):
        yield from itertools.repeat(devices.replicate(mesh, data))
    elif calls := list(calls):
        rows = devices.rows_of_process(config, len(data.order(0)))
        batches = iter(_read_ahead(data, calls[0][0], calls[-1][1], rows))
        ahead = ThreadPoolExecutor(1)
        waiting: collections.deque[Future[StreamedBatches]] = collections.deque()

        def read(first: int, last: int) -> StreamedBatches:
            some = list(itertools.islice(batches, last - first))
            images, classes, examples = map(np.stack, zip(*some, strict=True))
            small = StreamedBatches(np.int32(first), (), classes, examples)
            return devices.replicate(mesh, small)._replace(
                images=devices.spread(config, mesh, images)
            )

        try:
            for call in calls:
                waiting.append(ahead.submit(read, *call))
                if len(waiting) > _NUM_CALLS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            ahead.shutdown(cancel_futures=True)
            batches.close()


def _read_ahead(stream: Stream, first: int, last: int, rows: slice) -> Any:
    """The batches of the steps `first` to `last` - 1, as a data set of grain.

    Each is a tuple of the images of some rows of the batch, and of the class numbers and
    the numbers of all its images.
    """
    import grain

    def read(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        examples = stream.order(step)
        images = [stream.source.read(number) for number in examples[rows].tolist()]
        classes = stream.classes[examples].astype(np.int32)
        return np.stack(images), classes, examples.astype(np.int32)

    options = grain.ReadOptions(_NUM_THREADS, _NUM_READ_AHEAD)
    return grain.MapDataset.range(first, last).map(read).to_iter_dataset(options)
