"""All figures of a report, in the order in which they are read."""

from __future__ import annotations

from mlx_ft.report.analyse import Analysis
from mlx_ft.report.bars import cost_panels, importance_panel, repeats_panel
from mlx_ft.report.lines import curve_panels, parallel_panel
from mlx_ft.report.maps import map_panel
from mlx_ft.report.svg import Panel


def panels(analysis: Analysis) -> list[Panel]:
    """The figures; one that makes no sense for these runs is a sentence that says why."""
    repeats = repeats_panel(analysis)
    return [
        *([repeats] if repeats else []),
        map_panel(analysis),
        *curve_panels(analysis),
        importance_panel(analysis),
        parallel_panel(analysis),
        *cost_panels(analysis),
    ]
