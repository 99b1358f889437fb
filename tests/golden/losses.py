"""How we compute the losses of pytorch-metric-learning: one expression for each.

Each function takes the `Batch` and the settings of that library, under its own names and
with its own defaults. Where the two differ, the expression computes its number from
ours, and its docstring says why they differ.
"""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siamese_jax import distances, losses, miners
from siamese_jax.distances import cosine_similarity_matrix, normalize
from siamese_jax.reductions import mean, mean_of_active
from siamese_jax.relations import Items, aligned, between, within

LABELS = [0, 1, 0, 2, 1, 0, 3, 1, 0, 2, 0, 1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Embeddings, what losses learn besides, and the matrices that most losses are of."""

    embeddings: Float[Array, "n dim"]
    other: Float[Array, "n dim"]
    proxies: Float[Array, "classes dim"]
    centers: Float[Array, "classes centers dim"]
    weights: Float[Array, "n n"]
    offsets: Float[Array, " classes"]  # zeros, added to the boundary of each class

    @property
    def labels(self):
        return jnp.array(LABELS)

    @property
    def relation(self):
        return within(Items(self.labels))

    @cached_property
    def cosines(self):
        return cosine_similarity_matrix(self.embeddings, self.embeddings)

    @cached_property
    def distances(self):
        """Euclidean distances of the embeddings scaled to length 1."""
        unit = normalize(self.embeddings)
        return distances.euclidean_distance_matrix(unit, unit)

    @cached_property
    def squared(self):
        unit = normalize(self.embeddings)
        return distances.squared_euclidean_distance_matrix(unit, unit)

    @cached_property
    def unscaled_distances(self):
        return distances.euclidean_distance_matrix(self.embeddings, self.embeddings)


# Losses of pairs and triplets -----------------------------------------------------------


def contrastive(x, d, pos_margin, neg_margin, reducer=mean_of_active):
    same, where = x.relation
    return losses.contrastive_loss(
        *(d, same),
        margin=neg_margin,
        positive_margin=pos_margin,
        factor=1.0,
        squared=False,
        apart=True,
        where=where,
        reduce_fn=reducer,
    )


def signal_to_noise(x, pos_margin=0.0, neg_margin=1.0):
    unit = normalize(x.embeddings)
    matrix = distances.signal_to_noise_distance_matrix(unit, unit)
    return contrastive(x, matrix, pos_margin, neg_margin)


def margin(
    x, margin=0.2, beta=1.2, learn_beta=False, num_classes=1, reducer=mean_of_active
):
    same, where = x.relation
    positive, negative = miners.sides(x.distances, same, where)
    num_triplets = jnp.where(
        same,
        jnp.sum(negative, axis=1, keepdims=True),
        jnp.sum(positive, axis=1, keepdims=True),
    )
    return losses.margin_loss(
        *(x.distances, same),
        boundary=beta + x.offsets[x.labels][:, None] if learn_beta else beta,
        margin=margin,
        where=where,
        weights=num_triplets.astype(float),  # it counts a pair once for each triplet
        reduce_fn=reducer,
    )


def threshold_consistent(
    x, margin_plus=0.9, margin_minus=0.5, lambda_plus=1.0, lambda_minus=1.0
):
    same, where = x.relation
    positive, negative = losses.threshold_consistent_margin_loss(
        *(x.cosines, same),
        positive_margin=margin_plus,
        negative_margin=margin_minus,
        where=where,
        reduce_fn=None,
    )
    return lambda_plus * mean(positive) + lambda_minus * mean(negative)


def triplet_margin(x, margin=0.05, swap=False, smooth_loss=False, reducer=None):
    same, where = x.relation
    return losses.all_triplets_loss(
        *(x.distances, same),
        margin=margin,
        soft=smooth_loss,
        swap=swap,
        active_only=reducer is None,
        where=where,
    )


def dynamic_soft_margin(x, num_bins=10, momentum=0.01, before=()):
    same = np.equal.outer(LABELS, LABELS)
    positive = same & ~np.eye(len(LABELS), dtype=bool)
    anchor, p, n = np.nonzero(positive[:, :, None] & ~same[:, None, :])
    histogram, loss = jnp.zeros(num_bins), 0.0
    for embeddings in (*before, x.embeddings):
        unit = normalize(embeddings)
        d = distances.euclidean_distance_matrix(unit, unit)
        loss, histogram = losses.dynamic_soft_margin_loss(
            d[anchor, p], d[anchor, n], histogram, momentum=momentum
        )
    return loss


def dynamic_soft_margin_in_a_second_step(x, **settings):
    return dynamic_soft_margin(x, **settings, before=[jax.lax.stop_gradient(x.other)])


# Losses of a row ------------------------------------------------------------------------


def of_cosines(loss_fn, x, reduce_fn=mean, **options):
    same, where = x.relation
    return loss_fn(x.cosines, same, where=where, reduce_fn=reduce_fn, **options)


def generalized_lifted(x, neg_margin=1.0, pos_margin=0.0):
    """Leaves a sum without a member out of max(0, a + b), where we leave the anchor out."""
    same, where = x.relation
    margin = neg_margin - pos_margin
    ours = losses.generalized_lifted_structure_loss(
        x.distances, same, margin=margin, where=where, reduce_fn=None
    )
    negative = ~same & where
    alone = jax.nn.logsumexp(neg_margin - x.distances, axis=1, where=negative)
    return jnp.mean(jnp.where(ours.where, ours.values, jax.nn.relu(alone)))


def lifted(x, neg_margin=1.0, pos_margin=0.0):
    same, where = x.relation
    margin = neg_margin - pos_margin
    return losses.lifted_structure_loss(x.distances, same, margin=margin, where=where)


def angular_of_any_length(x, alpha=40.0):
    """Scales anchors and positives to length 1 but not negatives, against the paper."""
    same, where = x.relation
    lengths = jnp.linalg.norm(x.embeddings, axis=1)[None, :]
    products = jnp.where(same, x.cosines, x.cosines * lengths)
    return losses.angular_loss(products, same, angle=alpha, where=where)


def ranked_list(x, margin, Tn, Tp=0.0, imbalance=0.5, alpha=None):
    """Adds 1e-5 for each item of the batch to the sums of weights it divides by."""
    alpha = 1 + margin / 2 if alpha is None else alpha
    same, where = x.relation
    d = x.distances
    positive = same & where & (d > alpha - margin)
    negative = ~same & where & (d < alpha)

    def theirs(balance, weights):
        ours = losses.ranked_list_loss(
            *(d, same),
            margin=margin,
            boundary=alpha,
            positive_scale=Tp,
            negative_scale=Tn,
            balance=balance,
            where=where,
            reduce_fn=None,
        )
        total = jnp.sum(weights, axis=1)
        return ours.values * total / (total + 1e-5 * len(d))

    pull = theirs(0.0, jnp.where(positive, jnp.exp(Tp * (d - (alpha - margin))), 0))
    push = theirs(1.0, jnp.where(negative, jnp.exp(Tn * (alpha - d)), 0))
    return jnp.mean((1 - imbalance) * pull + imbalance * push)


def histogram_with_single_items(x):
    """Leaves out negative pairs neither of whose items has a positive."""
    same, where = within(Items(jnp.array([0, 0, 1, 2])))
    has_positive = jnp.any(same & where, axis=1)
    where &= has_positive[:, None] | has_positive[None, :]
    cosines = cosine_similarity_matrix(x.embeddings[:4], x.embeddings[:4])
    return losses.histogram_loss(cosines, same, where=where)


def supervised_contrastive_of_one_class(x):
    """Is 0 for a batch of one class; by the paper it is the cross-entropy of its row."""
    same, where = within(Items(jnp.zeros(3, int)))
    any_negative = jnp.any(~same & where)
    cosines = cosine_similarity_matrix(x.embeddings[:3], x.embeddings[:3])
    return losses.supervised_contrastive_loss(cosines, same, where=where & any_negative)


def n_pairs(x, distance=None):
    pairs = [np.flatnonzero(np.equal(LABELS, label))[:2] for label in range(3)]
    anchors, positives = x.embeddings[np.array(pairs).T]
    products = distances.dot_similarity_matrix if distance else cosine_similarity_matrix
    same, where = aligned(3)
    return losses.info_nce_loss(
        products(anchors, positives), same, temperature=1.0, where=where
    )


def instance(x, gamma=64.0):
    """Takes the first embeddings of the batch for the proxies of the classes."""
    unit = normalize(x.embeddings)
    return losses.instance_loss(unit, x.labels, unit, scale=gamma)


# Losses of ranks ------------------------------------------------------------------------


def with_itself(labels):
    """The query is one of its own positives, in theirs and in the papers' code."""
    return between(Items(labels), Items(labels))


def smooth_ap(x, labels=(0, 0, 0, 1, 1, 1, 2, 2, 2), temperature=0.01):
    same, where = with_itself(jnp.array(labels))
    x = x.embeddings[: len(labels)]
    return losses.smooth_ap_loss(
        cosine_similarity_matrix(x, x), same, temperature=temperature, where=where
    )


def smooth_ap_of_two_classes_of_three(x):
    """Cuts the batch into K groups of C items for C classes of K items each."""
    return smooth_ap(x, labels=(0, 0, 1, 1, 2, 2))


def pnp(x, variant="O", anneal=0.01, alpha=1.0, b=2.0):
    growth = {"O": "linear", "Ds": "log", "Iu": "x log x"}
    growth |= {"Ib": "saturating", "Dq": "bounded"}
    same, where = with_itself(x.labels)
    where &= jnp.any(same & x.relation.where, axis=1, keepdims=True)  # no other positive
    return losses.pnp_loss(
        *(x.cosines, same),
        growth=growth[variant],
        temperature=anneal,
        power=alpha,
        slope=b,
        where=where,
    )


# Tables ---------------------------------------------------------------------------------

PAIRS = {
    "ContrastiveLoss": lambda x, pos_margin=0.0, neg_margin=1.0: contrastive(
        x, x.distances, pos_margin, neg_margin
    ),
    "DynamicSoftMarginLoss": dynamic_soft_margin,
    "DynamicSoftMarginLoss in a second step": dynamic_soft_margin_in_a_second_step,
    "MarginLoss": margin,
    "SignalToNoiseRatioContrastiveLoss": signal_to_noise,
    "ThresholdConsistentMarginLoss": threshold_consistent,
    "TripletMarginLoss": triplet_margin,
}

ROWS = {
    "AngularLoss": angular_of_any_length,
    "AngularLoss of unit embeddings": lambda x, alpha=40.0: of_cosines(
        losses.angular_loss, x, angle=alpha
    ),
    "CircleLoss": lambda x, m=0.4, gamma=80.0: of_cosines(
        losses.circle_loss, x, margin=m, scale=gamma, reduce_fn=mean_of_active
    ),
    "GeneralizedLiftedStructureLoss": generalized_lifted,
    "HistogramLoss": lambda x, n_bins=100: of_cosines(
        losses.histogram_loss, x, num_bins=n_bins
    ),
    "HistogramLoss with single items": histogram_with_single_items,
    "IntraPairVarianceLoss": lambda x, pos_eps=0.01, neg_eps=0.01: of_cosines(
        losses.intra_pair_variance_loss, x, positive_slack=pos_eps, negative_slack=neg_eps
    ),
    "LiftedStructureLoss": lifted,
    "MultiSimilarityLoss": lambda x, alpha=2.0, beta=50.0, base=0.5: of_cosines(
        losses.multi_similarity_loss,
        x,
        positive_scale=alpha,
        negative_scale=beta,
        base=base,
    ),
    "NPairsLoss": n_pairs,
    "NTXentLoss": lambda x, temperature=0.07: of_cosines(
        losses.info_nce_loss, x, temperature=temperature
    ),
    "RankedListLoss": ranked_list,
    "SelfSupervisedLoss": lambda x, loss: losses.nt_xent_loss(
        x.embeddings, x.other, temperature=loss[1]["temperature"]
    ),
    "SupConLoss": lambda x, temperature=0.1: of_cosines(
        losses.supervised_contrastive_loss, x, temperature=temperature
    ),
    "SupConLoss of one class": supervised_contrastive_of_one_class,
    "TupletMarginLoss": lambda x, margin=5.73, scale=64.0: of_cosines(
        losses.tuplet_margin_loss, x, angle=margin, scale=scale
    ),
    "VICRegLoss": lambda x, invariance_lambda=25.0, variance_mu=25.0, covariance_v=1.0: (
        losses.vicreg_loss(
            *(x.embeddings, x.other),
            invariance_weight=invariance_lambda,
            variance_weight=variance_mu,
            covariance_weight=covariance_v,
        )
    ),
}

RANKS = {
    "FastAPLoss": lambda x, num_bins=10: losses.fast_ap_loss(
        x.squared, x.relation.same, num_bins=num_bins, where=x.relation.where
    ),
    "NCALoss": lambda x, softmax_scale=1.0: losses.nca_loss(
        x.squared,
        x.relation.same,
        temperature=1 / softmax_scale,
        where=x.relation.where,
    ),
    "PNPLoss": pnp,
    "SmoothAPLoss": smooth_ap,
    "SmoothAPLoss of two classes of three": smooth_ap_of_two_classes_of_three,
}


def of_proxies(loss_fn, x, **options):
    return loss_fn(x.embeddings, x.labels, x.proxies, **options)


PROXIES = {
    "ArcFaceLoss": lambda x, margin=28.6, scale=64.0: of_proxies(
        losses.arc_face_loss, x, margin=margin, scale=scale
    ),
    "CosFaceLoss": lambda x, margin=0.35, scale=64.0: of_proxies(
        losses.cos_face_loss, x, margin=margin, scale=scale
    ),
    "InstanceLoss": instance,
    "LargeMarginSoftmaxLoss": lambda x, margin=4, scale=1.0: of_proxies(
        losses.large_margin_softmax_loss, x, margin=margin, scale=scale
    ),
    "NormalizedSoftmaxLoss": lambda x, temperature=0.05: of_proxies(
        losses.normalized_softmax_loss, x, temperature=temperature
    ),
    "P2SGradLoss": lambda x: of_proxies(losses.p2s_grad_loss, x),
    "ProxyAnchorLoss": lambda x, margin=0.1, alpha=32.0: of_proxies(
        losses.proxy_anchor_loss, x, margin=margin, scale=alpha
    ),
    "ProxyNCALoss": lambda x, softmax_scale=1.0: of_proxies(
        losses.proxy_nca_loss, x, temperature=1 / softmax_scale
    ),
    "SoftTripleLoss": lambda x, centers_per_class, la=20.0, gamma=0.1, margin=0.01: (
        losses.soft_triple_loss(
            *(x.embeddings, x.labels, x.centers),
            center_temperature=gamma,
            margin=margin,
            scale=la,
        )
    ),
    "SphereFaceLoss": lambda x, margin=4, scale=1.0: of_proxies(
        losses.sphere_face_loss, x, margin=margin, scale=scale
    ),
    "SubCenterArcFaceLoss": lambda x, margin=28.6, scale=64.0: losses.arc_face_loss(
        x.embeddings, x.labels, x.centers, margin=margin, scale=scale
    ),
}
