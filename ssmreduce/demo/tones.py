"""The keys of a telephone: sequences with two tones each in noise, and the tones that a model's poles hit.

Frequencies are those of ITU-T Recommendation Q.23, with the tolerance of 1.5 % that Q.24 asks a receiver
to accept. A pole λ rings at |arg λ| / 2π of the sampling rate.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ssmreduce._array_libraries import HostArray
from ssmreduce.demo.data import SequenceData

SAMPLING_RATE = 8000.0
"""Samples a second."""

LOW = np.array([697.0, 770.0, 852.0, 941.0])
HIGH = np.array([1209.0, 1336.0, 1477.0, 1633.0])
TONES = np.concatenate([LOW, HIGH])
"""Frequencies in Hz: a key is one of the first four and one of the last four."""

NEAR = 0.02
"""A pole this close to a tone, in relative frequency, hits it."""

_SAMPLES = 200
_TRAINING, _TEST = 10_000, 4_000
_DETUNING = 0.015
_AMPLITUDES = 0.5, 1.0
_NOISE = 1.0


def make_tones(seed: int) -> SequenceData:
    """Draw 10,000 training and 4,000 test sequences of 200 samples, each one of the sixteen keys.

    Every tone has an amplitude of 0.5 to 1, any phase, and a frequency off by up to 1.5 %; the noise is
    white, of standard deviation 1.
    """
    rng = np.random.default_rng(seed)
    return SequenceData(
        "telephone tones, 200 samples at 8 kHz",
        *_keys(_TRAINING, rng),
        *_keys(_TEST, rng),
        classes=LOW.size * HIGH.size,
    )


def _keys(
    count: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    keys = rng.integers(0, LOW.size * HIGH.size, count)
    sound = _NOISE * rng.standard_normal((count, _SAMPLES))
    time = np.arange(_SAMPLES) / SAMPLING_RATE
    for tone in (LOW[keys // HIGH.size], HIGH[keys % HIGH.size]):
        frequency = tone * rng.uniform(1.0 - _DETUNING, 1.0 + _DETUNING, count)
        amplitude = rng.uniform(*_AMPLITUDES, count)
        phase = rng.uniform(0.0, 2.0 * np.pi, count)
        sound += amplitude[:, None] * np.sin(
            2.0 * np.pi * frequency[:, None] * time + phase[:, None]
        )
    return sound.astype(np.float32), keys.astype(np.int32)


def frequencies(poles: HostArray) -> HostArray:
    """Frequencies in Hz at which poles ring, from 0 to half the sampling rate."""
    return np.abs(np.angle(poles)) / (2.0 * np.pi) * SAMPLING_RATE


def near_a_tone(poles: HostArray) -> npt.NDArray[np.bool_]:
    """Tell which pole (rows) is within 2 % of which tone (columns)."""
    near: npt.NDArray[np.bool_] = np.abs(frequencies(poles)[:, None] / TONES - 1.0) <= NEAR
    return near


def tones_found(poles: HostArray) -> int:
    """Count the tones with a pole within 2 %."""
    return int(near_a_tone(poles).any(axis=0).sum())
