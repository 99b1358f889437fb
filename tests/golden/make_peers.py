"""Writes peers.json: what other libraries compute from one small batch, with gradients.

The tests read the JSON file and do not run this script. It needs a separate environment:

    pip install torch==2.13.0 pytorch-metric-learning==2.9.0 scikit-learn==1.9.1
    pip install optax==0.2.8 jaxlib==0.10.1 jax==0.10.2 faiss-cpu==1.15.1
    python -m tests.golden.make_peers

The cases of pytorch-metric-learning stand under its own names, with its own settings, of
which `[name, settings]` is one of its distances or reducers. All gradients are in float64.
`losses.py` and `others.py` beside this file say how each is computed by us.

Where its results depend on more than the inputs, the script settles it:

* `AngularLoss` is given embeddings of length 1, and once those of any length.
* `P2SGradLoss` scales its weights by `renorm`, which is exact to 1e-7 only, and outside of
  the graph. It is given weights of length 1e-5, which are not scaled, and its gradient is
  taken through the scaling.
* `DynamicSoftMarginLoss` keeps a histogram with its graph, so that the backward pass of a
  second step raises. The histogram is given violations without a graph.
* `DistanceWeightedMiner` draws at random; its probabilities are recorded instead.
* `torch.cdist` computes from differences up to 25 rows. For more rows it uses an inexact
  expansion.
"""

import json
import math
from importlib import metadata
from pathlib import Path

import numpy as np

from tests.golden import make_others

SEED = 0
LABELS = [0, 1, 0, 2, 1, 0, 3, 1, 0, 2, 0, 1]  # classes of 5, 4, 2 and 1
NUM_CLASSES, NUM_CENTERS, DIM = 6, 3, 5  # two classes have no example

