"""Pictures and pages are written whole, look the same each time, and say what they need."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from penstock import PenstockError
from penstock.report import Curve, Point, save_page, save_picture

from .curves import some_curve

SAVERS = [(save_picture, "curve.png"), (save_picture, "curve.svg"), (save_page, "curve.html")]


def test_a_png_is_a_picture_of_readable_size(tmp_path: Path) -> None:
    save_picture(some_curve(), tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size[0] >= 1200
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


def test_an_svg_names_model_axes_and_every_line(tmp_path: Path) -> None:
    save_picture(some_curve("Model $a$ <b>"), tmp_path / "curve.svg")
    texts = [
        "".join(element.itertext()).strip()
        for element in ElementTree.parse(tmp_path / "curve.svg").iter()
        if element.tag.endswith("}text")
    ]
    for text in ("budget (MiB)", "warm pass (ms)", "optimal", "sequential", "measured", "below the lower bound"):
        assert text in texts
    assert any("Model $a$ <b>" in text for text in texts)


@pytest.mark.parametrize(("save", "name"), SAVERS)
def test_the_same_curve_gives_the_same_file(tmp_path: Path, save: Callable[[Curve, Path], None], name: str) -> None:
    save(some_curve(), tmp_path / name)
    first = (tmp_path / name).read_bytes()
    save(some_curve(), tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("save", "name"), SAVERS)
@pytest.mark.parametrize("count", [1, 2])
def test_curves_of_a_point_or_two_and_of_no_time_at_all_are_drawn(
    tmp_path: Path, save: Callable[[Curve, Path], None], name: str, count: int
) -> None:
    points = tuple(Point(1 << step, "optimal", 0.0, 0.0) for step in range(count))
    save(Curve("tiny", 0, 0.0, 1.0, True, points), tmp_path / name)
    assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize(("save", "name"), SAVERS)
def test_a_curve_without_a_single_plan_is_refused(
    tmp_path: Path, save: Callable[[Curve, Path], None], name: str
) -> None:
    curve = replace(some_curve(), points=(Point(10, "optimal", None, None, 20),))
    with pytest.raises(PenstockError, match="nothing to draw"):
        save(curve, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PenstockError, match=r"\.png or \.svg"):
        save_picture(some_curve(), tmp_path / "curve.pdf")


@pytest.mark.parametrize(("save", "name"), SAVERS)
def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Curve, Path], None], name: str
) -> None:
    without(monkeypatch, "matplotlib", "plotly")
    with pytest.raises(PenstockError, match=r"pip install 'penstock\[report\]'"):
        save(some_curve(), tmp_path / name)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if these packages were not installed."""
    plain = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in packages:
            raise ImportError(f"No module named {name!r}")
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
