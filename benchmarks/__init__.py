"""Benchmarks: the systems of `experiments` and the same networks in Keras and PyTorch."""
