"""Describes a public function to the contract tests.

A `Case` names a function and its kind. The kind decides which contracts are checked. If one
of them does not apply to the function, its row exempts it and gives the reason:
`exempt={Contract.HALF: "counts, not numbers of the inputs' type"}`. `test_contract.py` has
the check of each contract, and a test that every exemption is needed.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Contract(enum.Enum):
    """A promise about public functions; the value says what is promised."""

    VALUE = "the value equals that of an independent oracle"
    JIT_VMAP = "jit and vmap change nothing, and nothing is compiled twice"
    GRADIENT = "the gradient equals central differences"
    SINGULAR = "the gradient is finite at singular points among ordinary ones"
    MASK = "a mask equals deletion"
    ORDER = "the order of the batch does not matter"
    DEGENERATE = "degenerate batches are finite, and zero where nothing counts"
    HALF = "half precision is computed in float32, and large numbers stay finite"
    NAN = "NaN in gives NaN out"
    TERMS = "the loss is the mean of the unreduced terms"
    REACH = "terms need their entry, their row or the whole matrix, as declared"
    REFUSALS = "bad input is refused by name when traced"


_ANY = {Contract.JIT_VMAP, Contract.REFUSALS}
_EXACT = _ANY | {Contract.VALUE}
_SMOOTH = _EXACT | {Contract.GRADIENT, Contract.HALF, Contract.NAN}
_LOSS = _SMOOTH | {
    *(Contract.SINGULAR, Contract.ORDER, Contract.DEGENERATE, Contract.TERMS)
}
_MASKED_LOSS = _LOSS | {Contract.MASK}


class Kind(enum.Enum):
    """What goes in and what comes out, and so the contracts that are possible."""

    ROW_DISTANCE = "[..., dim] (twice) to [...]", _SMOOTH | {Contract.SINGULAR}
    MATRIX_DISTANCE = "[n, dim], [m, dim] to [n, m]", _SMOOTH | {Contract.SINGULAR}
    PAIR_LOSS = "numbers [n], same [n] to a loss", _MASKED_LOSS | {Contract.REACH}
    MATRIX_LOSS = "numbers [n, n], same [n, n] to a loss", _MASKED_LOSS | {Contract.REACH}
    TRIPLET_LOSS = (
        "distances [n] of each triplet to a loss",
        (_MASKED_LOSS | {Contract.REACH}) - {Contract.DEGENERATE},
    )
    PROXY_LOSS = "numbers [n, k], labels [n], proxies or none to a loss", _MASKED_LOSS
    VIEW_LOSS = "embeddings [n, dim] of one or two views to a loss", _LOSS
    MINER = "distances [n, m], same [n, m] to negatives", _SMOOTH
    RELATION = "labels to booleans [n, m]", _EXACT
    REDUCTION = "terms to numbers", _SMOOTH | {Contract.ORDER}
    FIGURE = (
        "distances [n], same [n] to figures",
        _EXACT | {Contract.NAN, Contract.MASK, Contract.ORDER},
    )
    MAP = "float arrays to float arrays", _SMOOTH
    TREES = "trees of arrays to trees of arrays", _EXACT
    DECISION = "float arrays to integers", _EXACT
    RANDOM = "a key and more to a random draw", _ANY
    SETTINGS = "numbers to checked settings", {Contract.REFUSALS}

    def __init__(self, shapes: str, contracts: set[Contract]):
        self.shapes = shapes
        self.contracts = frozenset(contracts)

    @property
    def is_loss(self) -> bool:
        return Contract.TERMS in self.contracts


class Reach(enum.Enum):
    """What a term of a loss depends on, and so how the loss can be cut into parts."""

    ENTRY = "its own entry"
    ROW = "its row"
    WHOLE = "other rows too"


class Inputs(NamedTuple):
    """Arguments, and array keywords (where, weights) that are tried besides."""

    args: tuple
    arrays: Mapping[str, Any] = {}


class Refusal(NamedTuple):
    """A call that must raise: what is wrong with it, and how the error says so.

    Attributes:
      name: What is wrong, for the reader and as the name of the test.
      args: Arguments of the call.
      options: Keywords of the call, on top of the first of the row's options.
      error: Type of the error.
      words: Regular expression that its message matches.
    """

    name: str
    args: tuple
    options: dict
    error: type[Exception]
    words: str


class Singular(NamedTuple):
    """Arguments at which a naive gradient is NaN.

    Attributes:
      args: The arguments.
      learning_rows: Rows of the first argument that are ordinary: their gradient is not 0.
    """

    args: tuple
    learning_rows: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Case:
    """A public function under contract.

    Attributes:
      name: "module.function". Further rows of the function add what they are in
        parentheses.
      fn: The function; if it takes or makes callables, with these bound or made.
      kind: What it takes and returns.
      inputs: Draws its inputs from a NumPy generator.
      options: Keyword arguments to try, all of which the oracle understands.
      oracle: Plain float64 loops that share nothing with the library.
      singular: Where a naive gradient is NaN.
      refusals: Calls that must raise.
      large_options: More options for the largest numbers.
      keeps_dtype: Whether results have the type of the inputs, as those of a MAP do by
        default. Else results of half-precision inputs are float32.
      nan_at: Place of the NaN in the first floating-point array; its first by default.
      reach: What the terms of a loss of a matrix depend on.
      whole_with: The option with which they depend on the whole matrix.
      counts_without_positive: Why a loss of a matrix has terms though there is no positive.
      exempt: Contracts of its kind that it is not under, each with the reason.
    """

    name: str
    fn: Callable[..., Any]
    kind: Kind
    inputs: Callable[[np.random.Generator], Inputs]
    options: tuple[dict, ...] = ({},)
    oracle: Callable[..., Any] | None = None
    singular: Singular | None = None
    refusals: tuple[Refusal, ...] = ()
    large_options: tuple[dict, ...] = ()
    keeps_dtype: bool | None = None
    nan_at: tuple[int, ...] | None = None
    reach: Reach = Reach.ENTRY
    whole_with: str = ""
    counts_without_positive: str = ""
    exempt: Mapping[Contract, str] = field(default_factory=dict)

    @property
    def result_keeps_dtype(self) -> bool:
        return self.kind is Kind.MAP if self.keeps_dtype is None else self.keeps_dtype

    @property
    def contracts(self) -> frozenset[Contract]:
        return self.kind.contracts - set(self.exempt)

    def reach_of(self, options: Mapping[str, Any]) -> Reach:
        return Reach.WHOLE if options.get(self.whole_with) else self.reach


def f32(array):
    return jnp.asarray(array, jnp.float32)


def key(rng):
    return jax.random.key(int(rng.integers(2**31)))


def entry_arrays(rng, shape):
    """A mask and weights, one for each entry."""
    return {
        "where": jnp.asarray(rng.random(shape) < 0.7),
        "weights": f32(rng.uniform(0.5, 2, size=shape)),
    }


KEY = jax.random.key(0)
FOUR = jnp.arange(4)
