"""The key ``recipe``: what it sets, what it leaves to the user, and what it says."""

from pathlib import Path

import pytest

from effbackbones.errors import UserError
from tasks.settings.commandline import parse
from tasks.settings.recipes import recipes
from tasks.settings.tree import dump
from tasks.strictyaml import read_tree

TASKS = ("classify", "detect", "segment")


@pytest.mark.parametrize("command", TASKS)
def test_every_recipe_can_be_read_over_every_bundled_config(command: str) -> None:
    assert list(recipes(command)) == ["quick", "best"]
    for name in recipes(command):
        request = parse(command, ["--config", "shapes", "--recipe", name])
        assert request.config.recipe == name
        (line,) = request.extras.told
        assert line.startswith(f"recipe {name}: sets ")
        for section, values in read_tree(recipes(command)[name], name).values.items():
            assert isinstance(values, dict)
            for key, value in values.items():
                found = getattr(getattr(request.config, section), key)
                assert (list(found) if isinstance(found, tuple) else found) == value
                assert f"{section}.{key} " in line or found == value


@pytest.mark.parametrize("where", [["--model.weights", "imagenet"], ["--model.init_from", "theirs.safetensors"]])
def test_pretrained_weights_have_a_quick_recipe_of_their_own(where: list[str]) -> None:
    request = parse("classify", ["--config", "shapes", "--recipe", "quick", *where])
    assert request.extras.told[0].startswith("recipe quick of pretrained weights: sets ")
    assert (request.config.data.progressive, request.config.optim.epochs) == ((), 6)
    scratch = parse("classify", ["--config", "shapes", "--recipe", "quick", "--model.weights", "null"])
    assert (scratch.config.data.progressive, scratch.config.optim.epochs) == ((0.5, 0.75), 12)
    assert "of pretrained" not in scratch.extras.told[0]


@pytest.mark.parametrize("name", ["quick", "best"])
def test_models_that_hear_are_not_told_to_mirror(name: str) -> None:
    request = parse("classify", ["--config", "digits", "--recipe", name])
    data, plain = request.config.data, parse("classify", ["--config", "digits"]).config.data
    assert (data.flip_mode, data.progressive) == (plain.flip_mode, plain.progressive)
    assert request.config.optim.ema_start == "warmup"
    assert "; without data.flip_mode, data.progressive, for the model hears recordings" in request.extras.told[0]


def test_what_the_user_says_wins_over_a_recipe_and_that_over_bundled_configs(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: bccd\nrecipe: quick\ndata: {scale_jitter: [0.9, 1.1]}\n")
    request = parse("detect", ["--config", str(file), "--optim.ema", "0.5"])
    config = request.config
    assert (config.data.scale_jitter, config.optim.ema) == ((0.9, 1.1), 0.5)
    assert config.optim.epochs == 8  # the recipe's over the bundled 16
    assert request.extras.told[0].endswith("; as you say: data.scale_jitter, optim.ema")


def test_keys_that_mean_something_together_are_left_together() -> None:
    plain = parse("detect", ["--config", "bccd", "--optim.lr", "0.1", "--optim.max_steps", "7"]).config
    config = parse(
        "detect", ["--config", "bccd", "--recipe", "quick", "--optim.lr", "0.1", "--optim.max_steps", "7"]
    ).config
    assert config.optim.scaled_lr(8) == plain.optim.scaled_lr(8)
    assert (config.optim.epochs, config.optim.max_steps) == (plain.optim.epochs, 7)
    steps = parse("detect", ["--config", "bccd", "--recipe", "quick", "--optim.warmup_steps", "3"]).config
    assert steps.optim.warmup_steps == 3


def test_without_a_recipe_nothing_is_set() -> None:
    request = parse("detect", ["--config", "bccd"])
    assert request.extras.told == ()
    assert request.config.recipe is None


def test_the_resolved_config_has_it_and_reads_back_as_it_is(tmp_path: Path) -> None:
    config = parse("detect", ["--config", "bccd", "--recipe", "quick"]).config
    text = dump(config)
    assert "recipe: quick" in text
    (tmp_path / "config.yaml").write_text(text)
    again = parse("detect", ["--config", str(tmp_path / "config.yaml")])
    assert again.config == config
    assert again.extras.told[0].startswith("recipe quick: sets nothing; as you say: ")


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("detect", "quik", r"--recipe: unknown recipe 'quik'; did you mean quick\? known: best, quick"),
        ("joint", "quick", "--recipe: there is none for joint; remove it; classify, detect and segment have some"),
    ],
)
def test_an_unknown_recipe_names_those_there_are(command: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(command, ["--config", "shapes", "--recipe", name])


def test_a_file_that_names_an_unknown_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: bccd\nrecipe: [quick]\n")
    with pytest.raises(UserError, match=r"mine\.yaml:2: recipe: expected text or null"):
        parse("detect", ["--config", str(file)])
    file.write_text("base: bccd\nrecipe: slow\n")
    with pytest.raises(UserError, match=r"mine\.yaml:2: recipe: unknown recipe 'slow'"):
        parse("detect", ["--config", str(file)])


@pytest.mark.parametrize("wrong", ["optim: 5", "optim: {epochs: {a: 1}}"])
def test_a_recipe_hides_no_mistake(wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"recipe: quick\n{wrong}\n")
    with pytest.raises(UserError, match=r"mine\.yaml:2: optim"):
        parse("classify", ["--config", str(file)])
