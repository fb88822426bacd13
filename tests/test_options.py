"""Options as fields of a dataclass: what they refuse, and the command line that is made of them."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

import numpy as np
import pytest
import typer
from msgspec import Meta
from typer.testing import CliRunner

from probeselect.commands.from_dataclass import from_dataclass
from probeselect.core.errors import UsageError
from probeselect.core.options import Option, changed, check, options_of
from probeselect.probe.options import TrainOptions

Positive = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class Recipe:
    """One option of every type."""

    name: Annotated[str, Option("what it is called", "Words")] = "cake"
    taste: Annotated[Literal["sweet", "salty", "sour"], Option("taste", "Words")] = "sweet"
    spices: Annotated[tuple[str, ...], Option("spices", "Words", unset="all that are there")] = ()
    eggs: Annotated[int, Meta(ge=2, le=12, multiple_of=2), Option("eggs", "Numbers")] = 4
    minutes: Annotated[Annotated[int, Meta(ge=1)] | None, Option("time", "Numbers", unset="until it is done")] = None
    heat: Annotated[float, Meta(gt=0, lt=1), Option("share of the full heat", "Numbers")] = 0.5
    parts: Annotated[tuple[Annotated[float, Meta(ge=0)], ...], Option("parts", "Numbers")] = (1.0, 0.5)
    ends: Annotated[tuple[Positive, Positive], Option("first and last", "Numbers")] = (2.0, 1.0)
    vegan: Annotated[bool, Option("without eggs", "Words")] = False
    secret: int = 0  # no option

    def __post_init__(self) -> None:
        check(self)


def baked(*arguments: str) -> Recipe:
    """The recipe that a command is given for these arguments."""
    found: list[Recipe] = []
    app = typer.Typer()

    @app.command()
    @from_dataclass
    def bake(kitchen: str, options: Recipe, loud: bool = False) -> None:
        assert kitchen == "mine" and not loud
        found.append(options)

    outcome = CliRunner().invoke(app, ["mine", *arguments], catch_exceptions=False, standalone_mode=False)
    assert outcome.exit_code == 0, outcome.output
    return found[0]


def test_the_command_line_gives_what_python_gives():
    assert baked() == Recipe()
    given = baked("--name", "bread", "--taste", "salty", "--spices", "salt, dill,", "--eggs", "2", "--minutes", "40",
                  "--heat", "0.9", "--parts", "3", "--ends", "4,3", "--vegan")  # fmt: skip
    assert given == Recipe("bread", "salty", ("salt", "dill"), 2, 40, 0.9, (3.0,), (4.0, 3.0), True)
    assert baked("--parts", "").parts == ()
    assert baked("--spices", "a,b=exec:grind --to x, y,z").spices == ("a", "b=exec:grind --to x, y,z")


def test_values_come_in_the_type_of_their_field():
    recipe = Recipe(heat=np.float32(0.5), parts=np.array([1, 2]), spices=["salt"], ends=[3, 1], eggs=np.int64(6))
    assert recipe == Recipe(heat=0.5, parts=(1.0, 2.0), spices=("salt",), ends=(3.0, 1.0), eggs=6)
    assert isinstance(recipe.ends[0], float) and hash(recipe) and recipe.eggs.__class__ is int
    assert changed(recipe) == "Recipe(spices=('salt',), eggs=6, parts=(1.0, 2.0), ends=(3.0, 1.0))"
    assert changed(Recipe()) == "Recipe()"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": 3}, "name = 3: must be text"),
        ({"taste": "bitter"}, "taste = 'bitter': must be 'salty' or 'sour' or 'sweet'"),
        ({"spices": "salt"}, "spices = 'salt': must be a list"),
        ({"spices": ["salt", 3]}, "spices[1] = 3: must be text"),
        ({"eggs": 3}, "eggs = 3: must be a whole number from 2 to 12, a multiple of 2"),
        ({"eggs": 14}, "eggs = 14: must be a whole number from 2 to 12, a multiple of 2"),
        ({"eggs": True}, "eggs = true: must be a whole number from 2 to 12, a multiple of 2"),
        ({"eggs": 2.5}, "eggs = 2.5: must be a whole number from 2 to 12, a multiple of 2"),
        ({"minutes": 0}, "minutes = 0: must be a whole number from 1 or null"),
        ({"heat": 1}, "heat = 1: must be a number above 0 and below 1"),
        ({"heat": float("nan")}, "heat = null: must be a number above 0 and below 1"),
        ({"parts": (1, -1)}, "parts[1] = -1: must be a number from 0"),
        ({"parts": (float("inf"),)}, "parts[0] = null: must be a number from 0"),
        ({"ends": (1,)}, "ends = [1]: must be a list of 2"),
        ({"vegan": 1}, "vegan = 1: must be true or false"),
        ({"name": object}, "<class 'object'>: is no number, text or list"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(wrong, says):
    with pytest.raises(UsageError) as refused:
        Recipe(**wrong)
    assert str(refused.value) == says


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--eggs", "3"], "--eggs = 3: must be a whole number from 2 to 12, a multiple of 2"),
        (["--taste", "bitter"], "--taste = 'bitter': must be 'salty' or 'sour' or 'sweet'"),
        (["--parts", "1,much"], "--parts[1] = 'much': must be a number from 0"),
        (["--ends", "1"], "--ends = [1.0]: must be a list of 2"),
    ],
)
def test_the_command_line_names_the_option_as_it_was_written(arguments, says):
    with pytest.raises(UsageError) as refused:
        baked(*arguments)
    assert str(refused.value) == says


def helped(form: type) -> str:
    """The help of a command with these options, without the lines around its tables."""
    app = typer.Typer()

    @app.command()
    @from_dataclass
    def command(options: form) -> None: ...  # type: ignore[valid-type]

    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300", "NO_COLOR": "1"}).output
    return " ".join(text.replace("│", " ").split())


def test_help_has_groups_ranges_and_defaults():
    text = helped(Recipe)
    assert "Words" in text and "Numbers" in text and "secret" not in text and "--no-vegan" not in text
    assert "taste (sweet, salty or sour) [default: sweet]" in text
    assert "spices (default: all that are there) --vegan" in text
    assert "eggs (from 2 to 12, a multiple of 2) [default: 4]" in text
    assert "time (from 1; default: until it is done)" in text
    assert "parts (from 0) [default: 1,0.5]" in text


def test_every_option_of_train_has_its_help():
    text = helped(TrainOptions)
    assert len(options_of(TrainOptions)) == len(fields(TrainOptions))
    for field in options_of(TrainOptions):
        assert f"--{field.name.replace('_', '-')} " in text and field.option.help in text, field.name
    assert "taps to train on (default: every tap in the dataset)" in text
    assert "maximum number of epochs (from 1) [default: 10]" in text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"val_share": 0.0}, "val_share = 0.0: must be a number above 0 and below 1"),
        ({"val_share": 0.6, "test_share": 0.4}, "val_share = 0.6, test_share = 0.4: must be below 1 together"),
        ({"width": 20}, "width = 20: must be a whole number from 8 to 65536, a multiple of 8"),
        ({"rungs": (0.2, 1.0)}, "rungs[1] = 1.0: must be a number above 0 and below 1"),
        ({"seed": -1}, "seed = -1: must be a whole number from 0 to 4294967295"),
    ],
)
def test_trainings_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(UsageError) as refused:
        replace(TrainOptions(), **wrong)
    assert str(refused.value).startswith(says)
