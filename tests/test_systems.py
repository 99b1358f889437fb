"""Tests of every system: two steps of training, then its model without `experiments`.

The settings record which of their fields a run reads, so that the tests find flags that are
ignored.
"""

import dataclasses
import functools
import importlib
import json
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import report
from experiments.__main__ import list_experiments
from experiments.datasets import letters, omniglot
from experiments.engine import init_from, loop
from experiments.engine.config import RunConfig, check_conditions
from experiments.engine.init_from import named_arrays
from experiments.engine.system import initial_state
from experiments.evaluations import few_shot
from experiments.systems import glyphs, letter_names, omniglot_koch
from siamese_jax import _page, cli
from siamese_jax.errors import UserError
from siamese_jax.model import Model
from siamese_jax.training import init_state
from tests.drawings import drawings
from tests.stripes import write_stripes

pytestmark = pytest.mark.slow

# orl_wccn is not trained in steps; test_orl_wccn.py runs it
SYSTEMS = sorted(list_experiments().keys() - {"orl_wccn"})
OF_IMAGES = [name for name in SYSTEMS if name != "embedding_head"]  # which write a model
SHORT = {"num_steps": 4, "steps_per_call": 2, "checkpoint_every": 2}
PAIRS = {"batch_size": 10}
CLASSES = {"num_classes": 4, "num_images": 2}
BACKBONE = {"backbone": "experiments.engine.backbones:gradients"}

# Settings that make each system small. The first variant of a system is the one whose model
# is used; together the variants use every flag. The tests of single systems take them too,
# so that they run the same programs, which are compiled once.
VARIANTS = {
    "embedding_head": [
        CLASSES | {"dataset": "folder", "image_size": (16, 16), "dim": 4} | BACKBONE,
        CLASSES
        | {"dataset": "folder", "image_size": (16, 16), "dim": 4, **BACKBONE}
        | {"head": "mlp", "hidden": 6, "num_train_classes": 5}
        | {"loss": "proxy_anchor", "loss_options": ("scale=16",)},
    ],
    "glyphs": [
        {"num_letters": 4, "num_faces": 2, "widths": (4, 4, 4), "dim": 4}
        | {"num_episodes": 50, "num_ways": 5, "num_pairs": 200}
        | {"queue_size": 12}
    ],
    "image_folder": [
        CLASSES | {"image_size": (16, 16), "widths": (4, 4), "dim": 4},
        CLASSES | {"image_size": (16, 16), "encoder": "hog", "crop": True},
    ],
    "letter_names": [
        {"num_letters": 8, "widths": (4, 4), "name_features": 4, "dim": 4},
    ],
    "mnist_conv": [
        PAIRS | {"dataset": "digits", "form": "contrastive"},
        PAIRS | {"dataset": "digits", "form": "literal"},
        PAIRS | {"dataset": "digits", "form": "logistic"},
        PAIRS | {"dataset": "digits", "form": "supervised"},
    ],
    "mnist_mlp": [
        PAIRS | {"dataset": "digits"},
        PAIRS | {"dataset": "digits", "pairs": "fresh"},
        PAIRS | {"dataset": "digits", "recipe": "tuned"},
    ],
    "mnist_towers": [PAIRS | {"dataset": "digits", "variants": ("c",)}],
    "omniglot_koch": [
        PAIRS | {"size": "half", "num_drawings": 2, "num_episodes": 50},
        PAIRS
        | {"size": "half", "num_drawings": 2, "num_episodes": 50}
        | {"schedule": "paper", "affine": True},
    ],
    "omniglot_supcon": [
        CLASSES
        | {"size": 16, "stem": 4, "widths": (4,), "num_blocks": 1, "dim": 4}
        | {"num_episodes": 50, "compute_dtype": "bfloat16"},
        CLASSES
        | {"size": 16, "stem": 4, "widths": (4,), "num_blocks": 1, "dim": 4}
        | {
            "num_episodes": 50,
            "compute_dtype": "bfloat16",
            "made": "any",
            "made_share": 0.5,
        },
    ],
    "orl_hog": [
        CLASSES | {"folds": (0,)},
        CLASSES | {"folds": (0,), "encoder": "conv", "widths": (4, 4), "dim": 4},
    ],
    "orl_tutorial": [
        PAIRS,
        PAIRS | {"protocol": "unseen-persons", "folds": (0,)},
    ],
}


