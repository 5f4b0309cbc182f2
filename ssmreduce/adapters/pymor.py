"""pyMOR `LTIModel` in and out, with its time base.

pyMOR says continuous as ``sampling_time=0``. A model E x' = A x + B u with E other than the identity is
refused: whether E may be inverted is for its owner to say. Sparse operators become dense, which for
models of 10⁴ states or more is too much: reduce those with pyMOR.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ssmreduce import _checks
from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import ArgumentError, ArgumentTypeError, ShapeError
from ssmreduce.systems.coordinates import exportable
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Continuous, Discrete, sampling_time


def from_pymor(model: Any) -> StateSpace:
    """The `StateSpace` of a pyMOR `LTIModel`, time base kept.

    Parameters
    ----------
    model : pymor.models.iosys.LTIModel
        Without parameters, with E the identity.

    Returns
    -------
    StateSpace
        Real or complex as the model is, dense.

    Raises
    ------
    ArgumentTypeError
        If `model` is not an LTIModel.
    ArgumentError
        If it depends on parameters.
    ShapeError
        If E is not the identity.
    MissingBackendError
        If pyMOR is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from pymor.models.iosys import LTIModel
    >>> from ssmreduce.adapters.pymor import from_pymor
    >>> model = LTIModel.from_matrices(-np.eye(2), np.ones((2, 1)), np.ones((1, 2)))
    >>> from_pymor(model).time
    Continuous()
    """
    iosys = _checks.require_backend("pymor.models.iosys", extra="pymor")
    if not isinstance(model, iosys.LTIModel):
        raise ArgumentTypeError(
            f"`model` is a {_checks.type_name(model)}; expected a pyMOR "
            "LTIModel. Second-order models have to_lti()."
        )
    if model.parametric:
        raise ArgumentError(
            f"`model` depends on the parameters {dict(model.parameters)}; expected fixed matrices. "
            "Build an LTIModel from the matrices at one parameter value."
        )
    A, B, C, D, E = model.to_matrices(format="dense")
    if E is not None and not np.array_equal(E, np.eye(len(A))):
        raise ShapeError(
            "`model` is a descriptor system, E x' = A x + B u with E other than the identity; expected "
            "E = I. If E is well conditioned, pass LTIModel.from_matrices(solve(E, A), solve(E, B), C, "
            "D, sampling_time=...)."
        )
    time = Discrete(float(model.sampling_time)) if model.sampling_time else Continuous()
    feedthrough = None if D is None else _numbers(D)
    return StateSpace(_numbers(A), _numbers(B), _numbers(C), feedthrough, time=time)


def to_pymor(system: System) -> Any:
    """The pyMOR `LTIModel` with the same map, time base kept.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Real or complex, without batch axes. One that reads after its update is exported in its
        standard form.

    Returns
    -------
    pymor.models.iosys.LTIModel
        With dense operators.

    Raises
    ------
    ShapeError
        If the system has batch axes.
    MissingBackendError
        If pyMOR is missing.
    ArgumentTypeError
        If `system` is not a system.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace
    >>> from ssmreduce.adapters.pymor import to_pymor
    >>> model = to_pymor(StateSpace([[0.5]], [[1.0]], [[1.0]], time=Discrete(0.1)))
    >>> model.order, model.sampling_time
    (1, 0.1)
    """
    iosys = _checks.require_backend("pymor.models.iosys", extra="pymor")
    dense = exportable(system)
    dt = sampling_time(dense.time) or 0
    # pyMOR forbids writing to the arrays that it is given.
    arrays = (np.array(x) for x in (dense.A, dense.B, dense.C, dense.D))
    return iosys.LTIModel.from_matrices(*arrays, sampling_time=dt)


def _numbers(matrix: HostArray) -> HostArray:
    return np.array(matrix, dtype=np.result_type(matrix, np.float64))
