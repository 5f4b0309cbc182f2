"""Pictures of values with Matplotlib: decay, errors, poles, gains, responses, training, layers.

Functions take plain values or systems; every result object has a `plot` method that calls them. They return
the axes, draw into those passed as `ax`, and show nothing. Without `ax` the figure is one of pyplot's
if pyplot is loaded, so that ``plt.show()`` shows it; otherwise it is a plain one, which a notebook shows.
Line styles and markers repeat what colours tell.
"""

from ssmreduce.plotting.decay import plot_errors as plot_errors
from ssmreduce.plotting.decay import plot_hsv as plot_hsv
from ssmreduce.plotting.impulse import plot_impulse as plot_impulse
from ssmreduce.plotting.layers import plot_layers as plot_layers
from ssmreduce.plotting.runs import plot_agreement as plot_agreement
from ssmreduce.plotting.runs import plot_hsv_map as plot_hsv_map
from ssmreduce.plotting.runs import plot_metric as plot_metric
from ssmreduce.plotting.systems import plot_gain as plot_gain
from ssmreduce.plotting.systems import plot_poles as plot_poles

__all__ = [
    "plot_agreement",
    "plot_errors",
    "plot_gain",
    "plot_hsv",
    "plot_hsv_map",
    "plot_impulse",
    "plot_layers",
    "plot_metric",
    "plot_poles",
]
