"""Tests that all kinds of CPU convolution equal `lax`, in float64 and half precision."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from siamese_jax import convolution
from siamese_jax._cpu import blocks, fourier
from siamese_jax.convolution import max_pool
from siamese_jax.encoders._pooled import pooled_convolution

pytestmark = pytest.mark.slow

NHWC = ("NHWC", "HWIO", "NHWC")
CONV = convolution.convolution
CHWN_AXES = (3, 1, 2, 0)  # from NHWC, and back


def normal(*shapes, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def by_lax(x, kernel, strides=(1, 1), padding="VALID", **options):
    options = {"dimension_numbers": NHWC} | options
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def pool_by_lax(x, window):
    size = (1, window, window, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, size, size, "VALID")


def convolve_and_pool(x, kernel, window, *, layout="NHWC"):
    """What `nn.Conv` is given, or the form for images last, summed in float32."""
    if layout == "NHWC":
        return pooled_convolution(window)(x, kernel, (1, 1), "VALID")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    found = blocks.convolve_and_pool(
        x.astype(wide), kernel.astype(wide), window, images_last=True
    )
    return found.astype(x.dtype)


def pooled_by_lax(window, layout, x, kernel):
    if layout == "NHWC":
        return pool_by_lax(by_lax(x, kernel), window)
    x = jnp.transpose(x, CHWN_AXES)
    return jnp.transpose(pool_by_lax(by_lax(x, kernel), window), CHWN_AXES)


# LLVM's passes take longer than all else here; those of XLA are left as they are
fast_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@partial(fast_jit, static_argnums=0)
def pulled_back(fn, weights, *args):
    y, back = jax.vjp(fn, *args)
    return y, back(weights)


def with_gradients(fn, *args):
    """The value, and the gradients of its product with random numbers."""
    y = jax.eval_shape(fn, *args)
    (weights,) = normal(y.shape, seed=1, dtype=y.dtype)
    return pulled_back(fn, weights, *args)


def assert_same(found, wanted, rtol=1e-10):
    """Errors are relative to the largest number: sums may cancel."""
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = np.max(np.abs(b), initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale)


@pytest.fixture
def tilings(monkeypatch):
    """What was chosen at each call, None for patches."""
    chosen = []
    best_tilings = fourier.best_tilings

    def noted(*shapes):
        chosen.append(best_tilings(*shapes))
        return chosen[-1]

    monkeypatch.setattr(fourier, "best_tilings", noted)
    return chosen


# Every way ------------------------------------------------------------------------------

# image, kernel, strides, padding, dilation of the kernel, tiles (None: patches)
ROWS = [
    ((2, 8, 7, 1), (3, 3, 1, 4), (1, 1), "VALID", (1, 1), None),
    ((2, 8, 7, 3), (3, 3, 3, 4), (1, 1), "SAME", (1, 1), None),
    ((2, 7, 6, 3), (4, 2, 3, 4), (1, 1), "SAME", (1, 1), None),
    ((2, 7, 6, 3), (4, 2, 3, 4), (1, 1), "SAME_LOWER", (1, 1), None),
    ((2, 8, 7, 3), (2, 3, 3, 4), (1, 1), ((0, 3), (2, 1)), (1, 1), None),
    ((2, 8, 7, 3), (2, 3, 3, 4), (1, 1), ((-1, 2), (1, -2)), (1, 1), None),
    ((2, 9, 8, 3), (3, 2, 3, 4), (1, 1), "VALID", (2, 3), None),
    ((2, 9, 8, 3), (3, 2, 3, 4), (1, 1), "SAME", (2, 3), None),
    ((2, 9, 8, 3), (3, 2, 3, 4), (3, 2), "VALID", (1, 1), None),
    ((2, 9, 8, 3), (3, 3, 3, 4), (2, 3), "SAME", (2, 1), None),
    ((2, 9, 8, 3), (3, 3, 3, 4), (2, 2), ((-1, 0), (0, 2)), (1, 2), None),
    ((2, 5, 4, 16), (1, 1, 16, 3), (1, 1), "SAME", (1, 1), None),
    ((2, 5, 4, 3), (1, 1, 3, 4), (2, 2), "VALID", (1, 1), None),
    ((2, 5, 4, 3), (5, 4, 3, 4), (1, 1), "VALID", (1, 1), None),
    ((2, 3, 3, 3), (5, 4, 3, 4), (1, 1), "SAME", (1, 1), None),
    ((2, 3, 3, 3), (5, 4, 3, 4), (1, 1), "VALID", (1, 1), "empty"),
    ((2, 3, 3, 3), (3, 2, 3, 4), (2, 1), ((-1, 0), (0, 0)), (1, 1), "empty"),
    ((0, 5, 4, 3), (3, 2, 3, 4), (1, 1), "SAME", (1, 1), None),
    ((2, 12, 11, 16), (4, 4, 16, 16), (2, 2), "VALID", (1, 1), None),
    ((2, 12, 11, 16), (4, 4, 16, 16), (1, 1), "VALID", (2, 1), None),
    ((2, 9, 8, 16), (5, 4, 16, 16), (1, 1), "VALID", (1, 1), (1, 1)),
    ((1, 10, 9, 16), (4, 5, 16, 16), (1, 1), "SAME", (1, 1), (1, 1)),
    ((2, 9, 11, 16), (5, 4, 16, 16), (1, 1), ((3, 1), (0, 2)), (1, 1), (1, 1)),
    ((2, 13, 9, 16), (5, 4, 16, 16), (1, 1), ((-1, -2), (-1, 1)), (1, 1), (1, 1)),
    ((2, 10, 12, 16), (3, 7, 16, 16), (1, 1), "VALID", (1, 1), (1, 1)),
    ((1, 30, 30, 16), (3, 3, 16, 16), (1, 1), "VALID", (1, 1), (4, 1)),
    ((1, 38, 38, 24), (3, 3, 24, 24), (1, 1), "SAME", (1, 1), (5, 2)),
    ((0, 9, 8, 16), (5, 4, 16, 16), (1, 1), "VALID", (1, 1), (1, 1)),
]


@pytest.mark.parametrize(
    ("image", "kernel", "strides", "padding", "dilation", "tiles"),
    ROWS,
    ids=lambda value: str(value).replace(" ", ""),
)
def test_value_and_gradients_are_those_of_lax(
    tilings, image, kernel, strides, padding, dilation, tiles
):
    with jax.enable_x64(True):
        args = normal(image, kernel, dtype=jnp.float64)
        options = {"window_strides": strides, "padding": padding, "rhs_dilation": dilation}
        found, wanted = (
            with_gradients(partial(fn, **options), *args)
            for fn in (CONV, partial(lax.conv_general_dilated, dimension_numbers=NHWC))
        )
    plain = strides == dilation == (1, 1)
    assert bool(tilings) == (plain and tiles != "empty")
    counts = [chosen and tuple(t.num_tiles for t in chosen) for chosen in tilings]
    assert counts == [tiles] * len(tilings)
    assert (found[0].size == 0) == (tiles == "empty" or image[0] == 0)
    assert_same(found, wanted)


# height, channels, height of the kernel, features: layers of the systems
LAYERS = [
    (28, 1, 3, 32, "patches"),
    (105, 1, 10, 64, "patches"),
    (24, 32, 1, 32, "patches"),
    (48, 64, 7, 128, "Fourier"),
    (21, 128, 4, 128, "Fourier"),
    (9, 128, 4, 256, "Fourier"),
    (34, 16, 3, 32, "Fourier"),
    (14, 64, 3, 128, "Fourier"),
    (14, 128, 3, 128, "Fourier"),
    (8, 128, 3, 256, "Fourier"),
    (8, 256, 3, 256, "Fourier"),
]


@pytest.mark.parametrize("faster", [0.5, 1.0, 2.0])
def test_the_way_of_a_layer_is_that_of_faster_and_of_slower_processors(faster, monkeypatch):
    for name in ("_MOVED", "_MOVED_IN_PATCHES"):
        monkeypatch.setattr(fourier, name, faster * getattr(fourier, name))
    for height, channels, size, features, way in LAYERS:
        image, kernel = (height, height, channels), (size, size, channels, features)
        found = "patches" if fourier.best_tilings(image, kernel) is None else "Fourier"
        assert found == way, (image, kernel)


GROUPED = {
    "grouped": {"feature_group_count": 2},
    "batch groups": {"batch_group_count": 2},
    "dilated image": {"lhs_dilation": (2, 1)},
    "channels first": {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    "result turned": {"dimension_numbers": ("NHWC", "HWIO", "NCHW")},
}


@pytest.mark.parametrize("name", GROUPED)
def test_what_is_not_plain_goes_to_lax(tilings, name):
    shapes = {
        "grouped": ((2, 6, 5, 4), (3, 2, 2, 4)),
        "channels first": ((2, 4, 6, 5), (3, 4, 3, 2)),
    }.get(name, ((2, 6, 5, 4), (3, 2, 4, 4)))
    args = normal(*shapes)
    found, wanted = (
        fn(*args, (1, 1), ((1, 1), (0, 1)), **GROUPED[name]) for fn in (CONV, by_lax)
    )
    assert not tilings
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"lhs_dilation": (1, 1), "feature_group_count": 1, "batch_group_count": 1},
        {"lhs_dilation": None, "rhs_dilation": None, "precision": "highest"},
        {
            "dimension_numbers": lax.ConvDimensionNumbers(
                (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)
            )
        },
    ],
    ids=lambda options: "-".join(options),
)
def test_options_that_say_nothing_leave_it_plain(tilings, options):
    args = normal((2, 5, 4, 2), (3, 2, 2, 3))
    found, wanted = (fn(*args, (1, 1), "VALID", **options) for fn in (CONV, by_lax))
    assert len(tilings) == 1
    assert_same(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "of_images", "options", "error"),
    [
        ((3, 3, 2, 4), jnp.float32, {"window_strides": (2, 2)}, ValueError),
        ((3, 3, 1, 4), jnp.bfloat16, {}, TypeError),
        ((3, 3, 1, 4), jnp.float32, {"lhs_dilatation": (2, 2)}, TypeError),
        ((3, 3, 1, 4), jnp.float32, {"window_strides": (1,)}, ValueError),
    ],
)
def test_what_lax_refuses_is_refused_without_jit_too(kernel, of_images, options, error):
    args = jnp.ones((1, 5, 5, 1), of_images), jnp.ones(kernel)
    options = {"window_strides": (1, 1), "padding": "VALID"} | options
    ours = partial(CONV, **options)
    of_lax = partial(lax.conv_general_dilated, dimension_numbers=NHWC, **options)
    for fn in (ours, jax.jit(ours), of_lax):
        with pytest.raises(error):
            fn(*args)


# Rounding -------------------------------------------------------------------------------


WAYS = {
    "patches": ((2, 8, 7, 3), (3, 3, 3, 4)),
    "Fourier": ((2, 9, 8, 16), (5, 4, 16, 16)),
    "tiles": ((2, 30, 30, 16), (3, 3, 16, 16)),
}


@pytest.mark.parametrize("preferred", [None, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("way", ["patches", "Fourier"])
def test_halves_are_summed_in_float32(way, dtype, preferred):
    x, k = normal(*WAYS[way], dtype=dtype)
    found, gradients = with_gradients(
        lambda x, k: CONV(x, k, (1, 1), "VALID", preferred_element_type=preferred), x, k
    )
    assert found.dtype == (preferred or dtype)
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype(dtype)}
    wanted, wanted_gradients = with_gradients(
        by_lax, *(a.astype(jnp.float32) for a in (x, k))
    )
    # one rounding, at the end; a sum in halves would be off by several
    half = jnp.finfo(found.dtype).eps
    limit = 0.51 * half * np.abs(wanted) + 2e-6 * np.abs(wanted).max()
    assert (np.abs(found.astype(jnp.float32) - wanted) <= limit).all()
    for gradient, exact in zip(gradients, wanted_gradients, strict=True):
        scale = np.abs(exact).max()
        # with a rounded cotangent as well
        error = np.abs(gradient.astype(jnp.float32) - exact).max()
        assert error <= 2 * jnp.finfo(dtype).eps * scale


# Transformations ------------------------------------------------------------------------

same = partial(CONV, window_strides=(1, 1), padding="SAME")
lax_same = partial(by_lax, padding="SAME")
POOLED = ((4, 8, 7, 2), (3, 2, 2, 3))

# ours, of lax, shapes of image and kernel
FUNCTIONS = {
    "patches": (same, lax_same, *WAYS["patches"]),
    "Fourier": (same, lax_same, *WAYS["Fourier"]),
    "tiles": (same, lax_same, *WAYS["tiles"]),
    "blocks": (
        lambda x, k: convolve_and_pool(x, k, 2),
        partial(pooled_by_lax, 2, "NHWC"),
        *POOLED,
    ),
    "blocks CHWN": (
        lambda x, k: convolve_and_pool(x, k, 2, layout="CHWN"),
        partial(pooled_by_lax, 2, "CHWN"),
        (2, 8, 7, 4),
        POOLED[1],
    ),
    "pool": (
        lambda x, k: max_pool(x * k[:1, :1, :, 0].reshape(1, 1, 1, -1), 2),
        lambda x, k: pool_by_lax(x * k[:1, :1, :, 0].reshape(1, 1, 1, -1), 2),
        *POOLED,
    ),
}
EACH = pytest.mark.parametrize(
    ("ours", "of_lax", "image", "kernel"), FUNCTIONS.values(), ids=FUNCTIONS
)


@EACH
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_over_images_and_kernels(ours, of_lax, image, kernel, axes):
    with jax.enable_x64(True):
        shapes = [(2, *shape) for shape in (image, kernel)]
        stacked = normal(*shapes, dtype=jnp.float64)
        args = [a if axis == 0 else a[0] for a, axis in zip(stacked, axes, strict=True)]
        y, gradients = with_gradients(jax.vmap(ours, axes), *args)
        (weights,) = normal(y.shape, seed=1, dtype=jnp.float64)
        for i in range(2):
            one = (a[i] if axis == 0 else a for a, axis in zip(args, axes, strict=True))
            wanted, parts = pulled_back(of_lax, weights[i], *one)
            assert_same(y[i], wanted)
            for number, axis in enumerate(axes):
                if axis == 0:
                    assert_same(gradients[number][i], parts[number])
        for number, axis in enumerate(axes):
            if axis is None:  # the gradient of what is shared is summed
                shared = [
                    pulled_back(of_lax, weights[i], *one)[1][number]
                    for i in range(2)
                    for one in [[a if a is args[number] else a[i] for a in args]]
                ]
                assert_same(gradients[number], shared[0] + shared[1])


@EACH
def test_gradients_inside_a_loop(ours, of_lax, image, kernel):
    def descend(fn, xs, k):
        gradient_fn = jax.value_and_grad(lambda k, x: jnp.sum(jnp.sin(fn(x, k))))

        def body(k, x):
            value, gradient = gradient_fn(k, x)
            return k - 0.01 * gradient, value

        return lax.scan(body, k, xs)

    with jax.enable_x64(True):
        args = normal((3, *image), kernel, dtype=jnp.float64)
        found, wanted = (fast_jit(partial(descend, fn))(*args) for fn in (ours, of_lax))
    assert_same(found, wanted, rtol=1e-9)


@EACH
def test_two_devices_equal_one(ours, of_lax, image, kernel):
    spec = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    by_row = spec(None, None, None, "devices") if image[0] == kernel[2] else spec("devices")
    shard = partial(jax.shard_map, mesh=mesh)

    def inside(weights, x, k):
        # of a kernel that does not vary over devices the gradient is their sum; of one
        # that is made to vary it is each device's own, for the caller to sum
        gradients = jax.vjp(ours, x, k)[1](weights)
        varying = lax.pcast(k, "devices", to="varying")
        own_x, own_k = jax.vjp(ours, x, varying)[1](weights)
        return gradients, (own_x, lax.psum(own_k, "devices"))

    with jax.enable_x64(True):
        x, k = normal(image, kernel, dtype=jnp.float64)
        wanted = with_gradients(of_lax, x, k)
        outside = shard(ours, in_specs=(by_row, spec()), out_specs=by_row)
        assert_same(with_gradients(outside, x, k), wanted)
        (weights,) = normal(wanted[0].shape, seed=1, dtype=jnp.float64)
        within = shard(
            inside,
            in_specs=(by_row, by_row, spec()),
            out_specs=((by_row, spec()), (by_row, spec())),
        )
        for gradients in fast_jit(within)(weights, x, k):
            assert_same(gradients, wanted[1])


@EACH
def test_an_exported_program_takes_any_number_of_images(ours, of_lax, image, kernel):
    axis = 3 if image[0] == kernel[2] else 0
    (n,) = export.symbolic_shape("n")
    shape = (*image[:axis], n, *image[axis + 1 :])
    program = export.export(jax.jit(ours), platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(kernel, jnp.float32)
    )
    program = export.deserialize(program.serialize())
    for num in (1, 5):
        x, k = normal((*image[:axis], num, *image[axis + 1 :]), kernel)
        assert_same(program.call(x, k), of_lax(x, k), rtol=3e-6)


@EACH
def test_no_images_give_nothing(ours, of_lax, image, kernel):
    axis = 3 if image[0] == kernel[2] else 0
    args = normal((*image[:axis], 0, *image[axis + 1 :]), kernel)

    def shapes(fn):
        def there_and_back(x, k):
            y, back = jax.vjp(fn, x, k)
            return y, back(y)

        return jax.eval_shape(there_and_back, *args)

    assert shapes(ours) == shapes(of_lax)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (5, 4)},
        {"kernel_size": (3, 3), "kernel_dilation": 2},
        {"kernel_size": (3, 3), "strides": 2, "padding": "VALID"},
        {"kernel_size": (3, 3), "padding": "CIRCULAR"},
        {"kernel_size": (3, 3), "feature_group_count": 4},
        {"kernel_size": (5, 4), "dtype": jnp.bfloat16},
    ],
    ids=str,
)
def test_flax_takes_it_for_its_own(options):
    (x,) = normal((2, 9, 8, 16))
    plain = nn.Conv(16, **options)
    ours = nn.Conv(16, **options, conv_general_dilated=CONV)
    variables = jax.jit(plain.init)(jax.random.key(0), x)
    found, wanted = (with_gradients(conv.apply, variables, x) for conv in (ours, plain))
    assert_same(found, wanted, rtol=2e-2 if "dtype" in options else 3e-6)


# Pooling --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((3, 6, 4, 2), 1),
        ((3, 6, 4, 2), 2),
        ((3, 7, 5, 2), 2),
        ((3, 8, 7, 2), 3),
        ((2, 3, 3, 4), 3),
        ((2, 17, 8, 1), 8),
        ((2, 19, 9, 2), 9),  # by `lax`
    ],
)
def test_pooling_is_that_of_lax_and_the_first_of_equals_gets_the_gradient(
    shape, window, dtype
):
    # few different numbers, so that there are ties
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, shape), dtype)
    found = with_gradients(lambda x: max_pool(x, window), x)
    wanted = with_gradients(lambda x: pool_by_lax(x, window), x)
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_array_equal(a, b)


def test_of_equals_the_first_gets_the_gradient():
    for x in (jnp.ones((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), -jnp.inf)):
        gradient = jax.grad(lambda x: max_pool(x, 2).sum())(x)
        np.testing.assert_array_equal(gradient.ravel(), [1, 0, 0, 0])


def test_the_two_middle_axes_are_pooled():
    (x,) = normal((3, 6, 5, 2))
    found = with_gradients(lambda x: max_pool(x, 2), jnp.transpose(x, CHWN_AXES))[0]
    np.testing.assert_array_equal(jnp.transpose(found, CHWN_AXES), pool_by_lax(x, 2))


@pytest.mark.parametrize("place", range(4))
def test_nan_in_a_block_gives_nan(place):
    x = np.arange(16.0, dtype=np.float32).reshape(1, 4, 4, 1)
    x[0, place // 2, place % 2, 0] = np.nan
    pooled = jax.jit(partial(max_pool, window=2))
    assert np.isnan(pooled(jnp.asarray(x))).ravel().tolist() == [True] + [False] * 3
    one = jnp.ones((1, 1, 1, 1))
    for layout in ("NHWC", "CHWN"):  # one image of one channel
        pooled = jax.jit(partial(convolve_and_pool, window=2, layout=layout))
        found = pooled(jnp.asarray(x), one)
        assert np.isnan(found).ravel().tolist() == [True] + [False] * 3


@pytest.mark.parametrize("window", [0, 5, 6])
def test_windows_that_do_not_fit_are_refused(window):
    for shape in ((1, 4, 7, 1), (1, 7, 4, 1)):
        with pytest.raises(ValueError, match=f"from 1 to 4, the smaller .* got {window}"):
            max_pool(jnp.ones(shape), window)
