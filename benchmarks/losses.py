"""Time and memory of losses, compared with pytorch-metric-learning and optax.

    python -m benchmarks.losses [--num-rows 256 1024 4096] [--names ...]
        [--limit-seconds 120] [--processor-time] [--json OUT]

Each loss and its gradient with respect to the embeddings are computed from the same random
embeddings of length 1, labels (P x K, K = 4) and proxies. Each measurement runs in a
process of its own, which is stopped at a limit of time or of memory; "over 8 GB" is a
result too. The two libraries take turns. Their values are compared, where both define the
same number: those of `SmoothAPLoss` and `PNPLoss` differ on purpose.

On a machine that does other work too, `taskset -c 0 python -m benchmarks.losses
--processor-time` measures the time that one core computes, instead of the time that passes.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import cells, results

DIM, EXAMPLES_PER_CLASS = 64, 4

# the name in pytorch-metric-learning, or optax.NAME
NAMES = (
    *(
        "ContrastiveLoss",
        "TripletMarginLoss",
        "MarginLoss",
        "ThresholdConsistentMarginLoss",
    ),
    *("SupConLoss", "NTXentLoss", "MultiSimilarityLoss", "CircleLoss", "TupletMarginLoss"),
    *("AngularLoss", "LiftedStructureLoss", "GeneralizedLiftedStructureLoss"),
    *("IntraPairVarianceLoss", "HistogramLoss", "RankedListLoss", "NCALoss"),
    *(
        "FastAPLoss",
        "SmoothAPLoss",
        "PNPLoss",
        "ArcFaceLoss",
        "CosFaceLoss",
        "SphereFaceLoss",
    ),
    *("NormalizedSoftmaxLoss", "ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss"),
    *("VICRegLoss", "optax.ntxent"),
)
_SETTINGS = {"RankedListLoss": {"margin": 0.4, "Tn": 10}}
_OF_PROXIES = {"ArcFaceLoss", "CosFaceLoss", "SphereFaceLoss", "NormalizedSoftmaxLoss"}
_OF_PROXIES |= {"ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss"}
_NOT_COMPARED = {"PNPLoss", "SmoothAPLoss"}


def make_inputs(num_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings, labels and the proxies of the classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_rows) // EXAMPLES_PER_CLASS
    proxies = rng.normal(size=(labels.max() + 1, DIM)).astype(np.float32)
    noise = rng.normal(size=(num_rows, DIM)).astype(np.float32)
    embeddings = proxies[labels] + noise
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, labels, proxies


# The three libraries --------------------------------------------------------------------


def make_ours(name: str, num_rows: int) -> Callable[[], float]:
    """Our loss of this name, as a function that computes value and gradient."""
    import jax
    import jax.numpy as jnp

    from siamese_jax import distances, losses, miners, relations
    from siamese_jax.reductions import mean_of_active

    embeddings, labels, proxies = map(jnp.asarray, make_inputs(num_rows))
    centers = jnp.stack([proxies] * 10, axis=1)

    def of(
        loss_fn: Callable[..., Any], matrix_fn: Callable[..., Any], **options: Any
    ) -> Any:
        def loss(x: jax.Array) -> jax.Array:
            x = distances.normalize(x)
            same, where = relations.within(relations.Items(labels))
            return loss_fn(matrix_fn(x, x), same, where=where, **options)

        return loss

    def of_proxies(loss_fn: Callable[..., Any], weights: jax.Array, **options: Any) -> Any:
        return lambda x: loss_fn(x, labels, weights, **options)

    def margin(d: jax.Array, same: jax.Array, *, where: jax.Array) -> jax.Array:
        positive, negative = miners.sides(d, same, where)
        # the other library counts a pair once for each of its triplets
        num_positive, num_negative = (
            jnp.sum(side, axis=1, keepdims=True, dtype=d.dtype)
            for side in (positive, negative)
        )
        weights = jnp.where(positive, num_negative, num_positive)
        return losses.margin_loss(
            d, same, where=where, weights=weights, reduce_fn=mean_of_active
        )

    d, s = distances.euclidean_distance_matrix, distances.dot_similarity_matrix
    squared = distances.squared_euclidean_distance_matrix
    active = {"reduce_fn": mean_of_active}
    apart = active | {"squared": False, "factor": 1.0, "apart": True}
    losses_by_name: dict[str, Callable[[jax.Array], jax.Array]] = {
        "ContrastiveLoss": of(losses.contrastive_loss, d, **apart),
        "TripletMarginLoss": of(losses.all_triplets_loss, d, margin=0.05, active_only=True),
        "MarginLoss": of(margin, d),
        "ThresholdConsistentMarginLoss": of(losses.threshold_consistent_margin_loss, s),
        "SupConLoss": of(losses.supervised_contrastive_loss, s),
        "NTXentLoss": of(losses.info_nce_loss, s, temperature=0.07),
        "MultiSimilarityLoss": of(losses.multi_similarity_loss, s),
        "CircleLoss": of(losses.circle_loss, s, **active),
        "TupletMarginLoss": of(losses.tuplet_margin_loss, s),
        "AngularLoss": of(losses.angular_loss, s),
        "LiftedStructureLoss": of(losses.lifted_structure_loss, d),
        "GeneralizedLiftedStructureLoss": of(losses.generalized_lifted_structure_loss, d),
        "IntraPairVarianceLoss": of(losses.intra_pair_variance_loss, s),
        "HistogramLoss": of(losses.histogram_loss, s),
        "RankedListLoss": of(losses.ranked_list_loss, d),
        "NCALoss": of(losses.nca_loss, squared),
        "FastAPLoss": of(losses.fast_ap_loss, squared),
        "SmoothAPLoss": of(losses.smooth_ap_loss, s),
        "PNPLoss": of(losses.pnp_loss, s),
        "ArcFaceLoss": of_proxies(losses.arc_face_loss, proxies),
        "CosFaceLoss": of_proxies(losses.cos_face_loss, proxies),
        "SphereFaceLoss": of_proxies(losses.sphere_face_loss, proxies),
        "NormalizedSoftmaxLoss": of_proxies(losses.normalized_softmax_loss, proxies),
        "ProxyNCALoss": of_proxies(losses.proxy_nca_loss, proxies),
        "ProxyAnchorLoss": of_proxies(losses.proxy_anchor_loss, proxies),
        "SoftTripleLoss": of_proxies(losses.soft_triple_loss, centers),
        "VICRegLoss": lambda x: losses.vicreg_loss(x, jnp.roll(x, 1, axis=0)),
        "optax.ntxent": of(losses.info_nce_loss, s, temperature=0.07),
    }
    compiled = jax.jit(jax.value_and_grad(losses_by_name[name]))
    return lambda: float(jax.block_until_ready(compiled(embeddings))[0])


def make_theirs(name: str, num_rows: int) -> Callable[[], float]:
    """The loss of the other library, as a function that computes value and gradient."""
    embeddings, labels, proxies = make_inputs(num_rows)
    if name.startswith("optax."):
        import jax
        import jax.numpy as jnp
        import optax

        numbers = jnp.asarray(labels)
        compiled = jax.jit(jax.value_and_grad(lambda x: optax.losses.ntxent(x, numbers)))
        return lambda: float(jax.block_until_ready(compiled(jnp.asarray(embeddings)))[0])

    import torch
    from pytorch_metric_learning import losses

    settings = dict(_SETTINGS.get(name, {}))
    if name in _OF_PROXIES:
        settings |= {"num_classes": len(proxies), "embedding_size": DIM}
    loss_fn = getattr(losses, name)(**settings)
    if name in _OF_PROXIES:
        copy_proxies(loss_fn, torch.tensor(proxies))
    x, y = torch.tensor(embeddings), torch.tensor(labels)

    def run() -> float:
        leaf = x.clone().requires_grad_()
        if name == "VICRegLoss":
            value = loss_fn(leaf, ref_emb=torch.roll(leaf, 1, dims=0))
        else:
            value = loss_fn(leaf, y)
        value.backward()
        return float(value)

    return run


def copy_proxies(loss_fn: Any, proxies: Any) -> None:
    """Sets the proxies of a loss of the other library, equal ones for all of a class."""
    if hasattr(loss_fn, "proxies"):
        loss_fn.proxies.data = proxies
    elif hasattr(loss_fn, "fc"):
        loss_fn.fc.data = proxies.repeat_interleave(10, dim=0).T.contiguous()
    else:
        loss_fn.W.data = proxies.T.contiguous()


# One measurement in its own process -----------------------------------------------------


def measure(
    name: str, library: str, num_rows: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Seconds of one call, and the memory that it needs beyond what is in use, in GB."""
    run = (make_ours if library == "ours" else make_theirs)(name, num_rows)
    run()  # compiles
    before = cells.reset_peak()
    run()
    memory_gb = cells.peak_gb() - before
    value, seconds = cells.time_calls(run, clock)
    return {"value": value, "seconds": seconds, "memory_gb": memory_gb}