LOSSES: dict[str, list[dict]] = {
    "AngularLoss": [{}],
    "AngularLoss of unit embeddings": [{}, {"alpha": 30}],
    "ArcFaceLoss": [{}, {"margin": 100, "scale": 10}],
    "CircleLoss": [{}, {"m": 0.25, "gamma": 10}],
    "ContrastiveLoss": [{}, {"pos_margin": 0.3, "neg_margin": 1.2}],
    "CosFaceLoss": [{}, {"margin": 0.2, "scale": 5}],
    "DynamicSoftMarginLoss": [{}],
    "DynamicSoftMarginLoss in a second step": [{"num_bins": 8, "momentum": 0.3}],
    "FastAPLoss": [{}, {"num_bins": 7}],
    "GeneralizedLiftedStructureLoss": [{}, {"neg_margin": 0.5, "pos_margin": 0.1}],
    "HistogramLoss": [{}, {"n_bins": 12}],
    "HistogramLoss with single items": [{}],
    "InstanceLoss": [{}, {"gamma": 8}],
    "IntraPairVarianceLoss": [{}, {"pos_eps": 0.1, "neg_eps": 0.2}],
    "LargeMarginSoftmaxLoss": [{}, {"margin": 3, "scale": 2}],
    "LiftedStructureLoss": [{}, {"neg_margin": 0.5, "pos_margin": 0.1}],
    "MarginLoss": [{}, {"margin": 0.1, "beta": 0.9, "learn_beta": True, "num_classes": 6}],
    "MultiSimilarityLoss": [{}, {"alpha": 3, "beta": 20, "base": 0.3}],
    "NCALoss": [{}, {"softmax_scale": 5}],
    "NPairsLoss": [
        {},
        {"distance": ["DotProductSimilarity", {"normalize_embeddings": False}]},
    ],
    "NTXentLoss": [{}, {"temperature": 0.5}],
    "NormalizedSoftmaxLoss": [{}, {"temperature": 0.5}],
    "P2SGradLoss": [{}],
    "PNPLoss": [
        {},
        {"variant": "Ds", "anneal": 0.1},
        {"variant": "Dq", "alpha": 2},
        {"variant": "Iu"},
        {"variant": "Ib", "b": 3},
    ],
    "ProxyAnchorLoss": [{}, {"margin": 0.2, "alpha": 8}],
    "ProxyNCALoss": [{}, {"softmax_scale": 9}],
    "RankedListLoss": [
        {"margin": 0.4, "Tn": 10},
        {"margin": 0.5, "Tn": 3, "Tp": 2, "imbalance": 0.3, "alpha": 1.1},
    ],
    "SignalToNoiseRatioContrastiveLoss": [{}, {"pos_margin": 0.2, "neg_margin": 2}],
    "SmoothAPLoss": [{}, {"temperature": 0.1}],
    "SmoothAPLoss of two classes of three": [{}],
    "SelfSupervisedLoss": [{"loss": ["NTXentLoss", {"temperature": 0.5}]}],
    "SoftTripleLoss": [
        {"centers_per_class": NUM_CENTERS},
        {"centers_per_class": NUM_CENTERS, "la": 5, "gamma": 0.5, "margin": 0.2},
    ],
    "SphereFaceLoss": [{}, {"margin": 2, "scale": 3}],
    "SubCenterArcFaceLoss": [{}, {"margin": 100, "scale": 10}],
    "SupConLoss": [{}, {"temperature": 0.5}],
    "SupConLoss of one class": [{}],
    "ThresholdConsistentMarginLoss": [
        {},
        {"margin_plus": 0.5, "margin_minus": 0.1, "lambda_plus": 2},
    ],
    "TripletMarginLoss": [
        {},
        {"margin": 0.2, "swap": True},
        {"margin": 0, "smooth_loss": True, "reducer": ["MeanReducer", {}]},
    ],
    "TupletMarginLoss": [{}, {"margin": 20, "scale": 10}],
    "VICRegLoss": [{}, {"invariance_lambda": 10, "variance_mu": 5, "covariance_v": 2}],
}
REGULARIZERS: dict[str, list[dict]] = {
    "CenterInvariantRegularizer": [{}],
    "LpRegularizer": [{}, {"p": 3, "power": 2}],
    "RegularFaceRegularizer": [{}],
    "SparseCentersRegularizer": [
        {"num_classes": NUM_CLASSES, "centers_per_class": NUM_CENTERS}
    ],
    "ZeroMeanRegularizer": [{}],
}
# reducers of ContrastiveLoss(pos_margin=0.3, neg_margin=1.2) or, if it needs a divisor, of
# MarginLoss
REDUCERS: dict[str, list[dict]] = {
    "AvgNonZeroReducer": [{}],
    "ClassWeightedReducer": [{"weights": [0.5, 2, 1, 3]}],
    "DivisorReducer": [{}],
    "DoNothingReducer": [{}],
    "MeanReducer": [{}],
    "MultipleReducers": [{"reducers": {"neg_loss": ["SumReducer", {}]}}],
    "PerAnchorReducer": [{}],
    "SumReducer": [{}],
    "ThresholdReducer": [{"low": 0.1, "high": 0.6}],
}
# losses with the DoNothingReducer and two others
TERMS: dict[str, list[dict]] = {
    "ContrastiveLoss": [
        {"pos_margin": 0.0, "neg_margin": 1.0},
        {"pos_margin": 0.5, "neg_margin": 3.0},
        {"pos_margin": 2.0, "neg_margin": 4.0},
    ],
    "TripletMarginLoss": [{"margin": margin} for margin in (0.0, 0.2, 1.0, 5.0)],
    "TripletMarginLoss of the hardest": [{"margin": m} for m in (0.0, 0.2, 1.0, 5.0)],
    "SupConLoss": [{"temperature": 0.1}, {"temperature": 0.5}],
}
DISTANCES: dict[str, list[dict]] = {
    "BatchedDistance": [{"distance": ["LpDistance", {}], "batch_size": 5}],
    "CosineSimilarity": [{}],
    "DotProductSimilarity": [{"normalize_embeddings": False}],
    "LpDistance": [
        {"normalize_embeddings": False},
        {"normalize_embeddings": False, "power": 2},
        {"normalize_embeddings": False, "p": 1},
        {"normalize_embeddings": False, "p": 3},
    ],
    "LpDistance by its order": [
        {"normalize_embeddings": False, "p": 1},
        {"normalize_embeddings": False},
    ],
    "SNRDistance": [{}, {"normalize_embeddings": False}],
}
MINERS: dict[str, list[dict]] = {
    "AngularMiner": [{}, {"angle": 45}],
    "BatchEasyHardMiner": [
        {},
        {"pos_strategy": "semihard", "neg_strategy": "hard"},
        {
            "pos_strategy": "hard",
            "neg_strategy": "easy",
            "allowed_pos_range": [0.2, 1],
            "allowed_neg_range": [0.5, 1.5],
        },
        {"pos_strategy": "all", "neg_strategy": "hard"},
    ],
    "BatchHardMiner": [{}],
    "DistanceWeightedMiner": [{}, {"cutoff": 0.8, "nonzero_loss_cutoff": 1.6}],
    "EmbeddingsAlreadyPackagedAsTriplets": [{}],
    "HDCMiner": [{}, {"filter_percentage": 0.4}],
    "MultiSimilarityMiner": [{}, {"epsilon": 0.3}],
    "PairMarginMiner": [{}, {"pos_margin": 0.5, "neg_margin": 1.1}],
    "TripletMarginMiner": [
        {},
        {"type_of_triplets": "hard"},
        {"type_of_triplets": "semihard"},
        {"type_of_triplets": "easy", "margin": 0.4},
    ],
    "UniformHistogramMiner": [{"num_bins": 6, "pos_per_bin": 4, "neg_per_bin": 2}],
}
SEARCH: dict[str, list[dict]] = {
    "CustomKNN": [{}, {"batch_size": 5}],
    "FaissKNN": [{}],
    "InferenceModel": [{}],
    "MatchFinder": [{"threshold": 1.0}],
}
FIGURES = [{"k": None}, {"k": None, "avg_of_avgs": True}, {"k": "max_bin_count"}]