class Run(NamedTuple):
    """A finished run.

    Attributes:
      workdir: Its folder, or that of its first fold.
      model: The model that the run held when it finished, or None.
      unread: Fields of its settings that it has not read.
    """

    workdir: pathlib.Path
    model: Model | None
    unread: set[str]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of images: five persons or more for ORL, eight classes for image_folder."""
    root = tmp_path_factory.mktemp("images")
    persons = [f"s{number}" for number in range(14)]
    names = [f"class{number}" for number in range(10)]
    return {
        "orl_hog": write_stripes(root / "orl", names=persons, num=4, size=(112, 92)),
        "orl_tutorial": root / "orl",
        "image_folder": write_stripes(root / "images", names=names, num=4),
        "embedding_head": root / "images",
    }


MAKE_KOCH = omniglot_koch.make_encoder


def koch_encoder(config):
    """Koch's network for images of half the size, with embeddings of 1024 numbers.

    The distances of 4096 numbers would take most of the memory and of the time of a run.
    """
    return MAKE_KOCH(config).clone(dim=1024, kernel_sizes=(5, 4, 3, 3))


def thinned(draw_fn, step):
    """Draws every step-th letter, once."""

    @functools.cache
    def draw(font_dir):
        everything = draw_fn(font_dir)
        names = np.unique(everything.letters)[::step]
        chosen = np.isin(everything.letters, names)
        return letters.Letters(*(array[chosen] for array in everything))

    return draw


@pytest.fixture(scope="module")
def small_data():
    """Small data, and no pictures, which the tests of each system look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omniglot, "load", drawings)
        patch.setattr(omniglot, "load_split", drawings)
        patch.setattr(few_shot, "FEW_SHOT", ((20, 1),))
        patch.setattr(glyphs, "draw_letters", thinned(letters.draw_letters, 3))
        patch.setattr(glyphs, "draw_signs", thinned(letters.draw_signs, 10))
        some_letters = thinned(letters.draw_letters, 3)
        patch.setattr(letter_names, "draw_letters", lambda: some_letters(None))
        patch.setattr(omniglot_koch, "make_encoder", koch_encoder)
        patch.setattr(_page, "_as_png", lambda figure: "")
        patch.setattr(report, "embedding_map", lambda *args: None)
        yield


def recording(config):
    """The same settings, and the set of their fields that were read outside the engine."""
    names = {field.name for field in dataclasses.fields(config)}
    read = set()

    class Recording(type(config)):
        def __getattribute__(self, name):
            caller = sys._getframe(1).f_globals["__name__"]
            generic = caller in ("dataclasses", "experiments.engine.config", __name__)
            if name in names and not generic:
                read.add(name)
            return super().__getattribute__(name)

    given = {name: getattr(config, name) for name in names}
    return Recording(**given), read


def applicable(config):
    """The fields that this run may use: those whose conditions it meets."""
    found = set()
    for field in dataclasses.fields(config):
        conditions = field.metadata.get("only_when", {})
        if all(getattr(config, name) in wanted for name, wanted in conditions.items()):
            found.add(field.name)
    return found


def run_system(name, settings, workdir, folders):
    """Trains a system with recorded settings, and catches the model that it saves."""
    module = importlib.import_module(f"experiments.systems.{name}")
    if name in folders:
        settings = {**settings, "data_dir": folders[name]}
    settings = {"compute_dtype": "auto"} | settings
    config, read = recording(module.Config(workdir=workdir, **SHORT, **settings))
    saved = {}
    with pytest.MonkeyPatch.context() as patch:

        def save_model(folder, model):
            saved[folder] = model
            return original(folder, model)

        original = loop.save_model
        patch.setattr(loop, "save_model", save_model)
        module.main(config)
    folder, model = next(iter(saved.items()), (workdir / "model", None))
    engine = {field.name for field in dataclasses.fields(RunConfig)}
    return Run(folder.parent, model, applicable(config) - read - engine)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, folders, small_data):
    """The first variant of each system, trained when it is first asked for."""
    root, finished = tmp_path_factory.mktemp("runs"), {}

    def get(name):
        if name not in finished:
            settings = VARIANTS[name][0]
            finished[name] = run_system(name, settings, root / name, folders)
        return finished[name]

    return get


# Settings -------------------------------------------------------------------------------