# The command ----------------------------------------------------------------------------


def compare(
    name: str, num_rows: int, limit_seconds: float, processor_time: bool
) -> dict[str, Any]:
    """Measures both libraries, and how far apart their values are."""
    ours, theirs = (
        cells.measure_apart(
            "benchmarks.losses",
            ["--one", name, side, "--num-rows", str(num_rows)],
            limit_seconds,
            processor_time,
        )
        for side in ("ours", "theirs")
    )
    row: dict[str, Any] = {"loss": name, "rows": num_rows, "ours": ours, "theirs": theirs}
    both = "value" in ours and "value" in theirs
    if both:
        row["ratio"] = theirs["seconds"] / ours["seconds"]
    if both and name not in _NOT_COMPARED:
        scale = max(abs(theirs["value"]), 1e-6)
        row["difference"] = abs(ours["value"] - theirs["value"]) / scale
    return row


def _cell(found: dict[str, Any]) -> str:
    if "stopped" in found:
        return str(found["stopped"])
    return f"{1e3 * found['seconds']:.2f} ms, {found['memory_gb']:.2f} GB"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all losses, prints a table, and writes the rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses")
    parser.add_argument("--num-rows", nargs="+", type=int, default=[256, 1024, 4096])
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--limit-seconds", type=float, default=120.0)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument(
        "--one", nargs=2, metavar=("NAME", "LIBRARY"), help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    if options.one:
        name, library = options.one
        clock = cells.clock_of(options.processor_time)
        print(json.dumps(measure(name, library, options.num_rows[0], clock)))
        return
    rows = []
    print("| loss | rows | ours | theirs | theirs / ours | values differ by |")
    print("| --- | --: | --: | --: | --: | --: |")
    for num_rows in options.num_rows:
        for name in options.names:
            row = compare(name, num_rows, options.limit_seconds, options.processor_time)
            rows.append(row)
            texts = [
                f"`{name}`",
                str(num_rows),
                _cell(row["ours"]),
                _cell(row["theirs"]),
                f"{row['ratio']:.2f}" if "ratio" in row else "",
                f"{row['difference']:.0e}" if "difference" in row else "",
            ]
            print(f"| {' | '.join(texts)} |", flush=True)
    if options.json:
        about = {"command": results.command("losses", arguments)}
        results.write(options.json, {**about, "machine": results.machine(), "rows": rows})


if __name__ == "__main__":
    main()
