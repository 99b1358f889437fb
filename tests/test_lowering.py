"""Tests that everything compiles for accelerators, without one: programs for CUDA and TPU.

`jax.export` lowers a function for platforms that are not there. The program must hold
nothing of the CPU's own way to compute, nothing that calls back to the host, and no custom
call but those that are named here. Every public function that computes on arrays has a row
in `tests/cases`; those without one work on files, folders and NumPy arrays on the host, and
`tests/test_api.py` names them.
"""

import functools
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.engine import health
from experiments.engine.system import train_steps
from siamese_jax import encoders, training
from siamese_jax.siamese import from_flax, twin
from tests.cases import CASES, Contract, Kind
from tests.contract.functions import Variant, sample, with_masked
from tests.contract.trees import float_leaves, replace_floats
from tests.test_precision import small_data
from tests.test_systems import EACH_VARIANT, VARIANTS, small_system

pytestmark = pytest.mark.slow

ACCELERATORS = ("cuda", "tpu")
KEY = jax.random.key(0)

# Custom calls that a row may make: linear algebra by each platform's own library.
SOLVERS = {"cusolver_getrf_ffi", "cu_lu_pivots_to_permutation", "LuDecomposition"}
SINGULAR_VALUES = {
    *("cusolver_gesvd_ffi", "cusolver_gesvdj_ffi"),
    *("Eigh", "Qr", "ProductOfElementaryHouseholderReflectors"),
}
CUSTOM_CALLS = {
    "verification.fit_logistic": SOLVERS,
    "episodes.ridge_logits": {"cusolver_potrf_ffi"},
    "health.embedding_health": SINGULAR_VALUES,
}

HOST = re.compile(r"stablehlo\.(send|recv|infeed|outfeed)\b")
# Where the CPU's own operations were written: files, and functions of `maps.py`. (That file
# itself is also where JAX saw a function like `nn.relu` first, which all platforms call.)
CPU_LAYER = re.compile(r'siamese_jax/_cpu/(?!maps)\w+\.py|"(?:bi)?linear"')


def exported(fn, *args, platforms=ACCELERATORS):
    leaves, structure = jax.tree.flatten(args)  # the checks of shapes know arrays alone

    def of_leaves(leaves):
        return fn(*structure.unflatten(leaves))

    return jax.export.export(jax.jit(of_leaves), platforms=platforms)(leaves)


def lowered(fn, *args, **options):
    return exported(fn, *args, **options).mlir_module()


def check_program(text, allowed=frozenset()):
    assert set(re.findall(r"custom_call @([\w.]+)", text)) <= allowed
    assert not HOST.findall(text)
    assert not CPU_LAYER.findall(text)


def count(text, *operations):
    return [len(re.findall(rf"stablehlo\.{name}\b", text)) for name in operations]


def test_what_the_checks_look_for_is_in_programs_for_cpus():
    encoder = encoders.KochConv(4, (5, 4, 3, 3))
    images = jax.ShapeDtypeStruct((2, 53, 53, 1), jnp.float32)
    variables = jax.eval_shape(encoder.init, KEY, images)
    text = lowered(encoder.apply, variables, images, platforms=("cpu",))
    layer = {f"siamese_jax/_cpu/{name}.py" for name in ("fourier", "blocks", "patches")}
    layer |= {'"linear"', '"bilinear"'}
    assert layer <= set(CPU_LAYER.findall(text))
    with pytest.raises(AssertionError):
        check_program(text)


def test_what_calls_back_to_the_host_does_not_lower():
    def by_host(x):
        return jax.pure_callback(lambda x: x, x, x)

    with pytest.raises(NotImplementedError, match="callback"):
        lowered(by_host, jnp.ones(3))


# Public functions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [x for x in CASES if x.kind is not Kind.SETTINGS], ids=lambda case: case.name
)
def test_every_public_function_lowers_with_its_gradient(case):
    def total(floats, inputs):
        out = Variant(case).call(replace_floats(inputs, floats))
        return sum(jnp.sum(leaf) for leaf in float_leaves(out))

    def everything(inputs):
        values = [variant.call(inputs) for variant in with_masked(case)]
        if Contract.GRADIENT not in case.contracts:
            return values
        return values, jax.grad(total)(float_leaves(inputs), inputs)

    text = lowered(everything, sample(case, 0))
    check_program(text, CUSTOM_CALLS.get(case.name, frozenset()))


# Encoders -------------------------------------------------------------------------------


class Plain(nn.Module):
    """A network of Flax's own layers."""

    layers: Callable

    @nn.compact
    def __call__(self, x, *, train=False):
        return self.layers(x, train)


def pool(x):
    return nn.max_pool(x, (2, 2), (2, 2))


def flat(x):
    return x.reshape(len(x), -1)


def dense(features, x):
    return nn.relu(nn.Dense(features)(x))


def norm(x, train):
    return nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))


