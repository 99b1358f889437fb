"""Tests of training and batching: many steps, two devices, and no dropped example."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from siamese_jax import batching, encoders, losses, samplers, training
from siamese_jax.distances import euclidean_distance
from siamese_jax.siamese import twin
from tests.contract import as_for_a_user

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
OPTIMIZER = optax.sgd(
    0.1, momentum=0.9
)  # Adam would magnify the rounding of tiny gradients
ENCODER = encoders.MnistMlp(dropout=0.0, dim=8)
LABELS = np.repeat(np.arange(4), 5)
INDEX = samplers.class_index(LABELS)
IMAGES = jnp.asarray(
    np.random.default_rng(0).integers(0, 256, size=(20, 4, 4, 1)), jnp.uint8
)
DATA = {"images": IMAGES, "index": INDEX}
NUM_PAIRS = 8


def pairs_of(key, step, data):
    pairs = samplers.sample_pairs(key, data["index"], NUM_PAIRS)
    return {"images": data["images"][pairs.examples] / 255, "same": pairs.same}


def share_of_pairs(key, step, data):
    """This device's half of the same global batch."""
    batch = pairs_of(key, step, data)
    half = NUM_PAIRS // 2
    start = lax.axis_index("devices") * half
    return {
        "images": lax.dynamic_slice_in_dim(batch["images"], start, half, axis=1),
        "same": lax.dynamic_slice_in_dim(batch["same"], start, half),
    }


def loss_fn(params, statistics, batch, key):
    a, b = twin(lambda p, x: ENCODER.apply({"params": p}, x))(params, batch["images"])
    distances = euclidean_distance(a, b)
    metrics = {"mean_distance": jnp.mean(distances)}
    return losses.contrastive_loss(distances, batch["same"]), (statistics, metrics)


@pytest.fixture
def state():
    params = ENCODER.init(KEY, jnp.zeros((1, 4, 4, 1)))["params"]
    return training.init_state(params, OPTIMIZER)


steps = partial(training.train_steps, loss_fn=loss_fn, optimizer=OPTIMIZER)


def assert_states_equal(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_a_run_in_pieces_is_the_unbroken_run_bit_for_bit(state):
    run = jax.jit(partial(steps, num_steps=3, batch_fn=pairs_of))
    halfway, first = run(KEY, state, DATA)
    whole, second = run(KEY, halfway, DATA)
    assert int(whole.step) == 6
    again, _ = run(KEY, state, DATA)
    again, repeated = run(KEY, again, DATA)
    assert_states_equal(whole, again, rtol=0)
    np.testing.assert_array_equal(second["loss"], repeated["loss"])
    assert first["loss"].shape == (3,)
    assert (first["loss"] != second["loss"]).any()


def test_many_steps_equal_single_steps(state):
    together, metrics = jax.jit(partial(steps, num_steps=2, batch_fn=pairs_of))(
        KEY, state, DATA
    )
    one = jax.jit(partial(training.train_step, loss_fn=loss_fn, optimizer=OPTIMIZER))
    batch_key, loss_key = jax.random.split(KEY)
    for number in range(2):
        batch = pairs_of(jax.random.fold_in(batch_key, number), number, DATA)
        state, single = one(loss_key, state, batch)
        np.testing.assert_allclose(single["loss"], metrics["loss"][number], rtol=1e-5)
    assert_states_equal(together, state, rtol=1e-4, atol=1e-6)


def test_the_loss_falls(state):
    _, metrics = jax.jit(partial(steps, num_steps=400, batch_fn=pairs_of))(KEY, state, DATA)
    assert metrics["loss"][-50:].mean() < 0.5 * metrics["loss"][:10].mean()


def test_the_donated_state_is_gone(state):
    run = jax.jit(partial(steps, num_steps=1, batch_fn=pairs_of), donate_argnums=1)
    run(KEY, state, DATA)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def replicate(tree):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tree)


