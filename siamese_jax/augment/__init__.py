"""Random distortions of an image, on the device: pure functions of `(key, image)`.

Each function takes one image `[height, width, channels]` of floating-point numbers. Write
what should happen to one image, and `jax.vmap` it over a batch, with a key for each image:

>>> import jax
>>> import jax.numpy as jnp
>>> affine = Affine(max_rotation=20.0, scale_range=(0.8, 1.2), max_shift=1.0)
>>> def distort(key, image):
...     affine_key, noise_key = jax.random.split(key)
...     image = random_affine(affine_key, image, affine)
...     return random_noise(noise_key, image, scale=0.1)
>>> images = jnp.ones((4, 8, 8, 1))
>>> keys = jax.random.split(jax.random.key(0), len(images))
>>> print(jax.jit(jax.vmap(distort))(keys, images).shape)
(4, 8, 8, 1)

What happens to an image then depends on its own key only.

Each interpolation blurs a little. To move an image in several ways at once, add
displacements to the affine coordinates, and interpolate once, with `warp`:

>>> elastic = Elastic(scale=0.5, sigma=2.0)
>>> def bend(key, image):
...     affine_key, elastic_key = jax.random.split(key)
...     matrix = sample_affine(affine_key, (8, 8), affine)
...     coordinates = affine_coordinates(matrix, (8, 8))
...     coordinates += sample_elastic(elastic_key, (8, 8), elastic)
...     return warp(image, coordinates)
>>> print(jax.jit(jax.vmap(bend))(keys, images).shape)
(4, 8, 8, 1)

* `random_affine`, `random_elastic`: move the pixels. `sample_affine` and `sample_elastic`
  draw the map alone. `affine_transform`, `affine_coordinates` and `warp` apply one.
* `random_noise`: adds Gaussian noise to the values.
* `random_thickness`: makes the strokes of a drawing thicker or thinner.
* `random_stretch`, `random_splice`, `random_gap`, `random_copy`: strong changes. With one
  key for all drawings of a class they make a new class; see `classes`.
* `ink_offsets`, `center`: find and centre a drawing. Both are deterministic.

The settings `Affine` and `Elastic` are checked when they are made. They are hashable and
not pytrees, so under `jax.jit` they are static arguments or constants of the function.
"""

from siamese_jax.augment.classes import (
    random_copy,
    random_gap,
    random_splice,
    random_stretch,
)
from siamese_jax.augment.drawings import center, ink_offsets, random_thickness
from siamese_jax.augment.geometry import (
    KOCH_AFFINE,
    Affine,
    Elastic,
    affine_coordinates,
    affine_transform,
    random_affine,
    random_elastic,
    sample_affine,
    sample_elastic,
    warp,
)
from siamese_jax.augment.noise import random_noise

__all__ = [
    "KOCH_AFFINE",
    "Affine",
    "Elastic",
    "affine_coordinates",
    "affine_transform",
    "center",
    "ink_offsets",
    "random_affine",
    "random_copy",
    "random_elastic",
    "random_gap",
    "random_noise",
    "random_splice",
    "random_stretch",
    "random_thickness",
    "sample_affine",
    "sample_elastic",
    "warp",
]
