"""Writes pytorch_metric_learning.json: losses of a small batch from another library.

The tests read the JSON file and do not run this script. It needs a separate environment:

    pip install torch==2.13.0 pytorch-metric-learning==2.9.0 numpy==2.4.6
    python make_pytorch_metric_learning.py

The other library differs from ours in these points:

* `ContrastiveLoss` does not square, and it averages positives and negatives separately. The
  file therefore has the hinge of each pair, or null where there is no pair. Our loss is
  factor * hinge^2.
* `TripletMarginLoss` averages over all triplets with `MeanReducer`. With
  `AvgNonZeroReducer` it averages over those with a positive hinge, like our `active_only`.
* `SupConLoss` gives an anchor without a positive the loss 0. `AvgNonZeroReducer` leaves the
  anchor out, as our loss does. `MeanReducer` divides by all n anchors, which equals our
  sum_terms / n.
* `torch.cdist` computes from differences up to 25 rows. For more rows it uses an inexact
  expansion.
"""

import json
import math
from importlib import metadata
from pathlib import Path

import numpy as np

SEED = 0
LABELS = [0, 1, 0, 2, 1, 0, 3, 1, 0, 2, 0, 1]  # classes of 5, 4, 2 and 1


def make_embeddings() -> np.ndarray:
    """Loose clusters, with an equal pair of one class and a near pair of two classes."""
    rng = np.random.default_rng(SEED)
    centres, noise = rng.normal(size=(4, 5)), rng.normal(size=(len(LABELS), 5))
    embeddings = centres[LABELS] + 0.6 * noise
    embeddings[2] = embeddings[0]
    embeddings[4] = embeddings[3] + 1e-4
    return embeddings.round(6)


def golden_values() -> dict:
    """Every value of the file; torch is imported here, for pytest imports this module."""
    import torch
    from pytorch_metric_learning import distances, losses, miners, reducers

    embeddings = torch.tensor(make_embeddings(), dtype=torch.float64)
    labels = torch.tensor(LABELS)
    size = len(LABELS)
    euclidean = distances.LpDistance(p=2, normalize_embeddings=False)

    def scatter(values: torch.Tensor, indices: tuple, shape: tuple) -> torch.Tensor:
        return torch.full(shape, math.nan, dtype=values.dtype).index_put(indices, values)

    def contrastive(positive_margin: float, negative_margin: float) -> dict:
        loss_fn = losses.ContrastiveLoss(
            pos_margin=positive_margin,
            neg_margin=negative_margin,
            distance=euclidean,
            reducer=reducers.DoNothingReducer(),
        )
        parts = loss_fn(embeddings, labels)
        positive, negative = (
            scatter(parts[name]["losses"], parts[name]["indices"], (size, size))
            for name in ("pos_loss", "neg_loss")
        )
        return {
            "positive_margin": positive_margin,
            "margin": negative_margin,
            "positive_hinges": positive,
            "negative_hinges": negative,
        }

    def triplet(margin: float) -> dict:
        def loss(reducer, triplets=None):
            loss_fn = losses.TripletMarginLoss(
                margin=margin, smooth_loss=False, distance=euclidean, reducer=reducer
            )
            return loss_fn(embeddings, labels, triplets)

        hardest = miners.BatchHardMiner(distance=euclidean)(embeddings, labels)
        per_anchor = loss(reducers.DoNothingReducer(), hardest)["loss"]["losses"]
        return {
            "margin": margin,
            "all": loss(reducers.MeanReducer()),
            "all_active": loss(reducers.AvgNonZeroReducer()),
            "hard": loss(reducers.MeanReducer(), hardest),
            "hard_per_anchor": scatter(per_anchor, hardest[:1], (size,)),
        }

    def supervised_contrastive(temperature: float) -> dict:
        def loss(reducer):
            loss_fn = losses.SupConLoss(
                temperature, distance=distances.CosineSimilarity(), reducer=reducer
            )
            return loss_fn(embeddings, labels)

        return {
            "temperature": temperature,
            "per_anchor": loss(reducers.DoNothingReducer())["loss"]["losses"],
            "mean_of_positive": loss(reducers.AvgNonZeroReducer()),
            "mean_of_all": loss(reducers.MeanReducer()),
        }

    matrix_fns = {
        "euclidean": euclidean,
        "squared_euclidean": distances.LpDistance(normalize_embeddings=False, power=2),
        "manhattan": distances.LpDistance(p=1, normalize_embeddings=False),
        "lp_3": distances.LpDistance(p=3, normalize_embeddings=False),
        "cosine_similarity": distances.CosineSimilarity(),
        "dot_similarity": distances.DotProductSimilarity(normalize_embeddings=False),
    }
    packages = ("torch", "pytorch-metric-learning", "numpy")
    return {
        "versions": {name: metadata.version(name) for name in packages},
        "seed": SEED,
        "labels": LABELS,
        "embeddings": embeddings,
        "matrices": {name: fn(embeddings) for name, fn in matrix_fns.items()},
        "contrastive": [
            contrastive(0.0, 1.0),
            contrastive(0.5, 3.0),
            contrastive(2.0, 4.0),
        ],
        "triplet": [triplet(margin) for margin in (0.0, 0.2, 1.0, 5.0)],
        "supervised_contrastive": [supervised_contrastive(t) for t in (0.1, 0.5)],
    }


def plain(value):
    """For JSON: tensors as lists, NaN as null, floats to 15 digits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.15g}")
    return value


if __name__ == "__main__":
    lines = [f'"{key}": {json.dumps(plain(v))}' for key, v in golden_values().items()]
    path = Path(__file__).with_name("pytorch_metric_learning.json")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