def same_conv(features, x, *, size=3, stride=1):
    return nn.Conv(features, (size, size), stride, use_bias=False)(x)


def valid_conv(features, x, *, size=3):
    return nn.Conv(features, (size, size), padding="VALID")(x)


def mlp(x, train):
    return functools.reduce(lambda x, _: dense(8, x), range(3), flat(x))


def mnist_conv(x, train):
    return dense(8, flat(nn.relu(valid_conv(32, x))))


def orl_conv(x, train):
    for features in (6, 12):
        x = nn.relu(pool(valid_conv(features, x)))
    return dense(4, dense(128, flat(x)))


def koch_conv(x, train):
    for features, size in ((64, 5), (128, 4), (128, 3)):
        x = nn.relu(pool(valid_conv(features, x, size=size)))
    return nn.sigmoid(nn.Dense(8)(flat(nn.relu(valid_conv(256, x)))))


def conv_net(x, train):
    for features in (4, 8):
        x = pool(norm(same_conv(features, x), train))
    return nn.Dense(4)(flat(x))


def res_net(x, train):
    x = same_conv(4, x, size=5, stride=2)
    for features in (4, 8):
        x = pool(x)
        for _ in range(2):
            y = same_conv(features, norm(x, train))
            y = same_conv(features, norm(y, train))
            x = y + (x if x.shape[3] == features else same_conv(features, x, size=1))
    return nn.Dense(4)(flat(norm(pool(x), train)))


PLAIN = {
    "MnistMlp": (encoders.MnistMlp(0.0, 8, 8), mlp, (8, 8)),
    "MnistTower": (encoders.MnistTower(8), lambda x, train: dense(8, flat(x)), (8, 8)),
    "MnistConv": (encoders.MnistConv(8), mnist_conv, (8, 8)),
    "OrlConv": (encoders.OrlConv(1, (0.0, 0.0, 0.0), 4), orl_conv, (20, 16)),
    "KochConv": (encoders.KochConv(8, (5, 4, 3, 3)), koch_conv, (53, 53)),
    "ConvNet": (encoders.ConvNet((4, 8), 4), conv_net, (12, 12)),
    "ResNet": (encoders.ResNet(4, (4, 8), 2, 4), res_net, (24, 24)),
}


@pytest.mark.parametrize(("encoder", "layers", "size"), PLAIN.values(), ids=PLAIN)
def test_a_pair_costs_no_transposes_that_a_plain_net_does_not_have(encoder, layers, size):
    pair = jax.ShapeDtypeStruct((2, 3, *size, 1), jnp.float32)

    def training_program(module):
        init, apply = from_flax(module)
        params, statistics = jax.eval_shape(init, KEY, jnp.zeros((1, *size, 1)))

        def loss(params, statistics, pair):
            def embed(params, x):
                return apply(params, x, statistics=statistics, train=True)

            embeddings, changed = twin(embed, has_statistics=True)(params, pair)
            return jnp.sum(jnp.sin(embeddings)), changed

        gradient = jax.value_and_grad(loss, has_aux=True)
        return (params, statistics), lowered(gradient, params, statistics, pair)

    variables, found = training_program(encoder)
    of_plain, wanted = training_program(Plain(layers))
    assert variables == of_plain
    check_program(found)
    moves, work = ("transpose", "reverse"), ("convolution", "dot_general", "reduce_window")
    for ours, plain in zip(count(found, *moves), count(wanted, *moves), strict=True):
        assert ours <= plain
    assert count(found, *work) == count(wanted, *work)


# Training steps -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), EACH_VARIANT)
def test_the_training_of_every_system_lowers(name, settings):
    config, system = small_system(name, settings, 10)
    state, data = small_data(config, system)

    def steps(key, state, data):
        return train_steps(system, key, state, data, 2, with_health=True)

    check_program(lowered(steps, KEY, state, data), SINGULAR_VALUES)


def on_eight_devices(batch):
    """The shapes of a batch whose examples are divided among eight devices."""
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
    pairs = batch.images.ndim == 5  # [2, n, height, width, channels]

    def shared(name, leaf):
        spec = P(None, "data") if name == "images" and pairs else P("data")
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    fields = {name: shared(name, leaf) for name, leaf in batch._asdict().items()}
    return batch._replace(**fields)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_step_of_every_system_lowers_for_eight_devices(name):
    settings = VARIANTS[name][0]
    eights = {"batch_size": 16} if "batch_size" in settings else {}
    config, system = small_system(name, settings | eights, 10)
    state, data = small_data(config, system)
    batch = on_eight_devices(jax.eval_shape(system.sample, KEY, state.step, data))
    step = functools.partial(
        training.train_step,
        loss_fn=health.unmeasured(system.loss),
        optimizer=system.optimizer,
    )
    program = exported(step, KEY, state, batch)
    assert program.nr_devices == 8
    check_program(program.mlir_module())
