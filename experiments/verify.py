"""Are these two images the same? Distance, verdict and probability.

    python -m experiments.verify --workdir RUN A B

RUN is the working directory of any finished run. The threshold is the most accurate on the
run's validation pairs; the probability is calibrated on them too, and assumes that same and
different are equally likely beforehand.
"""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import tyro

from experiments import model, run


@dataclasses.dataclass(frozen=True)
class Config:
    """Which run, and which images.

    Attributes:
      a: An image file.
      b: Another.
      workdir: Of a finished run.
      json: A file for the answer, or nothing.
    """

    a: tyro.conf.Positional[pathlib.Path]
    b: tyro.conf.Positional[pathlib.Path]
    workdir: pathlib.Path
    json: pathlib.Path | None = None


def verify(config: Config) -> dict[str, float | bool]:
    """Distance, threshold, verdict and probability of "same".

    Raises:
      UserError: If the run is not finished, or an image cannot be read.
    """
    learnt = model.load_model(config.workdir)
    calibration = model.load_calibration(config.workdir)
    images = model.read_images(learnt, [config.a, config.b])
    a, b = model.embed(learnt, images)
    distance = float(learnt.distance_fn(a[None], b[None])[0])
    if not jnp.isfinite(distance):
        raise run.UserError(f"the distance is {distance}: the run has diverged")
    return {
        "same": distance <= calibration.threshold,
        "distance": distance,
        "threshold": calibration.threshold,
        "probability_same": float(calibration.probability_same(distance)),
    }


def command(config: Config) -> None:
    """Answers in words, and as JSON where asked."""
    answer = verify(config)
    print(
        f"{'same' if answer['same'] else 'different'}: distance {answer['distance']:.4f}, "
        f"threshold {answer['threshold']:.4f}, "
        f"probability of the same {answer['probability_same']:.3f}"
    )
    if config.json is not None:
        run.write_whole(config.json, json.dumps(answer, indent=2) + "\n")


if __name__ == "__main__":
    run.command_line(command, Config)
