"""Batches of consecutive epochs, each in a new random order that is never written out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, UInt32

from siamese_jax._checks import check_at_least, check_integer

# Statistical tests tell the permutation of 4096 numbers from a random one up to 16 rounds,
# and no longer from 20 on. The number of rounds needed grows with log2 of the size.
_NUM_ROUNDS = 40


class EpochBatch(NamedTuple):
    """One batch of an epoch.

    Attributes:
      examples: Example numbers.
      where: False for padding, whose example numbers are valid but repeat others.
    """

    examples: Int[Array, " batch_size"]
    where: Bool[Array, " batch_size"]


def epoch_batch(
    key: PRNGKeyArray, step: int | Int[Array, ""], num_examples: int, batch_size: int
) -> EpochBatch:
    """The batch of a training step when epoch follows epoch.

    Every epoch visits each example exactly once, in a random order of its own. It has
    ceil(num_examples / batch_size) steps; the last batch is padded to `batch_size`. Only
    the examples of this batch are computed, so the cost does not grow with the data set.

    Args:
      key: A JAX key, the same for all steps of a run and used for nothing else. The number
        of the epoch is folded into it.
      step: Number of the step, from 0.
      num_examples: Number of examples in the data set.
      batch_size: Number of examples in a batch.

    Raises:
      ValueError: If a count is below 1.

    >>> key = jax.random.key(0)
    >>> first, second, third = (epoch_batch(key, step, 5, 2) for step in range(3))
    >>> print(third.where)
    [ True False]
    >>> epoch = jnp.concatenate([first.examples, second.examples, third.examples[:1]])
    >>> print(jnp.sort(epoch))
    [0 1 2 3 4]
    """
    check_at_least("num_examples", num_examples, 1)
    check_at_least("batch_size", batch_size, 1)
    steps_per_epoch = -(-num_examples // batch_size)
    epoch, batch = step // steps_per_epoch, step % steps_per_epoch
    positions = batch * batch_size + jnp.arange(batch_size)
    epoch_key = jax.random.fold_in(key, epoch)
    examples = permute(epoch_key, positions % num_examples, num_examples)
    return EpochBatch(examples, positions < num_examples)


def permute(
    key: PRNGKeyArray, positions: Int[Array, " n"], num_examples: int
) -> Int[Array, " n"]:
    """Images of some positions under a random permutation of range(num_examples).

    The permutation depends on the key alone, so the images of range(num_examples), asked
    for in any portions, are all numbers once. It is not written out: the cost is that of
    the positions.

    The swap-or-not shuffle: in each of 40 rounds, with a random number K, the position x
    and its partner (K - x) mod num_examples are exchanged or not, which a hash of the
    larger of the two decides. The hash is the finaliser of MurmurHash3, applied to the
    number xor a random word of the round; it is not a cryptographic one.

    Args:
      key: A JAX key.
      positions: Integers from 0 to num_examples - 1.
      num_examples: Number of examples, below 2^31.

    Raises:
      ValueError: If `num_examples` is below 1 or not below 2^31.
      TypeError: If `positions` is not integer.

    Reference:
      Hoang, Morris, Rogaway. An Enciphering Scheme Based on a Card Shuffle. CRYPTO 2012.

    >>> order = permute(jax.random.key(0), jnp.arange(6), 6)
    >>> print(jnp.sort(order))
    [0 1 2 3 4 5]
    """
    check_at_least("num_examples", num_examples, 1)
    if num_examples >= 2**31:
        raise ValueError(f"num_examples must be below 2^31; got {num_examples}")
    check_integer("positions", positions)
    if num_examples == 1:  # XLA's CPU compiler fails on the rounds with this size
        return jnp.zeros_like(positions)
    size = jnp.uint32(num_examples)
    offsets, words = jax.random.bits(key, (2, _NUM_ROUNDS), jnp.uint32)
    x = positions.astype(jnp.uint32)
    for offset, word in zip(offsets % size, words, strict=True):
        partner = offset - x + jnp.where(x > offset, size, 0)
        swap = _random_bit(jnp.maximum(x, partner) ^ word)
        x = jnp.where(swap, partner, x)
    return x.astype(positions.dtype)


def _random_bit(x: UInt32[Array, " n"]) -> Bool[Array, " n"]:
    """The highest bit of MurmurHash3's finaliser, on which all bits of x have influence."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x >> 31 == 1
