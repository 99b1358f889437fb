"""A linear map in closed form, after which examples of one class are nearer to each other.

A network that is trained on some classes still spreads the examples of new classes in
directions that say nothing about the class. The covariance of embeddings within classes
measures these directions, and whitening makes them smaller:

>>> import jax.numpy as jnp
>>> from siamese_jax import distances
>>> embeddings = jnp.array([[0.0, 5.0], [4.0, 5.0], [0.0, 6.0], [4.0, 6.0]])
>>> labels = jnp.array([0, 0, 1, 1])  # the first number says nothing about the class
>>> factor = jnp.asarray(within_class_factor(embeddings, labels, shrinkage=0.5))
>>> matrix = distances.mahalanobis_distance_matrix(embeddings, embeddings, factor)
>>> print(matrix[0].round(2))  # 4 within the class; 1 to the other class has not changed
[0.   1.79 1.   2.05]

The factor is fitted to the classes that the network was trained on, or to others that are
not tested on. It can be multiplied into the last layer of the network, whose embeddings are
then whitened: kernel @ factor.T and bias @ factor.T take the places of kernel and bias.
"""

import math

import numpy as np
from jaxtyping import Array, Float

from siamese_jax._checks import check_floating, check_rank
from siamese_jax._labels import Labels, host_labels

_ROUNDING = 1e-24  # variance that equal numbers have by rounding, beside their squares


def within_class_factor(
    embeddings: Float[Array, "n dim"] | Float[np.ndarray, "n dim"],
    labels: Labels,
    *,
    shrinkage: float = 1.0,
) -> Float[np.ndarray, "dim dim"]:
    """Within-class covariance normalisation: the F that makes F (C + s v I) F^T = I.

    C is the covariance of the embeddings within classes, the mean of (x - c)(x - c)^T with
    the mean c of the class of x. v is the mean of its diagonal, and s the shrinkage. The
    whitened embeddings are `embeddings @ F.T`, and `distances.mahalanobis_distance` with
    the factor F is their distance. F is lower triangular, in float64 of NumPy.

    Args:
      embeddings: Embeddings, normalised if they are compared by their cosine.
      labels: The class of each, numbers or names. A class with one example adds 0 to the
        mean.
      shrinkage: How much of the identity is added. With more, the map is nearer to one that
        changes no direction. 0 adds nothing, and needs more examples than dimensions.

    Raises:
      ValueError: If the shapes do not fit, an embedding is not finite, the shrinkage is
        negative or not finite, or the covariance has no inverse within rounding: no class
        has two different examples, or without shrinkage there are too few examples.
      TypeError: If the embeddings are not floating-point numbers.

    Reference:
      Hatch, Kajarekar, Stolcke. Within-Class Covariance Normalization for SVM-based
      Speaker Recognition. Interspeech 2006. Bar-Hillel et al. Learning Distance Functions
      using Equivalence Relations. ICML 2003, where it is relevant component analysis. The
      identity is not in the papers' formulas.

    >>> embeddings = np.array([[0.0], [2.0], [5.0], [7.0]])
    >>> print(within_class_factor(embeddings, [0, 0, 1, 1], shrinkage=3.0))  # 1 + 3 = 4
    [[0.5]]
    """
    check_rank("embeddings", embeddings, 2)
    check_floating("embeddings", embeddings)
    if not 0 <= shrinkage < math.inf:
        raise ValueError(f"shrinkage must be finite and at least 0; got {shrinkage}")
    x = np.asarray(embeddings, np.float64)
    classes = host_labels("labels", labels)
    if len(classes) != len(x):
        raise ValueError(f"labels must have one for each of {len(x)}; got {len(classes)}")
    if not np.isfinite(x).all():
        raise ValueError("embeddings must be finite; got NaN or infinity")
    with np.errstate(over="ignore", invalid="ignore"):  # found by the check below
        covariance = _within_class_covariance(x, classes)
        spread = np.trace(covariance) / max(len(covariance), 1)
        factor = _inverse_root(covariance + shrinkage * spread * np.eye(len(covariance)))
        equal = spread <= _ROUNDING * np.sum(x**2) / max(x.size, 1)
    if factor is None or equal:
        raise ValueError(
            "the covariance within classes has no inverse: there must be classes with "
            f"different examples, or more examples or shrinkage; got {len(x)} examples of "
            f"{x.shape[1]} dimensions and {len(np.unique(classes))} classes, and shrinkage "
            f"{shrinkage:g}"
        )
    return factor


def _within_class_covariance(x: np.ndarray, classes: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(classes, return_inverse=True, return_counts=True)
    centers = np.zeros((len(counts), x.shape[1]))
    np.add.at(centers, group, x)
    within = x - (centers / counts[:, None])[group]
    return within.T @ within / max(len(x), 1)


def _inverse_root(matrix: Float[np.ndarray, "dim dim"]) -> np.ndarray | None:
    """Returns F with F matrix F^T = I, or None if rounding leaves no such F."""
    if not len(matrix) or not np.isfinite(matrix).all():
        return None
    try:
        root = np.linalg.cholesky(matrix)
        inverse = np.linalg.inv(root)
    except np.linalg.LinAlgError:
        return None
    # at least the condition number, and far cheaper than eigenvalues
    condition = (np.linalg.norm(root) * np.linalg.norm(inverse)) ** 2
    most = 1 / (10 * len(matrix) * np.finfo(float).eps)
    return inverse if condition < most else None
