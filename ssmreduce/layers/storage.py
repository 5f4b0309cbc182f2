"""Where a layer keeps a complex matrix: two real arrays, one complex array, or a last axis of two.

Each storage is a linear map between arrays and complex matrices that keeps real and imaginary parts
apart, so that it serves weights, gradients and their squares alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import Array, HostArray


@dataclass(frozen=True)
class Parts:
    """Real and imaginary part in two arrays."""

    real: str
    imag: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return self.real, self.imag

    def get(self, weights: Mapping[str, Array]) -> Array:
        """Return the complex matrix."""
        return weights[self.real] + 1j * weights[self.imag]

    def put(self, matrix: HostArray) -> dict[str, HostArray]:
        """Return the arrays that store `matrix`."""
        return {self.real: matrix.real, self.imag: matrix.imag}


@dataclass(frozen=True)
class Whole:
    """One complex array (or a real one, where imaginary parts are zero)."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        """Name of the array."""
        return (self.name,)

    def get(self, weights: Mapping[str, Array]) -> Array:
        """Return the complex matrix."""
        return weights[self.name]

    def put(self, matrix: HostArray) -> dict[str, HostArray]:
        """Return the array that stores `matrix`."""
        return {self.name: matrix}


@dataclass(frozen=True)
class Packed(Whole):
    """One real array whose last axis holds real and imaginary part."""

    def get(self, weights: Mapping[str, Array]) -> Array:
        """Return the complex matrix."""
        packed = weights[self.name]
        return packed[..., 0] + 1j * packed[..., 1]

    def put(self, matrix: HostArray) -> dict[str, HostArray]:
        """Return the array that stores `matrix`."""
        return {self.name: np.stack([matrix.real, matrix.imag], axis=-1)}


Storage = Parts | Whole
"""Any of the three: `Packed` is a `Whole`."""
