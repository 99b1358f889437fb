"""Evaluation of embeddings by all figures of the library, as `siamese-jax evaluate` does.

`make_sets` checks arrays, and `evaluate_sets` computes everything that applies to them:
retrieval, verification over all pairs, few-shot tasks, agreement of clusters, and health.

>>> import numpy as np
>>> embeddings = np.array([[0.0, 1.0], [0.1, 1.0], [5.0, 1.0], [5.1, 1.0], [9.0, 1.0]])
>>> found = evaluate_sets(make_sets(embeddings, ["a", "a", "b", "b", "c"]))
>>> found.groups["retrieval"]["precision_at_1"].value
1.0
>>> found.groups["verification"]["equal_error_rate"].value
0.0

A figure that means nothing for these embeddings has no value, but a reason:

>>> found.groups["few-shot, inductive"]["5_way_1_shot_prototype"].why
'2 of 3 classes have 2 rows or more; 5 are needed'

`verify` gives the figures of verification for the pairs of a list.
"""

from siamese_jax.evaluation.clusters import ClusterAgreement, cluster_agreement
from siamese_jax.evaluation.figures import Figure
from siamese_jax.evaluation.neighbours import Answer, ClassFigures, Ranked
from siamese_jax.evaluation.pairs import Pairs
from siamese_jax.evaluation.sets import EmbeddingSet, Sets, make_sets
from siamese_jax.evaluation.verified import Verified, verify
from siamese_jax.evaluation.whole import Evaluated, evaluate_sets

__all__ = [
    "Answer",
    "ClassFigures",
    "ClusterAgreement",
    "EmbeddingSet",
    "Evaluated",
    "Figure",
    "Pairs",
    "Ranked",
    "Sets",
    "Verified",
    "cluster_agreement",
    "evaluate_sets",
    "make_sets",
    "verify",
]
