"""Records the JAX keys that a function uses and finds a key that is used twice."""

import contextlib
from unittest import mock

import jax
import numpy as np

CONSUMERS = ("bits", "randint", "permutation", "uniform", "normal", "bernoulli")


def _numbers(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


class _Ledger:
    """What was done with each key, and which keys were made from others."""

    def __init__(self):
        self.uses, self.made = {}, set()

    def use(self, key, name):
        previous = self.uses.get(_numbers(key))
        # folding several numbers into one key is what `fold_in` is for
        if previous is not None and (previous, name) != ("fold_in", "fold_in"):
            raise AssertionError(f"a key was given to {previous} and to {name}")
        self.uses[_numbers(key)] = name

    def make(self, keys):
        for key in keys:
            assert _numbers(key) not in self.made, "a key was made twice"
            self.made.add(_numbers(key))


@contextlib.contextmanager
def every_key_is_used_once():
    """Fails if a key is consumed twice or made twice; runs without compilation."""
    ledger = _Ledger()
    patches = contextlib.ExitStack()

    def watch(name):
        real = getattr(jax.random, name)

        def watched(key, *args, **kwargs):
            ledger.use(key, name)
            result = real(key, *args, **kwargs)
            if name == "split":
                ledger.make(result)
            elif name == "fold_in":
                ledger.make([result])
            return result

        patches.enter_context(mock.patch.object(jax.random, name, watched))

    def loop(fn):
        """Takes the place of `jax.vmap`, under which keys have no numbers."""

        def looped(*args):
            results = [fn(*(arg[i] for arg in args)) for i in range(len(args[0]))]
            return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *results)

        return looped

    with patches, jax.disable_jit():
        for name in ("split", "fold_in", *CONSUMERS):
            watch(name)
        patches.enter_context(mock.patch.object(jax, "vmap", loop))
        yield
