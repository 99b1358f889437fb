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
* `fit_logistic`, `calibrate`: what a distance means.
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

from siamese_jax.verification.bootstrap import Interval, bootstrap_interval
from siamese_jax.verification.calibration import Calibration, calibrate
from siamese_jax.verification.curves import RocCurve, equal_error_rate, roc_auc, roc_curve
from siamese_jax.verification.logistic import Logistic, fit_logistic
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
    "DecisionRates",
    "EvaluatedThreshold",
    "Interval",
    "Logistic",
    "RocCurve",
    "best_threshold",
    "bootstrap_interval",
    "calibrate",
    "decision_rates",
    "equal_error_rate",
    "evaluate_threshold",
    "fit_logistic",
    "roc_auc",
    "roc_curve",
]
