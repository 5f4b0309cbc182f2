"""The pictures of the tour and of the front page: ``python docs/examples/tour_pictures.py docs``."""

import contextlib
import os
import runpy
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ssmreduce import hankel_singular_values, read_system
from ssmreduce.demo.tones import SAMPLING_RATE, TONES

BLACK, GREY = "0.1", "0.65"


def ringing(poles):
    """Frequencies of poles in Hz, and the share of a state that is left after 50 samples."""
    return np.abs(np.angle(poles)) / (2 * np.pi) * SAMPLING_RATE, np.abs(poles) ** 50


def poles_of(model):
    return np.asarray(read_system(model.ssm).eigenvalues)


def states(tour):
    """What three states do with a single click."""
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.2), sharey=True, layout="constrained")
    steps = np.arange(120)
    for k, own in zip((0, 20, 40), axes, strict=True):
        pole = poles_of(tour["model"])[k]
        own.plot(steps, (pole**steps).real, color=BLACK, linewidth=1)
        own.set_title(f"state {k}: {ringing(pole)[0]:.0f} Hz", fontsize=10)
        own.set_xlabel("samples after the click")
    axes[0].set_ylabel("state, real part")
    return figure


def draw_values(own, tour, kept):
    values = hankel_singular_values(read_system(tour["model"].ssm), horizon=200)
    number = np.arange(1, len(values) + 1)
    own.semilogy(number[kept:], values[kept:] / values[0], "o", color=GREY, markersize=3)
    own.semilogy(number[:kept], values[:kept] / values[0], "s", color=BLACK, markersize=4)
    own.set_xlabel("state, the most important first")
    own.set_ylabel("Hankel singular value")


def draw_costs(own, tour):
    rows = [row for row in tour["costs"].rows]
    orders = [64, *(row.order for row in rows)]
    accuracies = [tour["accuracy"](tour["model"]), *(row.metric for row in rows)]
    own.plot(orders, [100 * value for value in accuracies], "s-", color=BLACK, markersize=5)
    own.set_xscale("log", base=2)
    ticks = [6, 8, 10, 16, 24, 32, 64]
    own.set_xticks(ticks, [str(tick) for tick in ticks])
    own.minorticks_off()
    own.set_ylim(0, 105)
    own.set_xlabel("states kept")
    own.set_ylabel("accuracy in %")


def draw_poles(own, tour):
    for tone in TONES:
        own.axvline(tone, color="0.8", linewidth=1.5, zorder=0)
    own.plot(*ringing(poles_of(tour["model"])), "o", color=GREY, markersize=5, label="64 states")
    own.plot(*ringing(poles_of(tour["ten"])), "x", color=BLACK, markersize=8, label="10 states")
    own.set_xlim(0, 2200)
    own.set_ylim(-0.05, 1.25)
    own.set_xlabel("frequency in Hz; lines: the eight tones")
    own.set_ylabel("left after 50 samples")
    own.legend(loc="lower right")


def values(tour):
    figure, own = plt.subplots(figsize=(6, 3), layout="constrained")
    draw_values(own, tour, 20)
    own.set_title("128 values; squares: the first 20", fontsize=10)
    return figure


def costs(tour):
    figure, own = plt.subplots(figsize=(6, 3), layout="constrained")
    draw_costs(own, tour)
    return figure


def poles(tour):
    figure, own = plt.subplots(figsize=(8, 3), layout="constrained")
    draw_poles(own, tour)
    return figure


def front(tour):
    with plt.rc_context({"font.size": 12}):
        figure = plt.figure(figsize=(8, 6), layout="constrained")
        grid = figure.add_gridspec(2, 2)
        left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        below = figure.add_subplot(grid[1, :])
        draw_values(left, tour, 20)
        left.set_title("what each state is worth", fontsize=13)
        draw_costs(right, tour)
        right.set_title("accuracy right after a cut", fontsize=13)
        draw_poles(below, tour)
        below.set_title("what is left: the tones of the task", fontsize=13)
    return figure


PICTURES = {
    "tour_states": states,
    "tour_values": values,
    "tour_costs": costs,
    "tour_poles": poles,
    "front": front,
}

if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    program = Path(__file__).resolve().with_name("tour.py")
    with tempfile.TemporaryDirectory() as elsewhere, contextlib.chdir(elsewhere):
        tour = runpy.run_path(os.fspath(program))
    for name, draw in PICTURES.items():
        draw(tour).savefig(folder / f"{name}.png", dpi=100)