def test_every_system_has_its_variants_here():
    assert SYSTEMS == sorted(VARIANTS)
    for name in SYSTEMS:
        text = pathlib.Path(glyphs.__file__).with_name(f"{name}.py").read_text()
        assert f"python -m experiments {name}" in text
        assert "Expect:" in text


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_flag_of_a_run_is_ignored(name, runs):
    assert not runs(name).unread


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(name, number, id=f"{name}-{number}")
        for name in SYSTEMS
        for number in range(1, len(VARIANTS[name]))
    ],
)
def test_no_flag_of_another_variant_is_ignored(name, number, tmp_path, folders, small_data):
    run = run_system(name, VARIANTS[name][number], tmp_path / "run", folders)
    assert not run.unread
    assert (run.workdir / "model" / "model.json").exists() == (name in OF_IMAGES)


@pytest.mark.parametrize("name", SYSTEMS)
def test_flags_that_a_variant_would_ignore_are_refused(name):
    config_type = importlib.import_module(f"experiments.systems.{name}").Config
    for settings in VARIANTS[name]:
        config = config_type(**settings)
        for field in dataclasses.fields(config):
            if field.name not in applicable(config):
                changed = dataclasses.replace(config, **{field.name: object()})
                with pytest.raises(UserError, match=f"--{field.name.replace('_', '-')} is"):
                    check_conditions(changed)


# Longer runs, and runs from a model -----------------------------------------------------


EACH_VARIANT = [
    pytest.param(name, settings, id=f"{name}-{number}")
    for name in SYSTEMS
    for number, settings in enumerate(VARIANTS[name])
]


def small_system(name, settings, num_steps):
    module = importlib.import_module(f"experiments.systems.{name}")
    config = module.Config(num_steps=num_steps, **settings)
    if name == "image_folder" and settings.get("encoder") == "hog":
        config = dataclasses.replace(config, image_size=(32, 32))
    if name == "embedding_head":
        return config, module.build(config, num_features=12, num_classes=16)
    return config, module.build(config)


def first_updates(system, params):
    """What the optimiser makes of a constant gradient in the first steps."""
    state, found = system.optimizer.init(params), []
    for _ in range(3):
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = system.optimizer.update(gradients, state, params)
        found.append(np.asarray(updates["encoder"]))
    return np.stack(found)


@pytest.mark.parametrize(("name", "settings"), EACH_VARIANT)
def test_a_run_can_be_lengthened_where_its_updates_do_not_depend_on_its_length(
    name, settings
):
    params = {"encoder": jnp.ones(2)}
    config, short = small_system(name, settings, 100)
    _, longer = small_system(name, settings, 5_000)
    equal = np.array_equal(first_updates(short, params), first_updates(longer, params))
    assert config.can_be_lengthened == equal


@pytest.mark.parametrize(
    ("name", "settings"), [one for one in EACH_VARIANT if one.values[0] in OF_IMAGES]
)
def test_every_system_starts_from_its_own_model(name, settings, monkeypatch):
    _, system = small_system(name, settings, 10)
    shapes = jax.eval_shape(lambda: initial_state(system, jax.random.key(0)))

    def filled(number):
        def fill(x):
            return jnp.full(x.shape, number, x.dtype)

        params, statistics = jax.tree.map(fill, (shapes.params, shapes.statistics))
        return init_state(params, system.optimizer, statistics=statistics)

    model = system.model(filled(2))
    model = dataclasses.replace(model, params=named_arrays(model.params))  # as if loaded
    monkeypatch.setattr(init_from, "load_model", lambda folder: model)
    state = init_from.load_parameters(pathlib.Path("model"), filled(1), system.optimizer)
    taken = named_arrays((state.params["encoder"], state.statistics))
    queue = [taken.pop(name) for name in list(taken) if "/memory/" in name]
    assert taken
    assert all((array == 2).all() for array in taken.values())
    assert all((array == 1).all() for array in queue)
    found = jax.tree.leaves(system.model(state).params)
    assert all((array == 2).all() for array in found)


# A net that has collapsed ---------------------------------------------------------------


def all_equal(params, x, y):
    return jnp.zeros((x.shape[0], y.shape[0]))


