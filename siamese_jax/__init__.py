"""Siamese networks, one-shot recognition and metric learning in JAX, as pure functions.

The public modules are the namespace: `from siamese_jax import distances, losses`.
"""

__version__ = "0.1.0"
