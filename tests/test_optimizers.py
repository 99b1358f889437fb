"""Tests of the training step with every optimizer of optax: it learns or is refused."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from siamese_jax import training

KEY = jax.random.key(0)
RATE = {"learning_rate": 0.01}
INNER = optax.sgd(0.01)
AUTO = jax.sharding.AxisType.Auto

# what has a required argument, by its name; the others are called without one
ARGUMENTS = {
    "adadelta": RATE,
    "adaptive_grad_clip": {"clipping": 0.1},
    "add_noise": {"eta": 0.01, "gamma": 0.5, "key": 0},
    "apply_if_finite": {"inner": INNER, "max_consecutive_errors": 2},
    "clip": {"max_delta": 1.0},
    "clip_by_block_rms": {"threshold": 1.0},
    "clip_by_global_norm": {"max_norm": 1.0},
    "conditionally_mask": {"inner": INNER, "should_transform_fn": lambda count: count >= 0},
    "conditionally_transform": {
        "inner": INNER,
        "should_transform_fn": lambda count: count >= 0,
    },
    "differentially_private_aggregate": {
        "l2_norm_clip": 1.0,
        "noise_multiplier": 0.1,
        "key": 0,
    },
    "ema": {"decay": 0.5},
    "flatten": {"inner": INNER},
    "freeze": {"mask": {"kernel": True, "bias": False}},
    "lookahead": {"fast_optimizer": INNER, "sync_period": 2, "slow_step_size": 0.5},
    "masked": {"inner": INNER, "mask": {"kernel": True, "bias": True}},
    "measure_with_ema": {"measure": optax.tree.norm, "decay": 0.5},
    "mechanize": {"base_optimizer": INNER},
    "multi_transform": {
        "transforms": {"a": INNER, "b": optax.adam(0.01)},
        "param_labels": {"kernel": "a", "bias": "b"},
    },
    "noisy_sgd": {**RATE, "key": 0},
    "partition": {
        "transforms": {"a": INNER, "b": optax.adam(0.01)},
        "param_labels": {"kernel": "a", "bias": "b"},
    },
    "sam": {
        "optimizer": INNER,
        "adv_optimizer": optax.chain(optax.contrib.normalize(), optax.sgd(0.05)),
    },
    "scale": {"step_size": -0.01},
    "scale_by_backtracking_linesearch": {"max_backtracking_steps": 5},
    "scale_by_learning_rate": RATE,
    "scale_by_rprop": RATE,
    "scale_by_schedule": {"step_size_fn": lambda count: -0.01},
    "scale_by_zoom_linesearch": {"max_linesearch_steps": 5},
    "schedule_free": {"base_optimizer": INNER, **RATE},
    "selective_transform": {
        "optimizer": INNER,
        "freeze_mask": {"kernel": False, "bias": True},
    },
    "snapshot": {"measure_name": "norm", "measure": optax.tree.norm},
    "split_real_and_imaginary": {"inner": INNER},
    "stateless": {"f": lambda updates, params: updates},
    "stateless_with_tree_map": {"f": lambda update, param: update},
    "trace": {"decay": 0.5},
    "with_extra_args_support": {"tx": INNER},
}
POSITIONAL = {
    "chain": (optax.clip(1.0), INNER),
    "named_chain": (("clip", optax.clip(1.0)), ("sgd", INNER)),
}
# what makes a function that makes an optimizer
FACTORIES = {"inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(0.01)}
EXTRAS = {
    "multi_steps": lambda: optax.MultiSteps(INNER, 2).gradient_transformation(),
    "opaque sam": lambda: optax.contrib.sam(**ARGUMENTS["sam"], opaque_mode=True),
    "sam in a chain": lambda: optax.chain(
        optax.clip(1.0), optax.contrib.sam(**ARGUMENTS["sam"])
    ),
    "lbfgs without line search": lambda: optax.lbfgs(0.01, linesearch=None),
    "plateau in a chain": lambda: optax.chain(
        optax.adam(0.01), optax.contrib.reduce_on_plateau()
    ),
}
REFUSED = {
    "lookahead": "the optimizer lookahead cannot make an update",
    "differentially_private_aggregate": "expects `grads` to have a batch dimension",
    "measure_with_ema": "must return updates shaped as the parameters",  # a measurement
    "scale_by_muon": "pytree structure error",  # wants to know which are matrices
}
# these change a gradient, as all named scale_by_... do but a few
NO_DESCENT = {
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "apply_every",
    "centralize",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "ema",
    "freeze",
    "hutchinson_estimator_diag_hessian",
    "identity",
    "keep_params_nonnegative",
    "normalize",
    "normalize_by_update_norm",
    "reduce_on_plateau",
    "set_to_zero",
    "snapshot",
    "stateless",
    "stateless_with_tree_map",
    "trace",
    "zero_nans",
}
DESCENT = {f"scale_by_{name}" for name in ("cocob", "learning_rate", "madgrad", "schedule")}


def makes_an_optimizer(fn):
    """Whether its annotation says so or, without one, what it returns."""
    if inspect.isclass(fn) or not inspect.isfunction(fn):
        return False
    signature = inspect.signature(fn)
    if signature.return_annotation is not signature.empty:
        return "GradientTransformation" in str(signature.return_annotation)
    try:
        return isinstance(fn(), optax.GradientTransformation)
    except TypeError:
        return False


def make(name, fn):
    if name in FACTORIES:
        return FACTORIES[name]()
    if name in ARGUMENTS or name in POSITIONAL:
        return fn(*POSITIONAL.get(name, ()), **ARGUMENTS.get(name, {}))
    required = [x.name for x in inspect.signature(fn).parameters.values() if is_required(x)]
    if required == ["learning_rate"]:
        return fn(0.01)
    assert not required, f"ARGUMENTS has no {name}, which requires {required}"
    return fn()


def is_required(parameter):
    several = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in several


# warn of what is deprecated; dpsgd is differentially_private_aggregate in a chain
DEPRECATED = {"dpsgd", "inject_stateful_hyperparams", "optimistic_adam"}
EVERY = EXTRAS | {
    name: partial(make, name, fn)
    for module in (optax, optax.contrib)
    for name, fn in sorted(vars(module).items())
    if not name.startswith("_") and name not in DEPRECATED and makes_an_optimizer(fn)
}


def optimizer_of(name):
    optimizer = EVERY[name]()
    if name in REFUSED or name in DESCENT:
        return optimizer
    if name.endswith("linesearch"):
        return optax.chain(optax.sgd(1.0), optimizer)
    if name in NO_DESCENT or name.startswith("scale_by_"):
        return optax.chain(optimizer, optax.scale(-0.01))
    return optimizer


def loss_fn(params, statistics, batch, key):
    found = jnp.tanh(batch["x"] @ params["kernel"]) + params["bias"][None]
    return jnp.mean((found - batch["y"]) ** 2), (statistics, {})


def start(optimizer):
    params = {
        "kernel": jnp.array([[0.5, 0.1], [-0.3, 0.2], [0.1, 0.4]]),
        "bias": jnp.ones(2),
    }
    return training.init_state(params, optimizer)


BATCH = {
    "x": jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32),
    "y": jnp.asarray(np.random.default_rng(1).normal(size=(6, 2)), jnp.float32),
}


def step_of(optimizer):
    return partial(training.train_step, loss_fn=loss_fn, optimizer=optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_optimizer_learns_or_is_refused_by_name(name):
    optimizer = optimizer_of(name)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            step_of(optimizer)(KEY, start(optimizer), BATCH)
        return
    num_traces = 0

    @partial(jax.jit, donate_argnums=0)
    def step(state):
        nonlocal num_traces
        num_traces += 1
        return step_of(optimizer)(KEY, state, BATCH)

    state, values = start(optimizer), []
    with jax.numpy_rank_promotion("allow"):  # which optax needs
        for _ in range(4):
            old, (state, metrics) = state, step(state)
            values.append(float(metrics["loss"]))
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    assert num_traces == 1
    assert np.isfinite(values).all()
    # first steps may be too small to see, and every other one of sam is an adversary's
    assert min(values[2:]) <= 1.0001 * values[0]
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, start(optimizer))


def test_no_leaf_of_a_state_is_shared():
    """Nor one that the parameters share, or parameters and statistics."""
    tied = jnp.ones(3)
    optimizer = optax.contrib.prodigy()
    params = {"a": tied, "b": [tied, jnp.zeros(3)]}
    state = training.init_state(params, optimizer, statistics=(tied, tied))
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(buffers) == len(set(buffers))
    np.testing.assert_array_equal(state.params["b"][0], tied)
    jitted = jax.jit(lambda p: training.init_state(p, optimizer))(params)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(jitted)]
    assert len(buffers) == len(set(buffers))


def test_an_optimizer_that_cannot_start_is_named():
    masked = optax.masked(INNER, {"kernel": True})
    with pytest.raises(ValueError, match="the optimizer masked cannot start from these"):
        training.init_state(jnp.ones(3), masked)


WITH_FUNCTIONS = {
    "lbfgs": lambda: optax.lbfgs(),
    "backtracking": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10, store_grad=True)
    ),
    "polyak_sgd": lambda: optax.polyak_sgd(),
    "momo": lambda: optax.contrib.momo(0.1),
    "reduce_on_plateau": lambda: optax.chain(INNER, optax.contrib.reduce_on_plateau()),
    "sam": EXTRAS["opaque sam"],
    "sophia": lambda: optax.contrib.sophia(0.1, gamma=1.0, update_interval=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
@pytest.mark.parametrize("name", WITH_FUNCTIONS)
def test_on_two_devices_the_functions_of_the_loss_are_averaged(name, mode):
    optimizer = WITH_FUNCTIONS[name]()
    step = step_of(optimizer)
    state = start(optimizer)
    shares = jax.tree.map(lambda rows: rows.reshape(2, 3, -1), BATCH)

    def on_device(state, share):
        return step(KEY, state, share, axis_name="devices")[0]

    if mode == "pmap":
        both = jax.pmap(on_device, axis_name="devices", in_axes=(None, 0), out_axes=None)
    else:
        spec = jax.sharding.PartitionSpec
        both = jax.jit(
            jax.shard_map(
                lambda state, batch: on_device(state, jax.tree.map(lambda x: x[0], batch)),
                mesh=jax.make_mesh((2,), ("devices",), axis_types=(AUTO,)),
                in_specs=(spec(), spec("devices")),
                out_specs=spec(),
            )
        )
    one, found = jax.jit(step), state
    for _ in range(3):
        state, _ = one(KEY, state, BATCH)
        found = both(found, shares)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5),
            found.params,
            state.params,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_FUNCTIONS)
def test_many_steps_in_one_program_give_the_functions_too(name):
    optimizer = WITH_FUNCTIONS[name]()
    run = partial(
        training.train_steps,
        num_steps=5,
        batch_fn=lambda key, step, data: data,
        loss_fn=loss_fn,
        optimizer=optimizer,
    )
    _, metrics = jax.jit(run)(KEY, start(optimizer), BATCH)
    assert metrics["loss"][-1] < metrics["loss"][0]
