"""How a curve looks, on paper and in a browser: the same colour for the same strategy in both."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from penstock.errors import PenstockError
from penstock.planning.strategies import get
from penstock.planning.swap import METHODS
from penstock.report.curve import INFERENCE, Curve

BOUND_COLOR = "#8c8c8c"
_DEFAULT_COLOR = "#0b4f8a"
# Okabe and Ito's colours, told apart by people who do not see all of them, and three more that are unlike these.
_COLORS = ("#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7a5195", "#a6761d", "#444444", "#66a61e", "#c0a000")
_MARKERS = ("s", "^", "v", "D", "P", "X", "<", ">", "p", "h")
_SYMBOLS = ("square", "triangle-up", "triangle-down", "diamond", "cross", "x", "triangle-left", "triangle-right")


@dataclass(frozen=True, slots=True)
class Line:
    """One strategy's line: a colour as `#rrggbb`, its marker for matplotlib and for plotly, its width in points."""

    color: str
    marker: str
    symbol: str
    width: float


def lines_of(curve: Curve) -> dict[str, Line]:
    """The line of each strategy; the default one comes first and stands out."""
    default = get("auto").name if curve.task == INFERENCE else METHODS[0]
    found = {default: Line(_DEFAULT_COLOR, "o", "circle", 2.6)} if default in curve.strategies else {}
    for number, strategy in enumerate(name for name in curve.strategies if name != default):
        color, marker = _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]
        found[strategy] = Line(color, marker, _SYMBOLS[number % len(_SYMBOLS)], 1.4)
    return found


def missing_extra(package: str, error: ImportError) -> PenstockError:
    """The error of a report without what draws it."""
    return PenstockError(f"{package} cannot be imported ({error}): pip install 'penstock[report]'")


def import_matplotlib() -> ModuleType:
    """The package `matplotlib`.

    Raises:
        PenstockError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise missing_extra("matplotlib", error) from error
    return matplotlib


def import_plotly() -> tuple[ModuleType, ModuleType]:
    """The modules `plotly.graph_objects` and `plotly.io`.

    Raises:
        PenstockError: they are not installed.
    """
    try:
        import plotly.graph_objects
        import plotly.io
    except ImportError as error:
        raise missing_extra("plotly", error) from error
    return plotly.graph_objects, plotly.io
