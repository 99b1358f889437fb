"""How we compute what is no loss in pytorch-metric-learning, and the losses of optax.

Each function takes the `Batch` and the settings of the other library, under its own names
and with its own defaults, as in `golden/losses.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from siamese_jax import batching, distances, losses, miners, regularizers
from siamese_jax.distances import cosine_similarity_matrix, normalize
from siamese_jax.reductions import make_terms, mean, mean_of_active, sum_terms
from tests.golden.losses import contrastive, margin, of_cosines

# Regularizers and reducers --------------------------------------------------------------

REGULARIZERS = {
    "CenterInvariantRegularizer": lambda x: regularizers.equal_norm_penalty(x.proxies),
    "LpRegularizer": lambda x, p=2, power=1: regularizers.norm_penalty(
        x.embeddings, order=p, power=power
    ),
    "RegularFaceRegularizer": lambda x: regularizers.nearest_class_penalty(x.proxies),
    "SparseCentersRegularizer": lambda x, num_classes, centers_per_class: (
        regularizers.sparse_centers_penalty(x.centers)
    ),
    "ZeroMeanRegularizer": lambda x: regularizers.zero_mean_penalty(x.embeddings),
}


def reduced(reduce_fn):
    """A reducer of their ContrastiveLoss(pos_margin=0.3, neg_margin=1.2)."""
    return lambda x: contrastive(x, x.distances, 0.3, 1.2, reduce_fn)


def between_thresholds(x, low, high):
    def mean_of_some(terms):
        kept = (terms.values > low) & (terms.values < high)
        return mean(terms._replace(weights=jnp.where(kept, terms.weights, 0)))

    return reduced(mean_of_some)(x)


def mean_of_anchors(terms):
    sums = jnp.sum(terms.values, axis=1)
    return mean(make_terms(sums / jnp.maximum(jnp.sum(terms.where, axis=1), 1), None))


def class_weighted(x, weights):
    """Divides by the number of terms, where our mean divides by the sum of weights."""
    by_row = jnp.asarray(weights)[x.labels][:, None]
    return reduced(
        lambda t: sum_terms(t._replace(weights=t.weights * by_row)) / jnp.sum(t.where)
    )(x)


def mean_plus_sum(x, reducers):
    positive, negative = reduced(None)(x)
    return mean(positive) + sum_terms(negative)


def sum_over_number_of_active(terms):
    return sum_terms(terms) / jnp.sum(jnp.where(terms.values > 0, terms.weights, 0))


def weighted_sum_of_all_terms(x):
    return sum(jnp.sum(part.values * x.weights) for part in reduced(None)(x))


REDUCERS = {
    "AvgNonZeroReducer": reduced(mean_of_active),
    "ClassWeightedReducer": class_weighted,
    "DivisorReducer": lambda x: margin(x, reducer=sum_over_number_of_active),
    "DoNothingReducer": weighted_sum_of_all_terms,
    "MeanReducer": reduced(mean),
    "MultipleReducers": mean_plus_sum,
    "PerAnchorReducer": reduced(mean_of_anchors),
    "SumReducer": reduced(sum_terms),
    "ThresholdReducer": between_thresholds,
}

# Distances ------------------------------------------------------------------------------


def lp_distance(x, normalize_embeddings=True, p=2, power=1):
    x = normalize(x) if normalize_embeddings else x
    return {
        (2, 1): distances.euclidean_distance_matrix,
        (2, 2): distances.squared_euclidean_distance_matrix,
        (1, 1): distances.manhattan_distance_matrix,
        (3, 1): partial(distances.lp_distance_matrix, order=3),
    }[p, power](x, x)


def signal_to_noise_distance(x, normalize_embeddings=True):
    x = normalize(x) if normalize_embeddings else x
    return distances.signal_to_noise_distance_matrix(x, x)


def in_batches(x, distance, batch_size):
    x = normalize(x)
    return batching.map_batches(
        lambda rows: distances.euclidean_distance_matrix(rows, x), x, batch_size=batch_size
    )


DISTANCES = {
    "BatchedDistance": in_batches,
    "CosineSimilarity": lambda x: cosine_similarity_matrix(x, x),
    "DotProductSimilarity": lambda x, normalize_embeddings: distances.dot_similarity_matrix(
        x, x
    ),
    "LpDistance": lp_distance,
    "LpDistance by its order": lambda x, normalize_embeddings, p=2: (
        distances.lp_distance_matrix(x, x, order=p)
    ),
    "SNRDistance": signal_to_noise_distance,
}

# Miners ---------------------------------------------------------------------------------


def of_distances(mine, x, **options):
    same, where = x.relation
    return mine(x.distances, same, where=where, **options)


def angular(x, angle=20.0):
    """Does not scale embeddings to length 1, though the angles are meant to be of those."""
    same, where = x.relation
    return miners.angular_negatives(x.unscaled_distances, same, angle=angle, where=where)


def by_strategy(
    x,
    pos_strategy="easy",
    neg_strategy="semihard",
    allowed_pos_range=None,
    allowed_neg_range=None,
):
    if pos_strategy == "all":
        return of_distances(miners.nearest_mask, x, num_negatives=1)
    names = {"easy": "easy", "semihard": "semi-hard", "hard": "hard"}
    return of_distances(
        *(miners.mine_triplets, x),
        positive=names[pos_strategy],
        negative=names[neg_strategy],
        positive_range=allowed_pos_range and tuple(map(float, allowed_pos_range)),
        negative_range=allowed_neg_range and tuple(map(float, allowed_neg_range)),
    )


def distance_weighted(x, cutoff=0.5, nonzero_loss_cutoff=1.4, num_draws=400):
    same, where = x.relation
    options = {"dim": 5, "cutoff": cutoff, "max_distance": nonzero_loss_cutoff}
    keys = jax.random.split(jax.random.key(0), num_draws)
    return jax.vmap(
        lambda key: miners.distance_weighted_negatives(
            key, x.distances, same, **options, where=where
        )
    )(keys)


def multi_similarity(x, epsilon=0.1):
    same, where = x.relation
    return miners.multi_similarity_mask(x.cosines, same, margin=epsilon, where=where)


def number_of_triplets(x, margin=0.2, type_of_triplets="all"):
    """Of each anchor, those that cost something, and the hard ones among them."""

    def costly(margin):
        options = {"margin": margin, "active_only": True, "reduce_fn": None}
        return of_distances(losses.all_triplets_loss, x, **options).weights

    return {
        "all": lambda: costly(margin),
        "hard": lambda: costly(0.0),
        "semihard": lambda: costly(margin) - costly(0.0),
        "easy": lambda: costly(9.0) - costly(margin),
    }[type_of_triplets]()


def uniform_histogram(x, num_bins=100, pos_per_bin=10, neg_per_bin=10):
    same, where = x.relation
    options = {"num_positives": pos_per_bin, "num_negatives": neg_per_bin}
    return x.distances, miners.uniform_histogram_weights(
        *(jax.random.key(0), x.distances, same), num_bins=num_bins, **options, where=where
    )


MINERS = {
    "AngularMiner": angular,
    "BatchEasyHardMiner": by_strategy,
    "BatchHardMiner": partial(of_distances, miners.mine_triplets),
    "DistanceWeightedMiner": distance_weighted,
    "EmbeddingsAlreadyPackagedAsTriplets": lambda x: tuple(
        jnp.arange(len(x.embeddings))[i::3] for i in range(3)
    ),
    "HDCMiner": lambda x, filter_percentage=0.5: of_distances(
        miners.hardest_share_mask, x, share=filter_percentage
    ),
    "MultiSimilarityMiner": multi_similarity,
    "PairMarginMiner": lambda x, pos_margin=0.2, neg_margin=0.8: of_distances(
        miners.pair_margin_mask, x, positive_margin=pos_margin, negative_margin=neg_margin
    ),
    "TripletMarginMiner": number_of_triplets,
    "UniformHistogramMiner": uniform_histogram,
}

# Terms ----------------------------------------------------------------------------------


def of_euclidean(loss_fn, x, **options):
    same, where = x.relation
    return loss_fn(x.unscaled_distances, same, where=where, **options)


def terms_and_mean(of_matrix, loss_fn, x, **options):
    terms = of_matrix(loss_fn, x, reduce_fn=None, **options)
    return terms, of_matrix(loss_fn, x, **options)


def means_of_triplets(x, margin):
    means = [
        of_euclidean(losses.all_triplets_loss, x, margin=margin, active_only=active)
        for active in (False, True)
    ]
    return tuple(means)


TERMS = {
    "ContrastiveLoss": lambda x, pos_margin, neg_margin: terms_and_mean(
        *(of_euclidean, losses.contrastive_loss, x),
        positive_margin=pos_margin,
        margin=neg_margin,
    ),
    "SupConLoss": lambda x, temperature: terms_and_mean(
        of_cosines, losses.supervised_contrastive_loss, x, temperature=temperature
    ),
    "TripletMarginLoss": means_of_triplets,
    "TripletMarginLoss of the hardest": lambda x, margin: terms_and_mean(
        of_euclidean, losses.hard_triplet_loss, x, margin=margin
    ),
}

# Other libraries ------------------------------------------------------------------------


def ntxent(x, temperature=0.07):
    return of_cosines(losses.info_nce_loss, x, temperature=temperature)


def triplet_margin_of_optax(x, margin=1.0):
    anchors, positives, negatives = (x.embeddings[i::3] for i in range(3))
    return losses.triplet_loss(
        distances.euclidean_distance(anchors, positives),
        distances.euclidean_distance(anchors, negatives),
        margin=margin,
    )


OPTAX = {
    "cosine_distance": lambda x: jnp.mean(distances.cosine_distance(x.embeddings, x.other)),
    "cosine_similarity": lambda x: jnp.mean(
        distances.cosine_similarity(x.embeddings, x.other)
    ),
    "ntxent": ntxent,
    "sigmoid_binary_cross_entropy": lambda x: losses.logistic_loss(
        x.weights, x.relation.same
    ),
    "triplet_margin_loss": triplet_margin_of_optax,
}
