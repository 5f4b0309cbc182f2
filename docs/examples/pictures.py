"""The pictures of the page about them: ``python docs/examples/pictures.py docs``."""

import sys
from pathlib import Path

import equinox as eqx
import numpy as np

from ssmreduce import HankelMass, HankelTrace, reduce_layer, reduce_model, sweep
from ssmreduce.demo.lru import LRU
from ssmreduce.plotting import plot_metric
from ssmreduce.training.tracking import ReductionEvent


def layer(seed, decay=0.0):
    """An LRU; with a decay its states matter less and less."""
    made = LRU(32, 4, rng=np.random.default_rng(seed))
    scale = np.exp(-decay * np.arange(32)).astype("float32")
    return eqx.tree_at(lambda m: (m.C_re, m.C_im), made, (made.C_re * scale, made.C_im * scale))


def trace():
    """The picture of a trace while states of a layer lose their weight, with a cut in the middle."""
    recorded = HankelTrace(10)
    for step in range(0, 200, 10):
        recorded.record(step, layer(0, decay=step / 800))
    cut = reduce_layer(layer(0, decay=0.25), HankelMass(0.96))
    for step in range(200, 310, 10):
        recorded.record(step, cut.layer)
    return recorded.plot([ReductionEvent.of(195, "model", cut, HankelMass(0.96))])


RUNS = {
    "full": ([0, 60, 120, 180, 240], [10, 71, 88, 93, 95]),
    "reduced": ([0, 30, 62, 85, 108], [10, 71, 89, 93, 95]),
}

PICTURES = {
    "reduction": lambda: reduce_layer(layer(0, 0.1), 10).plot(),
    "sweep": lambda: sweep(layer(0, 0.1), [2, 4, 8, 12, 16, 24]).plot(),
    "layers": lambda: reduce_model([layer(k, 0.03 * k) for k in range(4)], HankelMass(0.9)).plot(),
    "trace": trace,
    "metric": lambda: plot_metric(RUNS, cuts={"reduced": [30]}, name="test accuracy (%)"),
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        axes = np.ravel(np.asarray(draw(), dtype=object))[0]
        axes.figure.savefig(Path(sys.argv[1]) / f"picture_{name}.png", dpi=75)
