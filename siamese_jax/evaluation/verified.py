"""Figures of verification: operating points, costs, calibration, accuracy over folds.

Computed in float64 on the CPU: the numbers of pairs can be large, and steps from pair to
pair are slow elsewhere.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from siamese_jax import verification
from siamese_jax.evaluation.figures import Figure, Figures, figure, missing
from siamese_jax.evaluation.pairs import Pairs
from siamese_jax.verification import CalibrationCurve, DetCurve

FALSE_MATCH_RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
P_TARGETS = (0.01, 0.05)
NUM_BINS = 10
_NUM_POINTS = 400  # of a curve that is drawn
_MOST_FITTED = 2**17  # entries that a calibration is fitted to
_CALIBRATED = (
    *("cllr", "min_cllr_of_judged", "actual_dcf_0.01", "min_dcf_0.01_of_judged"),
    "expected_calibration_error",
)


class Verified(NamedTuple):
    """What the distances of pairs tell.

    Attributes:
      figures: The figures by name.
      sizes: Numbers of same and of different pairs.
      pairs: The pairs.
      det: Some points of the curve of both errors.
      thresholds: Threshold of each false match rate, or None.
      calibration: The calibration curve, or None.
    """

    figures: Figures
    sizes: dict[str, int]
    pairs: Pairs
    det: DetCurve
    thresholds: dict[str, float | None]
    calibration: CalibrationCurve | None


def verify(pairs: Pairs, *, folds: Int[np.ndarray, " n"] | None = None) -> Verified | str:
    """Figures of verification of some pairs.

    Args:
      pairs: The pairs with their distances.
      folds: Fold of each pair, for the accuracy over folds.

    Returns:
      The figures, or why there are none.
    """
    sizes = {f"num_{kind}": pairs.number(same=kind == "same") for kind in _KINDS}
    for kind, number in sizes.items():
        if not number:
            return f"there are no {kind.removeprefix('num_')} pairs"
    distances, same, _, counts = pairs
    with _host_float64():
        curve = jax.jit(verification.det_curve)(distances, same, weights=counts)
        figures = {
            name: figure(x) for name, x in _of_order(distances, same, counts).items()
        }
        points, thresholds = _operating_points(pairs, sizes["num_different"])
        figures |= points
        calibrated, calibration = _calibrated(pairs)
        figures |= calibrated
        if folds is not None:
            figures |= _over_folds(distances, same, folds)
        det = _some_points(curve)
    return Verified(figures, sizes, pairs, det, thresholds, calibration)


_KINDS = ("same", "different")


@contextlib.contextmanager
def _host_float64() -> Any:
    """64-bit numbers on the CPU, where there is one."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS may leave it out
            stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
        stack.enter_context(jax.enable_x64(True))
        yield


@jax.jit
def _of_order(
    distances: Float[Array, " n"], same: Bool[Array, " n"], counts: Array | None
) -> dict[str, Array]:
    """Figures that depend on the order of the distances alone."""
    figures = {
        "equal_error_rate": verification.equal_error_rate(distances, same, weights=counts),
        "roc_auc": verification.roc_auc(distances, same, weights=counts),
    }
    for p in P_TARGETS:
        found = verification.min_dcf(distances, same, p_target=p, weights=counts)
        figures[f"min_dcf_{p:g}"] = found.cost
    figures["min_cllr"] = verification.min_cllr(distances, same, weights=counts)
    return figures


def _operating_points(
    pairs: Pairs, num_different: int
) -> tuple[Figures, dict[str, float | None]]:
    found = jax.jit(verification.operating_points, static_argnums=2)(
        pairs.distances, pairs.same, FALSE_MATCH_RATES, weights=pairs.counts
    )
    figures: Figures = {}
    thresholds: dict[str, float | None] = {}
    for place, rate in enumerate(FALSE_MATCH_RATES):
        name = f"1e-{place + 1}"
        told = is_told(rate, num_different)
        why = f"{num_different:,} different pairs cannot tell it; {round(1 / rate):,} can"
        for prefix, rates in (
            ("tar_at_far", found.true_match_rate),
            ("fnmr_at_fmr", found.false_non_match_rate),
        ):
            figures[f"{prefix}_{name}"] = (
                figure(rates[place]) if told else Figure(None, why=why)
            )
        thresholds[name] = figure(found.thresholds[place]).value if told else None
    return dict(sorted(figures.items(), reverse=True)), thresholds


def is_told(rate: float, num_different: int) -> bool:
    """Whether a false match rate can be measured: it is one different pair or more.

    >>> is_told(0.01, 100), is_told(0.01, 99)
    (True, False)
    """
    return num_different * rate >= 1 - 1e-9


