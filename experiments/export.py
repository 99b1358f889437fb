"""The net of a run as files that need nothing but JAX.

    python -m experiments.export --workdir RUN --out DIR

writes, from any run with a checkpoint:

    DIR/encoder.jax     images float32 [n, height, width, channels] in [0, 1] -> [n, dim]
    DIR/distances.jax   embeddings [n, dim], [m, dim] -> distances [n, m], smaller is closer
    DIR/model.json      the shape of images, the threshold, the calibration of probabilities
    DIR/example.py      how to use them, in a process that has jax and flatbuffers alone

The parameters are inside; n and m are symbolic, so one file serves any number of images, on
CPU, CUDA and TPU. Images must be made ready as in training: example.py says their size.
"""

import dataclasses
import json
import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from experiments import model, run

PLATFORMS = ("cpu", "cuda", "tpu")

_EXAMPLE = '''\
"""Embeds images and compares them; needs jax and flatbuffers.

    python example.py
"""

import json
import pathlib

import numpy as np
from jax import export

here = pathlib.Path(__file__).parent
facts = json.loads((here / "model.json").read_text())
encoder = export.deserialize((here / "encoder.jax").read_bytes())
distances = export.deserialize((here / "distances.jax").read_bytes())

# three images in [0, 1], of the shape in model.json: put your own here
images = np.random.default_rng(0).uniform(size=(3, *facts["image_shape"]))
embeddings = encoder.call(images.astype(np.float32))
matrix = distances.call(embeddings, embeddings)
print("embeddings", embeddings.shape)
print("distances", np.asarray(matrix).tolist())
if facts["calibration"] is not None:
    print("same?", (np.asarray(matrix) <= facts["calibration"]["threshold"]).tolist())
'''


@dataclasses.dataclass(frozen=True)
class Config:
    """Which run, and where to.

    Attributes:
      workdir: Of a run with a checkpoint.
      out: A folder, made if need be.
    """

    workdir: pathlib.Path
    out: pathlib.Path


def export(learnt: model.Model) -> dict[str, bytes]:
    """The encoder and its distances, serialized, with symbolic numbers of rows."""
    n, m = jax_export.symbolic_shape("n, m")
    images = jax.ShapeDtypeStruct((n, *learnt.image_shape), jnp.float32)
    embed_fn = partial(learnt.embed_fn, learnt.params)
    one_image = jax.ShapeDtypeStruct((1, *learnt.image_shape), jnp.float32)
    (_, dim) = jax.eval_shape(embed_fn, one_image).shape
    left, right = (jax.ShapeDtypeStruct((rows, dim), jnp.float32) for rows in (n, m))

    def serialize(fn: Any, *shapes: Any) -> bytes:
        exported = jax_export.export(jax.jit(fn), platforms=PLATFORMS)(*shapes)
        return bytes(exported.serialize())

    return {
        "encoder.jax": serialize(embed_fn, images),
        "distances.jax": serialize(learnt.matrix_fn, left, right),
    }


def command(config: Config) -> None:
    """Writes the folder."""
    if config.out.exists() and not config.out.is_dir():
        raise run.UserError(f"--out: {config.out} is not a folder")
    learnt = model.load_model(config.workdir)
    calibrated = (config.workdir / "calibration.json").exists()
    calibration = model.load_calibration(config.workdir) if calibrated else None
    facts = {
        "image_shape": learnt.image_shape,
        "calibration": calibration and dataclasses.asdict(calibration),
        "jax": jax.__version__,
        "platforms": PLATFORMS,
    }
    files = export(learnt)
    config.out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (config.out / name).write_bytes(data)
        print(f"{config.out / name}: {len(data):,} bytes")
    run.write_whole(config.out / "model.json", json.dumps(facts, indent=2) + "\n")
    run.write_whole(config.out / "example.py", _EXAMPLE)
    print(f"python {config.out / 'example.py'} shows how to use them")


if __name__ == "__main__":
    run.command_line(command, Config)