def test_one_step_on_two_devices_equals_one_device(state):
    batch = pairs_of(KEY, 0, DATA)
    shares = {
        "images": jnp.moveaxis(batch["images"].reshape(2, 2, 4, 4, 4, 1), 1, 0),
        "same": batch["same"].reshape(2, 4),
    }
    one = jax.jit(partial(training.train_step, loss_fn=loss_fn, optimizer=OPTIMIZER))
    two = jax.pmap(
        partial(
            training.train_step, loss_fn=loss_fn, optimizer=OPTIMIZER, axis_name="devices"
        ),
        axis_name="devices",
        in_axes=(None, 0, 0),
    )
    wanted, metrics = one(KEY, state, batch)
    found, shared = two(KEY, replicate(state), shares)
    for device in range(2):
        on_device = jax.tree.map(lambda leaf, i=device: leaf[i], found)
        assert_states_equal(on_device, wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(shared["loss"][device], metrics["loss"], rtol=1e-5)


def test_many_steps_on_two_devices_draw_what_one_device_draws(state):
    one = jax.jit(partial(steps, num_steps=3, batch_fn=pairs_of))
    two = jax.pmap(
        partial(steps, num_steps=3, batch_fn=share_of_pairs, axis_name="devices"),
        axis_name="devices",
        in_axes=(None, 0, None),
    )
    wanted, metrics = one(KEY, state, DATA)
    found, shared = two(KEY, replicate(state), DATA)
    assert_states_equal(
        jax.tree.map(lambda leaf: leaf[0], found), wanted, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(shared["loss"][0], metrics["loss"], rtol=1e-4)


def test_batch_statistics_move_and_are_used():
    encoder = encoders.ConvNet(widths=(4,), dim=3)
    variables = encoder.init(KEY, jnp.zeros((1, 4, 4, 1)))

    def loss_fn(params, statistics, batch, key):
        def apply_fn(params, x):
            variables = {"params": params, "batch_stats": statistics}
            out, updates = encoder.apply(variables, x, train=True, mutable=["batch_stats"])
            return out, updates["batch_stats"]

        (a, b), statistics = twin(apply_fn, has_statistics=True)(params, batch["images"])
        loss = losses.contrastive_loss(euclidean_distance(a, b), batch["same"])
        return loss, (statistics, {})

    state = training.init_state(
        variables["params"], OPTIMIZER, statistics=variables["batch_stats"]
    )
    run = jax.jit(
        partial(
            training.train_steps,
            num_steps=2,
            batch_fn=pairs_of,
            loss_fn=loss_fn,
            optimizer=OPTIMIZER,
        )
    )
    after, _ = run(KEY, state, DATA)
    for old, new in zip(
        jax.tree.leaves(state.statistics), jax.tree.leaves(after.statistics), strict=True
    ):
        assert old.shape == new.shape
        assert (old != new).any()


@pytest.mark.parametrize("num_rows", [1, 4, 5, 8, 9])
def test_mapping_in_batches_drops_nothing(num_rows):
    rows = jnp.arange(num_rows, dtype=jnp.float32)
    sizes = []

    def fn(batch):
        sizes.append(batch["x"].shape)
        return {"y": batch["x"] * 2}

    out = batching.map_batches(fn, {"x": rows}, batch_size=4)
    np.testing.assert_array_equal(out["y"], 2 * rows)
    assert set(sizes) == {(4,)}


def test_unequal_rows_are_refused():
    with pytest.raises(ValueError, match=r"same number of rows, at least 1; got \[2, 3\]"):
        batching.map_batches(lambda x: x, (jnp.ones(2), jnp.ones(3)), batch_size=2)


def test_the_state_a_step_returns_does_not_compile_it_anew():
    """A weakly typed parameter would: its first update gives it a firm type."""
    num_traces = 0

    def loss_fn(params, statistics, batch, key):
        nonlocal num_traces
        num_traces += 1
        return params**2, (statistics, {})

    state = training.init_state(jnp.log(0.5), OPTIMIZER)
    step = jax.jit(partial(training.train_step, loss_fn=loss_fn, optimizer=OPTIMIZER))
    for _ in range(3):
        state, _ = step(KEY, state, None)
    assert num_traces == 1


def noisy_loss(params, statistics, batch, key):
    """Reports what the key gives, and a counter and a mean as statistics."""
    draw = jax.random.normal(key, ())
    statistics = {"count": statistics["count"] + 1, "mean": jnp.mean(batch)}
    return jnp.sum(params * batch), (statistics, {"draw": draw, "square": draw**2})


def noisy_state():
    statistics = {"count": jnp.zeros((), jnp.int32), "mean": jnp.zeros(())}
    return training.init_state(jnp.zeros(2), OPTIMIZER, statistics=statistics)


def test_one_key_serves_a_whole_run():
    step = jax.jit(partial(training.train_step, loss_fn=noisy_loss, optimizer=OPTIMIZER))
    state, draws = noisy_state(), set()
    for _ in range(3):
        state, metrics = step(KEY, state, jnp.ones(2))
        draws.add(float(metrics["draw"]))
    assert len(draws) == 3


def test_no_two_steps_share_a_key_and_all_devices_do():
    """Nor does a loss share one with a batch, which is the same for all devices."""
    keys = {"batch": [], "loss": []}

    def record(name, key):
        jax.debug.callback(
            lambda numbers: keys[name].append(tuple(np.asarray(numbers).tolist())),
            jax.random.key_data(key),
        )

    def batch_fn(key, step, data):
        record("batch", key)
        return data

    def loss_fn(params, statistics, batch, key):
        record("loss", key)
        return jnp.sum(params * batch), (statistics, {})

    run = partial(
        training.train_steps,
        num_steps=5,
        batch_fn=batch_fn,
        loss_fn=loss_fn,
        optimizer=OPTIMIZER,
        axis_name="devices",
    )
    state = training.init_state(jnp.ones(2), OPTIMIZER)
    jax.block_until_ready(
        jax.vmap(run, in_axes=(None, None, 0), axis_name="devices", axis_size=3)(
            KEY, state, jnp.ones((3, 2))
        )
    )
    jax.effects_barrier()
    assert len(set(keys["batch"])) == 5
    assert len(set(keys["loss"])) == 5
    assert not set(keys["batch"]) & set(keys["loss"])


def test_devices_draw_alike_and_agree_on_the_statistics():
    step = partial(
        training.train_step, loss_fn=noisy_loss, optimizer=OPTIMIZER, axis_name="devices"
    )
    state, metrics = jax.pmap(step, axis_name="devices", in_axes=(None, 0, 0))(
        KEY, replicate(noisy_state()), jnp.array([[1.0, 1.0], [3.0, 3.0]])
    )
    mean, square = metrics["draw"][0], metrics["square"][0]
    np.testing.assert_allclose(square, mean**2, rtol=1e-6)  # one draw
    np.testing.assert_array_equal(state.statistics["mean"], [2.0, 2.0])
    np.testing.assert_array_equal(state.statistics["count"], [1, 1])
    assert state.statistics["count"].dtype == jnp.int32


def test_devices_do_not_average_counters_and_flags():
    def loss_fn(params, statistics, batch, key):
        odd = batch > 2
        statistics = {"count": jnp.where(odd, 8, 3), "seen": odd, "mean": batch}
        return params * batch, (statistics, {"num_valid": jnp.where(odd, 8, 3)})

    step = partial(
        training.train_step, loss_fn=loss_fn, optimizer=OPTIMIZER, axis_name="devices"
    )
    statistics = {"count": jnp.array(0), "seen": jnp.array(False), "mean": jnp.array(0.0)}
    state = training.init_state(jnp.ones(()), OPTIMIZER, statistics=statistics)
    state, metrics = jax.pmap(step, axis_name="devices", in_axes=(None, None, 0))(
        KEY, state, jnp.array([1.0, 4.0])
    )
    for name, wanted in (("count", 8), ("seen", True), ("mean", 2.5)):
        found = state.statistics[name]
        assert found.dtype == statistics[name].dtype
        np.testing.assert_array_equal(found, [wanted, wanted])
    np.testing.assert_array_equal(metrics["num_valid"], [5.5, 5.5])  # a metric has a mean


def test_under_shard_map_gradients_are_averaged_too():
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    step = partial(
        training.train_step, loss_fn=noisy_loss, optimizer=OPTIMIZER, axis_name="devices"
    )
    spec = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        lambda key, state, batch: step(key, state, batch[0])[0].params,
        mesh=mesh,
        in_specs=(spec(), spec(), spec("devices")),
        out_specs=spec(),
    )
    batch = jnp.array([[1.0, 1.0], [3.0, 3.0]])
    params = jax.jit(sharded)(KEY, noisy_state(), batch)
    np.testing.assert_allclose(params, -0.1 * batch.mean(axis=0), rtol=1e-6)


def test_under_shard_map_each_device_may_have_parameters_of_its_own():
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    by_device = jax.sharding.PartitionSpec("devices")

    def one_device(params, x):
        def loss_fn(params, statistics, batch, key):
            return jnp.sum(params * batch), (statistics, {})

        state = training.init_state(params, optax.sgd(1.0))
        step = partial(training.train_step, loss_fn=loss_fn, optimizer=optax.sgd(1.0))
        return step(KEY, state, x, axis_name="devices")[0].params

    sharded = jax.shard_map(
        one_device, mesh=mesh, in_specs=(by_device, by_device), out_specs=by_device
    )
    found = jax.jit(sharded)(jnp.array([5.0, 7.0]), jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(found, [3.0, 5.0])  # less the mean of both gradients


def test_a_metric_named_loss_is_refused():
    def loss_fn(params, statistics, batch, key):
        return params**2, (statistics, {"loss": params})

    with pytest.raises(ValueError, match='must not name a metric "loss"'):
        training.train_step(
            KEY,
            training.init_state(jnp.ones(()), OPTIMIZER),
            None,
            loss_fn=loss_fn,
            optimizer=OPTIMIZER,
        )


@pytest.mark.parametrize(
    "statistics", [jnp.zeros(2), jnp.zeros(3, jnp.bfloat16), jnp.zeros(3, int), ()]
)
def test_statistics_of_another_type_are_refused(statistics):
    state = training.init_state(jnp.ones(()), OPTIMIZER, statistics=jnp.ones(3))
    functions = {
        "loss_fn": lambda params, *_: (params, (statistics, {})),
        "optimizer": OPTIMIZER,
    }
    words = r"statistics of the types that they had, float32\[3\]; got "
    with pytest.raises(ValueError, match=words):
        training.train_step(KEY, state, None, **functions)
    with pytest.raises(ValueError, match=words):
        training.train_steps(
            KEY, state, None, num_steps=2, batch_fn=lambda *_: None, **functions
        )


def test_a_function_that_loses_rows_is_refused():
    with pytest.raises(ValueError, match="fn must return 2 rows for 2 rows"):
        batching.map_batches(lambda x: x[:1], jnp.arange(6), batch_size=2)


def test_mixed_precision_computes_in_half_and_keeps_the_parameters_type():
    seen = []

    def apply_fn(params, x, key):
        seen.append((params["w"].dtype, x.dtype, key.dtype))
        return x @ params["w"], jnp.zeros(2, jnp.int32)

    params = {"w": jax.random.normal(KEY, (3, 4))}
    x = jax.random.normal(jax.random.key(1), (5, 3))
    mixed = training.with_compute_dtype(apply_fn, jnp.bfloat16)
    embeddings, counts = mixed(params, x, jnp.zeros(2, jnp.uint32))
    assert seen == [(jnp.bfloat16, jnp.bfloat16, jnp.uint32)]
    assert embeddings.dtype == jnp.float32
    assert counts.dtype == jnp.int32
    exact = x @ params["w"]
    assert jnp.allclose(embeddings, exact, rtol=0.05, atol=0.05)
    assert not jnp.array_equal(embeddings, exact)
    gradient = jax.grad(lambda p: jnp.sum(mixed(p, x, jnp.zeros(2, jnp.uint32))[0]))(params)
    assert gradient["w"].dtype == jnp.float32
    assert jnp.all(gradient["w"] != 0)


def test_mixed_precision_without_parameters_gives_float32():
    for params in ((), {"places": jnp.arange(3)}):
        mixed = training.with_compute_dtype(lambda params, x: 2 * x, jnp.bfloat16)
        embeddings = mixed(params, jnp.ones(2))
        assert embeddings.dtype == jnp.float32
        assert embeddings.tolist() == [2.0, 2.0]


def test_mixed_precision_passes_keywords_on():
    def apply_fn(params, x, *, statistics, train=False):
        assert x.dtype == jnp.bfloat16
        assert statistics.dtype == jnp.float32
        return (params * x, statistics) if train else params * x

    mixed = training.with_compute_dtype(apply_fn, jnp.bfloat16)
    embeddings, statistics = mixed(
        jnp.ones(2), jnp.ones(2), statistics=jnp.zeros(2), train=True
    )
    assert embeddings.dtype == statistics.dtype == jnp.float32
    assert mixed(jnp.ones(2), jnp.ones(2), statistics=jnp.zeros(2)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda loss: loss, "got .*Tracer"),
        (lambda loss: (loss, {}), r"got \(loss, dict\)"),
        (lambda loss: (loss, {"accuracy": loss}), r"got \(loss, dict\)"),
        (lambda loss: (loss, ((), loss)), r"got \(loss, tuple\)"),
    ],
)
def test_a_loss_function_that_returns_something_else_is_refused(returned, got):
    state = training.init_state(jnp.ones(2), OPTIMIZER)
    words = r"loss_fn must return \(loss, \(statistics, metrics\)\).*" + got
    with as_for_a_user(), pytest.raises(TypeError, match=words):
        training.train_step(
            KEY,
            state,
            None,
            loss_fn=lambda params, *_: returned(params.sum()),
            optimizer=OPTIMIZER,
        )


@pytest.mark.parametrize("state", [KEY, {"params": jnp.ones(2)}, None])
def test_what_is_no_state_is_refused_by_name(state):
    def loss_fn(params, *_):
        return params.sum(), ((), {})

    functions = {"loss_fn": loss_fn, "optimizer": OPTIMIZER}
    words = f"state must be a TrainState.*stands after the key; got {type(state).__name__}"
    with as_for_a_user():
        with pytest.raises(TypeError, match=words):
            training.train_step(KEY, state, None, **functions)
        with pytest.raises(TypeError, match=words):
            training.train_steps(
                KEY, state, None, num_steps=1, batch_fn=lambda *_: None, **functions
            )
