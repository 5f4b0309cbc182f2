"""Reduced systems in continuous form, and back in the form that a system is written in.

With A_c = (A - I)(A + I)⁻¹ and B_c = √2 (A + I)⁻¹ B,

    A_c P + P A_cᴴ + B_c B_cᴴ = 2 (A + I)⁻¹ (A P Aᴴ - P + B Bᴴ) (A + I)⁻ᴴ,

so that the continuous system (A_c, B_c, C) has the controllability Gramian P of the discrete system
(A, B, C), and its H2 norm. So have differences of such systems: an H2-optimal reduction of one is that
of the other. Cost O(r³). Digits go where a dense A has a pole near -1.

Reference: for the equation, Penzl, SIAM J. Sci. Comput. 21 (2000).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.prescaling import SomeSystem
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import diagonalise
from ssmreduce.time_domain import Continuous, Discrete


def continuous(system: SomeSystem) -> SomeSystem:
    """Return (A_c, B_c, C) of a system (A, B, C) with host arrays."""
    if not isinstance(system.time, Discrete):
        return system
    form: dict[str, Any] = {"D": None, "time": Continuous(), "read_after_update": False}
    if isinstance(system, DiagonalStateSpace):
        if system.log_eigenvalues is None:
            poles = (system.eigenvalues - 1.0) / (system.eigenvalues + 1.0)
        else:
            poles = np.tanh(0.5 * system.log_eigenvalues)
        B = system.B * (1.0 - poles)[:, None] / np.sqrt(2.0)
        return system.replace(eigenvalues=poles, B=B, **form)
    n, identity = system.order, np.eye(system.order)
    # (A - I)(A + I)⁻¹ = I - 2 (A + I)⁻¹ would cancel where A is near the identity.
    stacked = np.concatenate([system.A - identity, np.sqrt(2.0) * system.B], axis=1)
    solved = np.linalg.solve(system.A + identity, stacked)
    return system.replace(A=solved[:, :n], B=solved[:, n:], **form)


def discrete(reduced: StateSpace) -> tuple[HostArray, HostArray]:
    """Return A and B of the discrete system that `continuous` takes to `reduced`."""
    identity = np.eye(reduced.order)
    stacked = np.concatenate([identity + reduced.A, np.sqrt(2.0) * reduced.B], axis=1)
    solved = np.linalg.solve(identity - reduced.A, stacked)
    return solved[:, : reduced.order], solved[:, reduced.order :]


def minimal(start: System) -> StateSpace:
    """Continuous form of a reduced system, without the halves of real poles that are not there.

    A stored state with a real pole is two real states with the same pole, of which a real input
    drives one.
    """
    host = start.to_host()
    if isinstance(host, StateSpace):
        return continuous(host)
    dense = host.to_dense()
    if not host.real_output:
        return continuous(dense)
    paired = np.tile(host.eigenvalues.imag != 0, 2)
    present = np.any(dense.B, axis=1) & np.any(dense.C, axis=0)
    kept = np.flatnonzero(paired | present)
    if not kept.size:
        kept = np.arange(1)
    return continuous(
        StateSpace(dense.A[np.ix_(kept, kept)], dense.B[kept], dense.C[:, kept], time=host.time)
    )


def written_like(reduced: StateSpace, system: System) -> System | None:
    """The reduced system in the form, the time and with the feedthrough of `system`.

    None if it has no diagonal form, or rounding has made it unstable.
    """
    host = system.to_host()
    if isinstance(host, StateSpace):
        written: System | None = _written_dense(reduced, host)
    else:
        written = _written_diagonal(reduced, host)
    if written is None:
        return None
    return written if np.all(written.is_stable()) else None


def _written_dense(reduced: StateSpace, host: StateSpace) -> StateSpace:
    in_steps = isinstance(host.time, Discrete)
    A, B = discrete(reduced) if in_steps else (reduced.A, reduced.B)
    return host.replace(A=A, B=B, C=reduced.C)


def _written_diagonal(reduced: StateSpace, host: DiagonalStateSpace) -> DiagonalStateSpace | None:
    slot_map = diagonalise(reduced.A, real=host.real_output)
    if slot_map is None:
        return None
    poles = slot_map.eigenvalues
    B, C = slot_map.ports(reduced.B, reduced.C)
    if isinstance(host.time, Discrete):
        poles, B = (1.0 + poles) / (1.0 - poles), np.sqrt(2.0) * B / (1.0 - poles)[:, None]
    into, out = np.linalg.norm(B, axis=1), np.linalg.norm(C, axis=0)
    scale = np.sqrt(np.where(into * out > 0, out, 1.0) / np.where(into * out > 0, into, 1.0))
    return host.replace(eigenvalues=poles, B=B * scale[:, None], C=C / scale)
