"""What optax and scikit-learn compute from the inputs of make_peers.py, which calls it."""

import numpy as np


def optax(inputs: dict[str, np.ndarray], labels: list[int]) -> dict:
    """Where it is right: no eps under the root, and an even degree of the norm."""
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)
    arrays = {name: jax.numpy.asarray(array) for name, array in inputs.items()}
    classes = jax.numpy.asarray(labels)
    of_inputs = {
        "ntxent": lambda x, **options: optax.losses.ntxent(
            x["embeddings"], classes, **options
        ),
        "triplet_margin_loss": lambda x, **options: optax.losses.triplet_margin_loss(
            *(x["embeddings"][i::3] for i in range(3)), eps=0.0, **options
        ).mean(),
        "cosine_similarity": lambda x: optax.losses.cosine_similarity(
            x["embeddings"], x["other"]
        ).mean(),
        "cosine_distance": lambda x: optax.losses.cosine_distance(
            x["embeddings"], x["other"]
        ).mean(),
        "sigmoid_binary_cross_entropy": lambda x: optax.losses.sigmoid_binary_cross_entropy(
            x["weights"], classes[:, None] == classes
        ).mean(),
    }
    cases = {
        "ntxent": [{}, {"temperature": 0.5}],
        "triplet_margin_loss": [{}, {"margin": 0.2}],
    }

    def case(name: str, settings: dict) -> dict:
        fn = jax.value_and_grad(lambda x: of_inputs[name](x, **settings))
        value, gradients = fn(arrays)
        gradients = {key: g for key, g in gradients.items() if (g != 0).any()}
        return {"settings": settings, "value": value, "gradients": gradients}

    return {
        name: [case(name, settings) for settings in cases.get(name, [{}])]
        for name in of_inputs
    }


def sklearn(inputs: dict[str, np.ndarray], labels: list[int]) -> dict:
    """Matrices of distances, and figures that losses are or approach."""
    from sklearn import metrics
    from sklearn.metrics import pairwise

    x, classes = inputs, np.asarray(labels)
    factor = x["other"][:2]
    options = {
        "cosine": {},
        "manhattan": {},
        "chebyshev": {},
        "mahalanobis": {"VI": factor.T @ factor},
    }
    logits = x["weights"][:, :4]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cosines = pairwise.cosine_similarity(x["embeddings"])
    others = ~np.eye(len(classes), dtype=bool)
    precisions = [
        metrics.average_precision_score(classes[i] == classes[others[i]], row[others[i]])
        for i, row in enumerate(cosines)
        if np.sum(classes == classes[i]) > 1
    ]
    return {
        "matrices": {
            name: pairwise.pairwise_distances(x["embeddings"], metric=name, **kwargs)
            for name, kwargs in options.items()
        },
        "log_loss": metrics.log_loss(classes, shares),
        "average_precision": precisions,
    }
