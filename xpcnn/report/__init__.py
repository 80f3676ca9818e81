"""Looking at a run."""

from xpcnn.report.curves import draw_curves

__all__ = ["draw_curves"]