def copy_as_trained(run, workdir):
    """Copies a run as it was before it was evaluated."""
    left_out = shutil.ignore_patterns("results.json", "report.html", "model")
    fold = run.workdir.name if run.workdir.name.startswith("fold") else ""
    shutil.copytree(run.workdir, workdir / fold, ignore=left_out)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_run_whose_net_tells_nothing_apart_finishes_and_says_so(
    name, tmp_path, folders, runs, small_data, monkeypatch, capsys
):
    if name != "omniglot_koch":  # which is evaluated as it trains
        copy_as_trained(runs(name), tmp_path / "run")
    module = importlib.import_module(f"experiments.systems.{name}")
    build = module.build

    def collapsed(config):
        system = build(config)
        return system._replace(
            model=lambda state: dataclasses.replace(
                system.model(state), matrix_fn=all_equal
            )
        )

    monkeypatch.setattr(module, "build", collapsed)
    run = run_system(name, VARIANTS[name][0], tmp_path / "run", folders)
    shown = capsys.readouterr().out
    assert "no calibration: " in shown
    assert "the model tells nothing apart, all" in shown
    for path in [*run.workdir.rglob("*.json"), *run.workdir.rglob("*.jsonl")]:
        if "checkpoints" not in path.parts:
            assert "NaN" not in path.read_text(), path
            assert "Infinity" not in path.read_text(), path
    facts = json.loads((run.workdir / "model" / "model.json").read_text())
    assert facts["calibration"] is None
    reason = facts["details"]["no_calibration"]
    assert "distances are 0" in reason
    assert (run.workdir / "report.html").exists()
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(image)
    command = ["verify", "--model", str(run.workdir / "model"), str(image), str(image)]
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments=command)
    assert caught.value.code == 1
    assert reason in capsys.readouterr().err


# Models ---------------------------------------------------------------------------------

USE_MODELS = """
import json, pathlib, sys
for name in ("experiments", "flax", "optax", "orbax", "matplotlib"):
    sys.modules[name] = None
import numpy as np
from siamese_jax import cli
from siamese_jax.model import load_model

root = pathlib.Path(sys.argv[1])
for folder in sorted(root.iterdir()):
    model = str(folder / "model")
    files = sorted(str(path) for path in folder.glob("*.png"))
    embeddings = load_model(folder / "model").embed(files)
    np.save(folder / "distances.npy", load_model(folder / "model").distances(
        embeddings, embeddings))
    cli.main(arguments=["verify", "--model", model, files[0], files[1],
                        "--json", str(folder / "verify.json")])
    cli.main(arguments=["identify", "--model", model, "--gallery", str(folder / "gallery"),
                        "--queries", *files, "--json", str(folder / "identify.json")])
    cli.main(arguments=["embed", "--model", model, "--out", str(folder / "embed.npy"),
                        *files])
"""


def write_images(folder, model):
    """Writes four pictures of noise, two of them into a gallery too, and returns them."""
    height, width, channels = model.preparation.image_shape
    shape = (4, 2 * height, 2 * width, channels)
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for number, picture in enumerate(pictures):
        image = Image.fromarray(picture[:, :, 0] if channels == 1 else picture)
        image.save(folder / f"{number}.png")
        if number < 2:
            place = folder / "gallery" / f"class{number}"
            place.mkdir(parents=True)
            image.save(place / "0.png")
    return pictures


@pytest.fixture(scope="module")
def used(tmp_path_factory, runs):
    """Distances by the models in hand, and a folder of what another process has made."""
    root, wanted = tmp_path_factory.mktemp("use"), {}
    for name in OF_IMAGES:
        (root / name).mkdir()
        (root / name / "model").symlink_to(runs(name).workdir / "model")
        model = runs(name).model
        embeddings = model.embed(write_images(root / name, model))
        wanted[name] = np.asarray(model.distances(embeddings, embeddings))
    program = root.parent / "use_models.py"
    program.write_text(USE_MODELS)
    done = subprocess.run(
        [sys.executable, str(program), str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root, wanted


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_model_gives_the_distances_of_its_run_without_the_experiments(name, used):
    root, wanted = used
    distances = np.load(root / name / "distances.npy")
    np.testing.assert_allclose(distances, wanted[name], rtol=1e-5, atol=1e-5)
    assert np.ptp(distances) > 5e-5  # so that equal ones say something
    verified = json.loads((root / name / "verify.json").read_text())
    assert verified["distance"] == pytest.approx(wanted[name][0, 1], rel=1e-5, abs=1e-5)
    assert verified["same"] == (verified["distance"] <= verified["threshold"])
    assert 0 <= verified["probability_same"] <= 1
    identified = json.loads((root / name / "identify.json").read_text())
    assert identified["num_classes"] == 2
    nearest = [f"class{column}" for column in wanted[name][:, :2].argmin(axis=1)]
    assert [query["nearest"] for query in identified["queries"]] == nearest
    assert np.load(root / name / "embed.npy").shape[0] == 4
