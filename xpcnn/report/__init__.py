"""Looking at a run, at windows and at feature maps."""

from xpcnn.report.curves import draw_curves
from xpcnn.report.explain import explain_conv, explain_pool
from xpcnn.report.feature_maps import draw_feature_maps
from xpcnn.report.layer_outputs import layer_outputs
from xpcnn.report.windows import draw_windows

__all__ = ["draw_curves", "draw_feature_maps", "draw_windows", "explain_conv", "explain_pool", "layer_outputs"]
