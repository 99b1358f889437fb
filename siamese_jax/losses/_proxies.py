"""What losses over proxies share: their types, cosines and the entry of a label."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from siamese_jax import relations
from siamese_jax._checks import check_floating, check_integer, check_rank, check_shape
from siamese_jax.distances import cosine_similarity_matrix

Embeddings = Float[Array, "n dim"]
Labels = Int[Array, " n"]
Proxies = Float[Array, "classes dim"]
Centers = Float[Array, "classes centers dim"]
Where = Bool[Array, " n"] | None
Weights = Float[Array, " n"] | None


def check_features(embeddings: Array, proxies: Array, *, rank: int = 2) -> None:
    check_floating("embeddings", embeddings)
    check_rank("embeddings", embeddings, 2)
    check_floating("proxies", proxies)
    check_rank("proxies", proxies, rank)
    if proxies.shape[-1] != embeddings.shape[1]:
        raise ValueError(
            f"proxies must have {embeddings.shape[1]} features, as the embeddings; got "
            f"shape {proxies.shape}"
        )


def proxy_cosines(embeddings: Array, proxies: Array) -> Float[Array, "n classes"]:
    check_features(embeddings, proxies)
    return cosine_similarity_matrix(embeddings, proxies)


def center_cosines(embeddings: Array, centers: Array) -> Float[Array, "n classes centers"]:
    check_features(embeddings, centers, rank=3)
    flat = cosine_similarity_matrix(embeddings, centers.reshape(-1, centers.shape[2]))
    return flat.reshape(len(embeddings), *centers.shape[:2])


def one_hot(labels: Array, matrix: Array) -> Bool[Array, "n classes"]:
    check_integer("labels", labels)
    check_shape("labels", labels, matrix.shape[:1], "one for each embedding")
    classes = relations.Items(jnp.arange(matrix.shape[1]))
    return relations.between(relations.Items(labels), classes).same


def entry_of(matrix: Array, labels: Array) -> Float[Array, " n"]:
    """The entry of the right class, 0 for a label outside of the classes."""
    return jnp.sum(jnp.where(one_hot(labels, matrix), matrix, 0), axis=1)


def of_classes(values: Array, labels: Array, matrix: Array) -> Float[Array, " n"]:
    """The same values, NaN for a label outside of the classes, which are the columns."""
    return jnp.where(jnp.any(one_hot(labels, matrix), axis=1), values, jnp.nan)
