"""Evaluators of other packages: fake distributions on the path, read by importlib.metadata alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.evaluators.table import evaluator_names, load_evaluator, parse_evaluator

MODULE = """
import torch
from probeselect.evaluators.table import Row

class Length:
    name = ""
    has_features = False

    def __init__(self, weights=None, *, device, dtype, batch_size):
        self.given = (weights, device, dtype, batch_size)

    def __call__(self, images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])

class Lengths(Length):
    def __init__(self, weights, scale, device, dtype=torch.float32, batch_size=7):
        self.given = (weights, device, dtype, batch_size, scale)

row = Row("NAME:Lengths", "its/weights", {"scale": 3})
bare = Row("NAME:Lengths", None, {"scale": 3})
number = 3
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with entry points on the path; its module has the distribution's name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(package: str, **points: str) -> None:
        (tmp_path / f"{package}.py").write_text(MODULE.replace("NAME", package))
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[probeselect.evaluators]", *lines, ""]))

    return install


def test_a_callable_gets_all_it_may_need(install: Install) -> None:
    install("plugin_a", length="plugin_a:Length")
    assert evaluator_names()[-1] == "length" and "clip-b32" in evaluator_names()
    assert parse_evaluator("length=folder") == ("length", "folder")
    evaluator: Any = load_evaluator("length")
    assert evaluator.name == "length" and evaluator.given == (None, "cpu", torch.float32, 32)
    assert evaluator([Image.new("RGB", (2, 2))], ["abc"]).tolist() == [3.0]
    evaluator = load_evaluator("length", "folder", "meta", torch.float16, 5)
    assert evaluator.given == ("folder", "meta", torch.float16, 5)


def test_a_row_is_like_ours(install: Install) -> None:
    install("plugin_b", lengths="plugin_b:row", bare="plugin_b:bare")
    evaluator: Any = load_evaluator("lengths")
    assert evaluator.given == ("its/weights", "cpu", torch.float32, 7, 3) and evaluator.name == "lengths"
    other: Any = load_evaluator("bare", "folder", batch_size=2)
    assert other.given == ("folder", "cpu", torch.float32, 2, 3)
    with pytest.raises(ProbeSelectError, match="evaluator bare: its row names no weights; bare=FOLDER"):
        load_evaluator("bare")


def test_names_that_clash_are_told_with_both(install: Install) -> None:
    install("plugin_c", **{"clip-b32": "plugin_c:Length", "twice": "plugin_c:Length"})
    install("plugin_d", twice="plugin_d:Length")
    for use in (parse_evaluator, load_evaluator):
        with pytest.raises(UsageError, match=r"'clip-b32' is probeselect's own and the plug-in plugin_c:L"):
            use("clip-b32")
    with pytest.raises(UsageError, match=r"'twice' is given by plugin_\w:Length of plugin_\w and plugin_\w:Length of"):
        load_evaluator("twice")


def test_plugins_that_do_not_work(install: Install) -> None:
    install("plugin_e", gone="no_such_module:x", number="plugin_e:number", lost="plugin_e:nothing")
    with pytest.raises(ProbeSelectError, match=r"evaluator gone: plug-in no_such_module:x of plugin_e cannot be imp"):
        load_evaluator("gone")
    with pytest.raises(ProbeSelectError, match=r"plug-in plugin_e:nothing of plugin_e cannot be imported \(Attribute"):
        load_evaluator("lost")
    with pytest.raises(ProbeSelectError, match="plug-in plugin_e:number of plugin_e is int, must be a Row or"):
        load_evaluator("number")
    with pytest.raises(UsageError, match=r"valid names: clip-b16, .*gone, number, lost"):
        load_evaluator("nothing")


def test_a_plugin_is_imported_only_when_it_is_loaded(install: Install) -> None:
    install("plugin_f", lazy="plugin_f:Length")
    code = f"import sys; sys.path[:] = {sys.path}\nfrom probeselect.evaluators.table import *\n"
    code += "parse_evaluator('lazy'); print('plugin_f' in sys.modules); load_evaluator('lazy')\n"
    code += "print('plugin_f' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr


def test_found_twice_is_one(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("plugin_g", same="plugin_g:Length")
    monkeypatch.setattr(sys, "path", [str(tmp_path) + "/.", *sys.path])
    assert load_evaluator("same").name == "same"
