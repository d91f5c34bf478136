"""What every picture shares: colours that colour-blind people can tell apart, a figure without a display, a whole file.

No pyplot anywhere: figures are drawn by the Agg canvas alone, so that no display, window or global state is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensors import palette
from sensors.palette import RGB
from sensors.text import plain
from training.files.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _hex(colour: RGB) -> str:
    return "#{:02X}{:02X}{:02X}".format(*colour)


MODALITY_COLOURS = {name: _hex(colour) for name, colour in palette.MODALITY_COLOURS.items()}
OTHER_COLOURS = tuple(map(_hex, palette.OTHER_COLOURS))
INK = "#222222"
FAINT = "#B5B5B5"


def literal(text: str) -> str:
    """A name as a figure shows it: no formula, and hidden in no legend."""
    shown = plain(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def new_figure(width_in: float, height_in: float, dpi: int = 110) -> Figure:
    """An empty white figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, whole or not at all.

    Raises:
        ValueError: the name does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: pictures are PNG, give a name that ends in .png")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi, pil_kwargs={"compress_level": 3})
    return path


def tidy(axes: Axes, grid: str | None = "y") -> None:
    """Thin spines, small ticks, a faint grid behind the data."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    if grid is not None:
        axes.grid(axis=grid, color="#E4E4E4", linewidth=0.8)  # type: ignore[arg-type]
        axes.set_axisbelow(True)