def make_inputs() -> dict[str, np.ndarray]:
    """Loose clusters, the same with an equal and a near pair, a second view, proxies."""
    rng = np.random.default_rng(SEED)
    centres, noise = rng.normal(size=(4, DIM)), rng.normal(size=(len(LABELS), DIM))
    embeddings = (centres[LABELS] + 0.6 * noise).round(6)
    with_equal = embeddings.copy()
    with_equal[2] = with_equal[0]  # of one class
    with_equal[4] = with_equal[3] + 1e-4  # of two classes
    other = embeddings + 0.3 * rng.normal(size=embeddings.shape)
    centers = rng.normal(size=(NUM_CLASSES, NUM_CENTERS, DIM))
    centers[:4, 0] += centres
    return {
        "embeddings": embeddings,
        "with_equal": with_equal.round(6),
        "other": other.round(6),
        "centers": centers.round(6),
        "proxies": centers[:, 0].round(6),
        "weights": rng.normal(size=(len(LABELS), len(LABELS))).round(6),
        "offsets": np.zeros(NUM_CLASSES),  # of the boundaries of the classes
    }


# which of our inputs stands for what they learn
WEIGHTS = {
    **dict.fromkeys(["ArcFaceLoss", "CosFaceLoss", "LargeMarginSoftmaxLoss"], "proxies"),
    **dict.fromkeys(["NormalizedSoftmaxLoss", "ProxyAnchorLoss"], "proxies"),
    **dict.fromkeys(["ProxyNCALoss", "SphereFaceLoss", "P2SGradLoss"], "proxies"),
    **dict.fromkeys(["SoftTripleLoss", "SubCenterArcFaceLoss"], "centers"),
    "MarginLoss": "offsets",
}


