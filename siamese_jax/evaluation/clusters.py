"""How well clusters of embeddings agree with their classes, by k-means."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class ClusterAgreement(NamedTuple):
    """Agreement of clusters with classes, 1 if they are the same partition.

    Attributes:
      normalized_mutual_information: NMI, divided by the mean of the two entropies. It is
        above 0 even for random clusters, the more the more classes there are.
      adjusted_mutual_information: AMI, 0 on average for random clusters.
      num_clusters: Number of clusters, which is that of the classes.
    """

    normalized_mutual_information: float
    adjusted_mutual_information: float
    num_clusters: int


def cluster_agreement(
    embeddings: Float[np.ndarray, "n dim"],
    labels: Int[np.ndarray, "..."],
    *,
    seed: int = 0,
    num_starts: int = 10,
) -> ClusterAgreement:
    """Clusters embeddings by k-means and compares the clusters with the classes.

    There are as many clusters as classes. Of several starts the clusters with the smallest
    squared distances count. If the embeddings have fewer distinct rows than there are
    classes, as collapsed ones do, both figures are NaN. Rows count as equal if they differ
    by rounding alone.

    Args:
      embeddings: Embeddings.
      labels: Class of each embedding.
      seed: Seed of the first centres.
      num_starts: Number of starts.

    Raises:
      ValueError: If there is not one label for each embedding, or an embedding is not
        finite.

    Reference:
      Vinh, Epps, Bailey. Information Theoretic Measures for Clusterings Comparison. JMLR
      2010.

    >>> points = np.array([[0.0], [0.1], [9.0], [9.1]])
    >>> cluster_agreement(points, np.array([3, 3, 5, 5])).normalized_mutual_information
    1.0
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels must have one class for each of {len(embeddings)} embeddings; got "
            f"shape {labels.shape}"
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings must be finite; got NaN or infinity")
    num_clusters = len(np.unique(labels))
    model = KMeans(num_clusters, n_init=num_starts, random_state=seed)
    with warnings.catch_warnings():  # of too few distinct rows, which are counted here
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = model.fit_predict(embeddings)
    if len(np.unique(clusters)) < num_clusters:
        return ClusterAgreement(np.nan, np.nan, num_clusters)
    return ClusterAgreement(
        float(normalized_mutual_info_score(labels, clusters)),
        float(adjusted_mutual_info_score(labels, clusters)),
        num_clusters,
    )
