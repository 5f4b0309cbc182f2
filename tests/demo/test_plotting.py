"""The pictures: what is drawn, without pyplot and without comparing pixels."""

from __future__ import annotations

import dataclasses
import io
import sys

import numpy as np
import pytest

from ssmreduce.errors import MissingBackendError
from ssmreduce.plotting import plot_accuracy, plot_hsv_decay, plot_poles
from ssmreduce.training.tracking import ReductionEvent


@pytest.fixture
def events(rng):
    """Two cuts of two layers, with Hankel singular values down to zero."""

    def event(step, layer, old, new):
        hsv = np.concatenate([10.0 ** -np.arange(2.0 * old - 2), [0.0, 0.0]])
        poles = 0.9 * np.exp(2j * np.pi * rng.uniform(size=old))
        return ReductionEvent(
            step=step,
            layer=layer,
            old_order=old,
            new_order=new,
            real_order=2 * new,
            hsv=hsv,
            tau=0.1,
            error_bound=0.2,
            measured_error=0.1,
            seconds=0.0,
            poles_before=poles,
            poles_after=poles[:new],
        )

    return [event(5, "blocks[0].lru", 12, 6), event(5, "blocks[1].lru", 12, 12)]


def rendered(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_hsv_picture_marks_the_last_value_kept(events):
    axes = plot_hsv_decay(events).axes[0]
    assert axes.get_yscale() == "log"
    marker = axes.lines[1]
    assert float(marker.get_xdata()[0]) == 12
    assert float(marker.get_ydata()[0]) == pytest.approx(1e-11)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        "step 5, blocks[0].lru: 12 → 6 states",
        "step 5, blocks[1].lru: 12 → 12 states",
    ]


def test_accuracy_picture_is_in_percent_and_marks_cuts():
    curves = {"full": ([1.0, 2.0], [0.5, 0.9]), "reduced": ([1.0], [0.8])}
    axes = plot_accuracy(curves, cut_times={"reduced": [0.5, 0.7]}).axes[0]
    assert list(axes.lines[0].get_ydata()) == [50.0, 90.0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["full", "reduced", "cut"]


def test_pole_picture_has_a_panel_for_each_cut(events):
    figure = plot_poles(events)
    assert len(figure.axes) == 2
    before, after = figure.axes[0].collections
    assert len(before.get_offsets()) == 12
    assert len(after.get_offsets()) == 6


def test_a_pole_and_its_conjugate_give_the_same_marker(events):
    event = events[0]
    turned = dataclasses.replace(
        event, poles_before=event.poles_before.conj(), poles_after=event.poles_after.conj()
    )
    first, second = plot_poles([event, turned]).axes
    for drawn, conjugate in zip(first.collections, second.collections, strict=True):
        np.testing.assert_array_equal(drawn.get_offsets(), conjugate.get_offsets())
        assert np.all(drawn.get_offsets()[:, 1] >= 0.0)


def test_pictures_without_content_say_so():
    for figure in (plot_hsv_decay([]), plot_poles([]), plot_accuracy({})):
        assert rendered(figure).startswith(b"\x89PNG")
        assert figure.axes[0].texts[0].get_text() == "nothing to show"


def test_pictures_render(events):
    for figure in (plot_hsv_decay(events), plot_poles(events * 3)):
        assert rendered(figure).startswith(b"\x89PNG")


def test_a_notebook_shows_a_picture(events):
    # Asked for by IPython; tried in a kernel without "%matplotlib inline".
    assert plot_poles(events)._repr_png_().startswith(b"\x89PNG")


def test_pictures_do_not_use_pyplot(events, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plot_poles(events)


def test_missing_matplotlib_names_the_pip_command(events, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingBackendError, match=r"pip install 'ssmreduce\[plot\]'"):
        plot_poles(events)
