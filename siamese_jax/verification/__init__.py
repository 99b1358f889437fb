"""Verification: deciding from their distance whether two examples are of one class.

Two examples are called the same if their distance is at most a threshold. The functions
here measure how well that works, at one threshold or over all of them, choose a threshold,
and turn distances into probabilities.

>>> import jax.numpy as jnp
>>> distances = jnp.array([0.1, 0.2, 0.3, 0.4])
>>> same = jnp.array([True, False, True, False])
>>> print(roc_auc(distances, same))
0.75
>>> print(decision_rates(distances, same, 0.15))
DecisionRates(accuracy=0.75, precision=1.0, recall=0.5)

* `decision_rates`, `best_threshold`, `evaluate_threshold`: at one threshold.
* `roc_curve`, `roc_auc`, `equal_error_rate`: over all thresholds.
* `operating_points`: how many same pairs match (TAR) where few different ones may (FAR);
  `pair_tiles` and `streamed_operating_points` for more pairs than fit into memory.
* `det_curve`, `min_dcf`, `actual_dcf`, `cllr`, `min_cllr`: costs, as for speakers.
* `fold_accuracy`, `check_disjoint_folds`: the protocol of Labeled Faces in the Wild.
* `open_set_rates`, `open_set_trials`: identification with strangers.
* `fit_logistic`, `calibrate`: what a distance means.
* `calibration_curve`, `expected_calibration_error`: whether probabilities are right.
* `z_norm`, `as_norm`: distances in units of those to strangers.
* `pool_templates`: one embedding for all images of a person.
* `bootstrap_interval`: how certain one of these figures is.

Arguments that the functions share:

* `distances`: one for each pair, floating-point `[n]`, n >= 1, of JAX or NumPy. Half
  precision is converted to float32 first. So are float64 arrays of NumPy unless
  jax_enable_x64 is set; where that would make different distances equal, `roc_auc` and
  `equal_error_rate` take their ranks instead, and the other functions raise ValueError.
  `calibrate` keeps float64.
* `same`: boolean `[n]`. True means that the two examples of the pair are of one class.
* `where`: boolean `[n]`. A pair where it is False is ignored, as if it were deleted. None
  uses every pair.
* `weights`: floating-point `[n]`, the weight of each pair. None gives every pair weight 1.

Another shape raises ValueError, another type of number TypeError.

A rate over no pairs (the recall without a same pair, the precision without a pair called
the same) is NaN, since it is undefined. A NaN distance, or a weight that is NaN or
negative, makes every figure NaN.
"""

from siamese_jax.verification.bootstrap import (
    Interval,
    bootstrap_interval,
)
from siamese_jax.verification.calibration import (
    Calibration,
    calibrate,
)
from siamese_jax.verification.curves import (
    RocCurve,
    equal_error_rate,
    roc_auc,
    roc_curve,
)
from siamese_jax.verification.detection_costs import (
    DetCurve,
    MinDcf,
    actual_dcf,
    cllr,
    det_curve,
    min_cllr,
    min_dcf,
)
from siamese_jax.verification.fold_accuracy import (
    FoldAccuracy,
    check_disjoint_folds,
    fold_accuracy,
)
from siamese_jax.verification.logistic import (
    Logistic,
    fit_logistic,
)
from siamese_jax.verification.open_set import (
    OpenSetRates,
    OpenSetTrials,
    open_set_rates,
    open_set_trials,
)
from siamese_jax.verification.operating_points import (
    OperatingPoints,
    operating_points,
)
from siamese_jax.verification.reliability import (
    CalibrationCurve,
    calibration_curve,
    expected_calibration_error,
)
from siamese_jax.verification.score_norm import (
    as_norm,
    z_norm,
)
from siamese_jax.verification.streams import (
    Tile,
    pair_tiles,
    streamed_operating_points,
)
from siamese_jax.verification.templates import (
    pool_templates,
)
from siamese_jax.verification.thresholds import (
    BestThreshold,
    DecisionRates,
    EvaluatedThreshold,
    best_threshold,
    decision_rates,
    evaluate_threshold,
)

__all__ = [
    "BestThreshold",
    "Calibration",
    "CalibrationCurve",
    "DecisionRates",
    "DetCurve",
    "EvaluatedThreshold",
    "FoldAccuracy",
    "Interval",
    "Logistic",
    "MinDcf",
    "OpenSetRates",
    "OpenSetTrials",
    "OperatingPoints",
    "RocCurve",
    "Tile",
    "actual_dcf",
    "as_norm",
    "best_threshold",
    "bootstrap_interval",
    "calibrate",
    "calibration_curve",
    "check_disjoint_folds",
    "cllr",
    "decision_rates",
    "det_curve",
    "equal_error_rate",
    "evaluate_threshold",
    "expected_calibration_error",
    "fit_logistic",
    "fold_accuracy",
    "min_cllr",
    "min_dcf",
    "open_set_rates",
    "open_set_trials",
    "operating_points",
    "pair_tiles",
    "pool_templates",
    "roc_auc",
    "roc_curve",
    "streamed_operating_points",
    "z_norm",
]
