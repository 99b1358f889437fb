"""What the peers have against what is here: `python -m benchmarks.coverage`.

Each name of a peer has an expression in `docs/coming-from.md`, which runs as a test. It
counts if each of our functions in it has a row in the contract table, with an oracle
written from the paper unless it is random, and if the peer's values are among the golden
ones. (Those are of pytorch-metric-learning and optax.) The command fails if a name that
should count does not.
"""

import importlib
import json
import pathlib
import re
import sys

import siamese_jax

ROOT = pathlib.Path(__file__).parents[1]

# the names of pytorch-metric-learning 2.9.0, TensorFlow Similarity 0.17, Open Metric
# Learning 4.0 and optax 0.2.8
PEERS = {
    ("pytorch-metric-learning", "losses"): """
        AngularLoss ArcFaceLoss CircleLoss ContrastiveLoss CosFaceLoss DynamicSoftMarginLoss
        FastAPLoss GeneralizedLiftedStructureLoss HistogramLoss InstanceLoss
        IntraPairVarianceLoss LargeMarginSoftmaxLoss LiftedStructureLoss ManifoldLoss
        MarginLoss MultiSimilarityLoss NCALoss NPairsLoss NTXentLoss NormalizedSoftmaxLoss
        P2SGradLoss PNPLoss ProxyAnchorLoss ProxyNCALoss RankedListLoss
        SignalToNoiseRatioContrastiveLoss SmoothAPLoss SoftTripleLoss SphereFaceLoss
        SubCenterArcFaceLoss SupConLoss ThresholdConsistentMarginLoss TripletMarginLoss
        TupletMarginLoss VICRegLoss""",
    ("pytorch-metric-learning", "miners"): """
        AngularMiner BatchEasyHardMiner BatchHardMiner DistanceWeightedMiner
        EmbeddingsAlreadyPackagedAsTriplets HDCMiner MultiSimilarityMiner PairMarginMiner
        TripletMarginMiner UniformHistogramMiner""",
    ("pytorch-metric-learning", "reducers"): """
        AvgNonZeroReducer ClassWeightedReducer DivisorReducer DoNothingReducer MeanReducer
        MultipleReducers PerAnchorReducer SumReducer ThresholdReducer""",
    ("pytorch-metric-learning", "regularizers"): """
        CenterInvariantRegularizer LpRegularizer RegularFaceRegularizer
        SparseCentersRegularizer ZeroMeanRegularizer""",
    ("pytorch-metric-learning", "distances"): """
        BatchedDistance CosineSimilarity DotProductSimilarity LpDistance SNRDistance""",
    ("pytorch-metric-learning", "retrieval"): """
        AccuracyCalculator CustomKNN FaissKNN InferenceModel MatchFinder""",
    ("TensorFlow Similarity", "losses"): """
        Barlow CircleLoss LiftedStructLoss MultiNegativesRankLoss MultiSimilarityLoss PNLoss
        SimCLRLoss SimSiamLoss SoftNearestNeighborLoss TripletLoss VicReg XBM""",
    ("Open Metric Learning", "losses"): """
        ArcFaceLoss ArcFaceLossWithMLP SurrogatePrecision TripletLoss TripletLossPlain
        TripletLossWithMiner""",
    ("Open Metric Learning", "miners"): """
        AllTripletsMiner HardClusterMiner HardTripletsMiner MinerWithBank NHardTripletsMiner
        PairsMiner TripletMinerWithMemory""",
    ("optax", "losses"): """
        cosine_distance cosine_similarity ntxent sigmoid_binary_cross_entropy
        triplet_margin_loss""",
}
NOT_HERE = {"ManifoldLoss"}


def recipes() -> dict[str, list[tuple[str, str]]]:
    """The rows (theirs, ours) of the page on other libraries, by peer."""
    parts = re.split(r"^## ", (ROOT / "docs/coming-from.md").read_text(), flags=re.M)[1:]
    return {
        part.split("\n")[0]: re.findall(r"^\| `(.+?)`.* \| `(.+)` \|$", part, flags=re.M)
        for part in parts
    }


def golden_names() -> dict[str, set[str]]:
    """The names that have golden values, by peer."""
    values = json.loads((ROOT / "tests/golden/peers.json").read_text())
    sections = {
        "pytorch-metric-learning": values["pytorch_metric_learning"].values(),
        "optax": [values["optax"]],
    }
    return {
        peer: {name.split()[0] for section in found for name in section}
        for peer, found in sections.items()
    }


def tested_functions() -> set[str]:
    """Our functions that have a row with an oracle, or that are random and have a row."""
    cases = importlib.import_module("tests.cases")  # of the checkout, not of a package
    value = cases.Contract.VALUE
    return {
        case.name
        for case in cases.CASES
        if case.oracle is not None or value not in case.kind.contracts
    }


def missing(peer: str, name: str, recipe: str | None, tested: set, golden: dict) -> list:
    """What a name lacks to count."""
    if recipe is None:
        return ["an expression in docs/coming-from.md"]
    modules = "|".join(siamese_jax.__all__)
    functions = re.findall(rf"\b(?:{modules})\.[a-z]\w*", recipe)
    lost = [f"a row with an oracle for {fn}" for fn in functions if fn not in tested]
    if name not in golden.get(peer, {name}):
        lost.append("a golden value")
    return lost


def main() -> int:
    """Prints the table, and returns 1 if something that should count does not."""
    rows, golden, tested = recipes(), golden_names(), tested_functions()
    lost, totals = [], []
    for (peer, kind), names in PEERS.items():
        here = 0
        print(f"\n{peer}, {kind}")
        for name in names.split():
            found = [
                ours for theirs, ours in rows[peer] if re.search(rf"\b{name}\b", theirs)
            ]
            recipe = found[0] if found else None
            lacks = missing(peer, name, recipe, tested, golden)
            here += not lacks
            print(f"  {name:36} {recipe if not lacks else '-'}")
            if lacks and name not in NOT_HERE:
                lost.append(f"{peer} {name} lacks {', '.join(lacks)}")
        totals.append(f"{peer}, {kind}: {here} of {len(names.split())}")
    print("", *totals, "", *lost, sep="\n")
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main())