def _some_points(curve: DetCurve) -> DetCurve:
    """Points of a curve that are nearly evenly spread, on a logarithmic axis too."""
    n = len(curve.thresholds)
    wanted = np.concatenate(
        [np.linspace(0, 1, _NUM_POINTS), np.geomspace(1e-7, 1, _NUM_POINTS)]
    )
    matched = 1 - np.asarray(curve.false_non_match_rate)
    places = [
        np.searchsorted(np.asarray(curve.false_match_rate), wanted),
        np.searchsorted(matched, wanted),
        np.searchsorted(matched, 1 - wanted),
        np.array([0, n - 1]),
    ]
    kept = np.unique(np.clip(np.concatenate(places), 0, n - 1))
    return jax.tree.map(lambda array: np.asarray(array)[kept], curve)


# Calibration ----------------------------------------------------------------------------


def _calibrated(pairs: Pairs) -> tuple[Figures, CalibrationCurve | None]:
    """Figures of log-likelihood ratios, each part's fitted to the other parts."""
    parts = np.unique(pairs.part[pairs.part >= 0])
    ratios = np.full(len(pairs.distances), np.nan)
    if len(parts) < 2:
        return missing(_CALIBRATED, "the pairs cannot be divided to calibrate"), None
    for part in parts:
        judged = pairs.part == part
        fitted = log_ratio_line(pairs, (pairs.part >= 0) & ~judged)
        if fitted is None:
            why = "a part of the pairs to calibrate on has no same or no different pair"
            return missing(_CALIBRATED, why), None
        threshold, scale = fitted
        ratios[judged] = scale * (threshold - pairs.distances[judged])
    judged = ~np.isnan(ratios)
    kept = Pairs(*(None if of is None else of[judged] for of in pairs))  # type: ignore[arg-type]
    if not (kept.number(same=True) and kept.number(same=False)):
        return missing(_CALIBRATED, "no same or no different pair is judged"), None
    found, curve = _of_ratios(
        ratios[judged], kept.distances, kept.same, kept.counts, balanced(kept)
    )
    figures = {name: figure(x) for name, x in zip(_CALIBRATED, found, strict=True)}
    return figures, jax.tree.map(np.asarray, curve)


def log_ratio_line(
    pairs: Pairs, some: Bool[np.ndarray, " n"]
) -> tuple[float, float] | None:
    """Threshold and scale of the log-likelihood ratios, fitted to some of the pairs.

    The ratio is scale * (threshold - distance). Same and different pairs weigh alike.
    Without both kinds it is None. Of very many entries, evenly spaced ones are taken.
    """
    places = np.flatnonzero(some)
    places = places[:: -(-len(places) // _MOST_FITTED) or 1]
    taken = Pairs(*(None if of is None else of[places] for of in pairs))  # type: ignore[arg-type]
    if not (taken.number(same=True) and taken.number(same=False)):
        return None
    fit = jax.jit(verification.fit_logistic)(
        taken.distances, taken.same, weights=balanced(taken)
    )
    if fit.scale == 0:  # the distances tell nothing: every ratio is 0
        return 0.0, 0.0
    return float(fit.threshold), float(fit.scale)


def balanced(pairs: Pairs) -> Float[np.ndarray, " n"]:
    """Weights of the pairs, of which the sum over same and over different ones is equal.

    >>> pairs = Pairs(np.zeros(3), np.array([True, False, False]), np.zeros(3, int))
    >>> balanced(pairs).tolist()
    [1.0, 0.5, 0.5]
    """
    counts = np.ones(len(pairs.same)) if pairs.counts is None else pairs.counts
    numbers = [pairs.number(same=same) for same in (False, True)]
    return counts * min(numbers) / np.where(pairs.same, numbers[1], numbers[0])


@jax.jit
def _of_ratios(
    ratios: Float[Array, " n"],
    distances: Float[Array, " n"],
    same: Bool[Array, " n"],
    counts: Array | None,
    weights: Float[Array, " n"],
) -> tuple[tuple[Array, ...], CalibrationCurve]:
    probabilities = jax.nn.sigmoid(ratios)
    options: Any = {"num_bins": NUM_BINS, "weights": weights}
    figures = (
        verification.cllr(ratios, same, weights=counts),
        verification.min_cllr(distances, same, weights=counts),
        verification.actual_dcf(ratios, same, p_target=0.01, weights=counts),
        verification.min_dcf(distances, same, p_target=0.01, weights=counts).cost,
        verification.expected_calibration_error(probabilities, same, **options),
    )
    return figures, verification.calibration_curve(probabilities, same, **options)


def _over_folds(
    distances: Float[np.ndarray, " n"],
    same: Bool[np.ndarray, " n"],
    folds: Int[np.ndarray, " n"],
) -> Figures:
    """The mean accuracy over the folds, with 1.96 standard errors to each side."""
    if folds.max() < 1:
        return missing(["fold_accuracy"], "all pairs are in one fold")
    fn = jax.jit(verification.fold_accuracy, static_argnames="num_folds")
    found = fn(distances, same, jnp.asarray(folds), num_folds=int(folds.max()) + 1)
    half = 1.96 * found.standard_error
    return {
        "fold_accuracy": figure(found.mean, low=found.mean - half, high=found.mean + half),
        "fold_accuracy_standard_error": figure(found.standard_error),
    }