class PytorchMetricLearning:
    """Its values of one batch; torch is imported here, for pytest imports this module."""

    def __init__(self):
        import torch
        from pytorch_metric_learning import (
            distances,
            losses,
            miners,
            reducers,
            regularizers,
        )
        from pytorch_metric_learning.utils import loss_and_miner_utils

        torch.manual_seed(SEED)
        torch.set_default_dtype(torch.float64)  # else margins are rounded to float32
        self.torch, self.utils = torch, loss_and_miner_utils
        self.unit = torch.nn.functional.normalize
        self.modules = (distances, losses, miners, reducers, regularizers)
        self.labels = torch.tensor(LABELS)
        self.x = {name: torch.tensor(array) for name, array in make_inputs().items()}

    def make(self, name: str, settings: dict):
        """An object of the class of this name."""

        def value(setting):
            if isinstance(setting, dict):
                return {key: value(item) for key, item in setting.items()}
            named = isinstance(setting, list) and isinstance(setting[0], str)
            return self.make(*setting) if named else setting

        settings = {key: value(setting) for key, setting in settings.items()}
        if name == "ClassWeightedReducer":
            settings["weights"] = self.torch.tensor(settings["weights"])
        return next(vars(m)[name] for m in self.modules if name in vars(m))(**settings)

    def make_loss(self, name: str, settings: dict, weights):
        name = name.split()[0]
        if name not in WEIGHTS or name == "MarginLoss":
            return self.make(name, settings)
        of_p2s = name == "P2SGradLoss"
        dim = "descriptors_dim" if of_p2s else "embedding_size"
        loss_fn = self.make(name, {"num_classes": NUM_CLASSES, dim: DIM} | settings)
        (parameter,) = loss_fn.parameters()
        scale = 1e-5 * (1 - 1e-15) if of_p2s else 1
        flat = weights.detach() * scale
        parameter.data = (flat.T if len(parameter) == DIM else flat).clone()
        return loss_fn

    def arguments(self, name: str, x: dict) -> tuple:
        """What a loss or regularizer is given."""
        embeddings, labels = x["embeddings"], self.labels
        three = self.torch.arange(9) // 3
        return {
            "AngularLoss of unit embeddings": (self.unit(embeddings), labels),
            "HistogramLoss with single items": (
                embeddings[:4],
                self.torch.tensor([0, 0, 1, 2]),
            ),
            "SmoothAPLoss": (embeddings[:9], three),
            "SmoothAPLoss of two classes of three": (embeddings[:6], three[:6]),
            "SupConLoss of one class": (embeddings[:3], labels[:3] * 0),
            "VICRegLoss": (embeddings, None, None, x["other"]),
            "SelfSupervisedLoss": (embeddings, x["other"]),
            "LpRegularizer": (embeddings,),
            "ZeroMeanRegularizer": (embeddings,),
            "CenterInvariantRegularizer": (x["proxies"],),
            "RegularFaceRegularizer": (x["proxies"],),
            "SparseCentersRegularizer": (x["centers"].reshape(-1, DIM),),
        }.get(name, (embeddings, labels))

    def loss(self, name: str, settings: dict) -> dict:
        """Value of a loss, and its gradients with respect to all that it depends on."""
        x = {key: array.clone().requires_grad_() for key, array in self.x.items()}
        weights = x[WEIGHTS[name]] if name in WEIGHTS else None
        if name in WEIGHTS and name != "MarginLoss":
            weights = weights.reshape(-1, DIM)
        if name == "P2SGradLoss":
            weights = self.unit(weights)
        loss_fn = self.make_loss(name, settings, weights)
        if name.startswith("DynamicSoftMarginLoss"):
            update = loss_fn.update_histogram
            loss_fn.update_histogram = lambda violations: update(violations.detach())
        if name.endswith("in a second step"):
            loss_fn(x["other"], self.labels)
        value = loss_fn(*self.arguments(name, x))
        if isinstance(value, dict):  # unreduced: the sum of terms times weights
            value = sum(
                self.torch.sum(part["losses"] * x["weights"][part["indices"]])
                for part in value.values()
            )
        value.backward()
        for parameter in loss_fn.parameters():
            turned = parameter.grad.T if len(parameter) == DIM else parameter.grad
            weights.backward(turned)
        gradients = {key: array.grad for key, array in x.items() if array.grad is not None}
        return {"settings": settings, "value": value, "gradients": gradients}

    def reduced(self, name: str, settings: dict) -> dict:
        loss, options = "ContrastiveLoss", {"pos_margin": 0.3, "neg_margin": 1.2}
        if name == "DivisorReducer":
            loss, options = "MarginLoss", {}
        found = self.loss(loss, options | {"reducer": [name, settings]})
        return found | {"settings": settings}

    def terms(self, name: str, settings: dict) -> dict:
        """The terms, NaN where there is none, of embeddings of which two are equal."""
        x, torch = self.x["with_equal"], self.torch
        distance = ["LpDistance", {"normalize_embeddings": False}]
        if name == "SupConLoss":
            distance = ["CosineSimilarity", {}]
        hardest = None
        if name == "TripletMarginLoss of the hardest":
            hardest = self.make("BatchHardMiner", {"distance": distance})(x, self.labels)

        def run(reducer: str):
            options = {"distance": distance, "reducer": [reducer, {}]}
            return self.make(name.split()[0], settings | options)(x, self.labels, hardest)

        def placed(part: dict):
            indices = part["indices"][:1] if hardest else part["indices"]
            indices = (indices,) if torch.is_tensor(indices) else indices
            shape = [len(LABELS)] * len(indices)
            return torch.full(shape, math.nan).index_put(tuple(indices), part["losses"])

        found = {key: run(key) for key in ("MeanReducer", "AvgNonZeroReducer")}
        if name != "TripletMarginLoss":  # n^3 of them
            parts = run("DoNothingReducer")
            found |= {key: placed(part) for key, part in parts.items()}
        return {"settings": settings} | found

    def distance(self, name: str, settings: dict) -> dict:
        """A matrix, and the gradient of the sum of its entries times the weights."""
        x = self.x["with_equal"].clone().requires_grad_()
        if name == "BatchedDistance":
            rows = []
            self.make(name, settings | {"iter_fn": lambda m, s, e: rows.append(m)})(x)
            values = self.torch.cat(rows)
        else:
            values = self.make(name.split()[0], settings)(x)
        self.torch.sum(values * self.x["weights"]).backward()
        return {"settings": settings, "value": values, "gradient": x.grad}

    def mined(self, name: str, settings: dict) -> dict:
        miner, x = self.make(name, settings), self.x["embeddings"]
        if name == "DistanceWeightedMiner":
            recorded = []
            self.utils.get_random_triplet_indices = lambda labels, ref_labels, weights: (
                recorded.append(weights) or [labels] * 3
            )
            miner(x, self.labels)
            return {"settings": settings, "probabilities": recorded[0]}
        found = {"settings": settings, "indices": miner(x, self.labels)}
        if name == "UniformHistogramMiner":
            d = miner.distance(x)
            pairs = self.utils.get_all_pairs_indices(self.labels)
            found["bins"] = [miner.get_bins(d[pairs[:2]]), miner.get_bins(d[pairs[2:]])]
        return found

    def figures(self, _: str, settings: dict) -> dict:
        """Of the embeddings in themselves, and in the second views."""
        from pytorch_metric_learning.utils import accuracy_calculator, inference

        knn = inference.CustomKNN(self.make("LpDistance", {"normalize_embeddings": False}))
        options = {"exclude": ("NMI", "AMI"), "knn_func": knn, **settings}
        calculator = accuracy_calculator.AccuracyCalculator(**options)
        own, other = ((self.x[key], self.labels) for key in ("embeddings", "other"))
        both = calculator.get_accuracy(*own), calculator.get_accuracy(*own, *other)
        return {"settings": settings, "itself": both[0], "others": both[1]}

    def search(self, name: str, settings: dict) -> dict:
        """The three nearest rows, or those that are near enough."""
        from pytorch_metric_learning.utils import inference

        x, other, distance = (
            self.x["embeddings"],
            self.x["other"],
            self.make("LpDistance", {}),
        )
        if name == "MatchFinder":
            finder = inference.MatchFinder(distance, **settings)
            pairs, rows = finder.get_matching_pairs(x, other), finder.is_match(x, other)
            return {"settings": settings, "pairs": pairs, "rows": rows}
        if name == "InferenceModel":
            settings = settings | {"data_device": "cpu", "dtype": self.torch.float32}
            model = inference.InferenceModel(self.torch.nn.Identity(), **settings)
            model.train_knn(other)
            return {"settings": {}, "others": model.get_nearest_neighbors(x, 3)}
        args = (distance,) if name == "CustomKNN" else ()
        knn = getattr(inference, name)(*args, **settings)
        itself = knn(x, 3, x, ref_includes_query=True)
        return {"settings": settings, "itself": itself, "others": knn(x, 3, other)}

    def all(self) -> dict:
        tables = {
            "figures": (self.figures, {"AccuracyCalculator": FIGURES}),
            "search": (self.search, SEARCH),
            "losses": (self.loss, LOSSES),
            "regularizers": (self.loss, REGULARIZERS),
            "reducers": (self.reduced, REDUCERS),
            "terms": (self.terms, TERMS),
            "distances": (self.distance, DISTANCES),
            "miners": (self.mined, MINERS),
        }
        return {
            section: {name: [fn(name, s) for s in cases] for name, cases in table.items()}
            for section, (fn, table) in tables.items()
        }


def plain(value):
    """For JSON: arrays as lists, NaN as null, floats to 15 digits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.15g}")
    return value


if __name__ == "__main__":
    packages = ("torch", "pytorch-metric-learning", "optax", "scikit-learn", "numpy")
    packages += ("faiss-cpu",)
    sections = {
        "versions": {name: metadata.version(name) for name in packages},
        "labels": LABELS,
        "inputs": make_inputs(),
        "pytorch_metric_learning": PytorchMetricLearning().all(),
        "optax": make_others.optax(make_inputs(), LABELS),
        "sklearn": make_others.sklearn(make_inputs(), LABELS),
    }
    lines = [f'"{key}": {json.dumps(plain(v))}' for key, v in sections.items()]
    path = Path(__file__).with_name("peers.json")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
