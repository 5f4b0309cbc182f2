"""Telephone tones: what the sequences hold, by their spectra, and which poles count as at a tone."""

from __future__ import annotations

import numpy as np
import pytest

from ssmreduce.demo.experiment import Experiment
from ssmreduce.demo.pictures import accuracy_picture, tones_picture
from ssmreduce.demo.runs import CurvePoint
from ssmreduce.demo.settings import make_settings
from ssmreduce.demo.tones import HIGH, LOW, TONES, frequencies, make_tones, tones_found


@pytest.fixture(scope="module")
def data():
    return make_tones(0)


def test_spectra_tell_the_keys(data):
    assert data.classes == 16
    time = np.arange(200) / 8000
    # White noise of energy 200 in each bin, a tone of 200² a²/4: the key nearly always stands out.
    power = [
        np.abs(data.test_sequences @ np.exp(-2j * np.pi * time[:, None] * tones)) ** 2
        for tones in (LOW, HIGH)
    ]
    key = 4 * power[0].argmax(axis=1) + power[1].argmax(axis=1)
    assert np.mean(key == data.test_labels) > 0.97


def test_amplitudes_and_noise(data):
    sequences = data.train_sequences
    assert sequences.shape == (10_000, 200)
    assert data.test_sequences.shape == (4_000, 200)
    # Noise of variance 1, two tones of mean square E[a²]/2, a uniform on [0.5, 1].
    assert np.var(sequences) == pytest.approx(1.0 + (1.0 - 0.5**3) / (3 * 0.5), rel=0.01)
    # Samples 1 and 2 apart share the tones alone: the noise is white.
    spectrum = np.mean(np.abs(np.fft.rfft(sequences)) ** 2, axis=0) / 200
    np.testing.assert_allclose(spectrum[60:], 1.0, atol=0.06)  # above 2400 Hz
    counts = np.bincount(data.train_labels, minlength=16)
    assert np.abs(counts - 625).max() < 5 * np.sqrt(625)


def test_each_seed_draws_its_own(data):
    np.testing.assert_array_equal(data.test_sequences, make_tones(0).test_sequences)
    other = make_tones(1)
    assert np.mean(other.train_labels == data.train_labels) < 0.1


def test_poles_ring_at_their_angle():
    poles = 0.9 * np.exp(2j * np.pi * TONES / 8000)
    np.testing.assert_allclose(frequencies(poles), TONES)
    np.testing.assert_allclose(frequencies(poles.conj()), TONES)
    assert frequencies(np.array([-0.5])) == 4000.0
    assert tones_found(poles) == tones_found(poles.conj()) == 8
    assert tones_found(0.5 * np.exp(2j * np.pi * TONES * 1.019 / 8000)) == 8
    assert tones_found(0.5 * np.exp(2j * np.pi * TONES * 1.021 / 8000)) == 0
    assert tones_found(np.repeat(poles[:1], 5)) == 1


@pytest.fixture
def experiment():
    """Two seeds; the small model of the second one collapsed."""
    made = Experiment(make_settings(seeds=2))
    for run in made:
        collapsed = run.name == "small" and run.seed == 1
        run.states_per_layer, run.complete = [8], True
        accuracies = (0.06, 0.06) if collapsed else (0.9, 0.99)
        run.curve = [CurvePoint(i, float(i), 1.0, a, 8) for i, a in enumerate(accuracies, 1)]
        found = np.append(TONES[:-1], 2500.0) if run.name == "small" else TONES
        run.poles = 0.98 * np.exp(2j * np.pi * (np.full(8, 50.0) if collapsed else found) / 8000)
    made.runs["reduced"][0].cut_times = [1.5]
    return made


def test_the_picture_of_poles_shows_every_seed(experiment):
    rows = tones_picture(experiment).axes
    texts = ["\n".join(text.get_text() for text in axes.texts) for axes in rows]
    assert len(rows) == 4
    assert "reduced, seed 0\n99.0 %\n8 of 8 tones" in texts[0]
    assert "beyond the axis" not in texts[0]
    assert "small, seed 0\n99.0 %\n7 of 8 tones\nbeyond the axis, Hz:\n2500" in texts[2]
    assert "small, seed 1\n6.0 %\n0 of 8 tones" in texts[3]
    hits = [line for line in rows[0].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate([line.get_xdata() for line in hits]), TONES)


def test_the_picture_of_accuracy_shows_every_seed(experiment):
    (axes,) = accuracy_picture(experiment).axes
    assert [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 2] == [
        *"ss",
        *"oo",
        *"^^",
    ]
    (cut,) = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert cut.get_xdata()[0] == 1.5
    bottom, top = axes.get_ylim()
    assert bottom > 0.94 > top  # the collapsed one is inside; better is higher
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["full, 8 states", "reduced, 512 → 8 states", "small, 8 states", "cut"]


def test_pictures_of_a_demo_that_did_nothing():
    nothing = Experiment(make_settings(seeds=1))
    for picture in (accuracy_picture, tones_picture):
        picture(nothing).canvas.draw()
