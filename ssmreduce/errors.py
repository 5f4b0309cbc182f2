"""Exceptions of ssmreduce.

Every exception derives from `SSMReduceError` and from the builtin it specialises, so that
``except ValueError`` written without knowledge of this package still works.
"""

from __future__ import annotations


class SSMReduceError(Exception):
    """Base class of every error that ssmreduce raises on purpose.

    Each of them is also the builtin exception that it specialises.

    Examples
    --------
    >>> from ssmreduce import FixedOrder, SSMReduceError
    >>> try:
    ...     FixedOrder(0)
    ... except SSMReduceError as error:
    ...     print(type(error).__name__, isinstance(error, ValueError))
    OrderError True
    """


class ShapeError(SSMReduceError, ValueError):
    """An array has the wrong size, dtype or layout; of two sizes that clash, both are printed.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace
    >>> StateSpace([[0.5]], [[1.0], [2.0]], [[1.0]], time=Discrete())
    Traceback (most recent call last):
        ...
    ssmreduce.errors.ShapeError: `B` has 2 rows but `A` is 1x1; expected `B` of shape (..., 1, m).
    """


class NonFiniteError(SSMReduceError, ValueError):
    """An input holds NaN or Inf, or a result would.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace
    >>> StateSpace([[float("nan")]], [[1.0]], [[1.0]], time=Discrete())
    Traceback (most recent call last):
        ...
    ssmreduce.errors.NonFiniteError: `A` holds NaN or Inf; expected finite numbers. ...
    """


class TimeDomainError(SSMReduceError, TypeError):
    """A time domain is missing, is not a time domain, or does not fit the other one.

    Examples
    --------
    >>> from ssmreduce import StateSpace
    >>> StateSpace([[0.5]], [[1.0]], [[1.0]], time="discrete")
    Traceback (most recent call last):
        ...
    ssmreduce.errors.TimeDomainError: `time` is 'discrete'; expected ...
    """


class UnstableSystemError(SSMReduceError, ValueError):
    """A pole lies on or outside the stability boundary where no Gramian exists, or a layer cannot
    store it.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace, balance
    >>> balance(StateSpace([[2.0]], [[1.0]], [[1.0]], time=Discrete()))
    Traceback (most recent call last):
        ...
    ssmreduce.errors.UnstableSystemError: `system` has ... |λ| = 2; expected |λ| < 1. ...
    """


class ArgumentError(SSMReduceError, ValueError):
    """An argument is out of range, is none of the known names, or excludes another one.

    Examples
    --------
    >>> from ssmreduce import HankelMass
    >>> HankelMass(1.5)
    Traceback (most recent call last):
        ...
    ssmreduce.errors.ArgumentError: `share` is 1.5; expected a number in (0, 1]. ...
    """


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument is an object of another type than the function takes: no system, no bool, no text.

    Examples
    --------
    >>> from ssmreduce import hankel_norm
    >>> hankel_norm("system")
    Traceback (most recent call last):
        ...
    ssmreduce.errors.ArgumentTypeError: `system` is a builtins.str; expected a StateSpace ...
    """


class OrderError(ArgumentError):
    """An order is out of range or cannot be delivered.

    Examples
    --------
    >>> from ssmreduce import FixedOrder
    >>> FixedOrder(0)
    Traceback (most recent call last):
        ...
    ssmreduce.errors.OrderError: `order` is 0; expected ...
    """


class UnreachableToleranceError(SSMReduceError, ValueError):
    """The requested tolerance lies below what the arithmetic can certify.

    Examples
    --------
    >>> from ssmreduce import ErrorBound
    >>> ErrorBound(relative=1e-20).choose([1.0, 0.5])
    Traceback (most recent call last):
        ...
    ssmreduce.errors.UnreachableToleranceError: the tolerance 1e-20 lies below ...
    """


class UnsupportedEquationError(SSMReduceError, ValueError):
    """A solver cannot treat this kind of equation: its time domain, its dtype, or what it asks for.

    Examples
    --------
    >>> from ssmreduce import Discrete, solve_lyapunov
    >>> from ssmreduce.equations.solvers import MatrixSign
    >>> solve_lyapunov([[0.5]], [[1.0]], time=Discrete(), solver=MatrixSign())
    Traceback (most recent call last):
        ...
    ssmreduce.errors.UnsupportedEquationError: `solver` is MatrixSign(), which is for continuous ...
    """


class NoConvergenceError(SSMReduceError, RuntimeError):
    """An iteration stopped before it reached its tolerance, or a problem is singular to working
    precision.

    Examples
    --------
    >>> from ssmreduce import Continuous, solve_lyapunov
    >>> solve_lyapunov([[1.0, 0.0], [1.0, -1.0]], [[1.0, 0.0], [0.0, 1.0]], time=Continuous())
    Traceback (most recent call last):
        ...
    ssmreduce.errors.NoConvergenceError: ...
    """


class UnsupportedLayerError(SSMReduceError, TypeError):
    """An object is no layer or model that can be read, or a variant that cannot be reduced.

    Examples
    --------
    >>> from ssmreduce import read_system
    >>> read_system("encoder")
    Traceback (most recent call last):
        ...
    ssmreduce.errors.UnsupportedLayerError: `layer` is a builtins.str; expected ...
    """


class OptimizerStateError(SSMReduceError, TypeError):
    """An optimizer state holds something that cannot be carried to a reduced layer, or is of
    another model.
    """


class DistributedError(SSMReduceError, RuntimeError):
    """The processes of a distributed training differ, or not all of them called."""


class CutRefusedError(SSMReduceError, RuntimeError):
    """A cut is not made: it would cost more of the loss than a policy allows."""


class TracedValueError(SSMReduceError, TypeError):
    """A function needs the entries of an array that has none while it is traced by jit or vmap."""


class MissingBackendError(SSMReduceError, ImportError):
    """An optional package is missing; the message names the pip command that adds it."""


class DataFileError(SSMReduceError, ValueError):
    """A data file is missing, unreadable, or not laid out as expected."""


class ScalingWarning(UserWarning):
    """Inputs or outputs differ so much in size that the small ones are lost in rounding; see
    `balance`.
    """


class ReductionWarning(UserWarning):
    """A layer keeps fewer states than were asked for, since it cannot hold the cut of that order."""


class CalibrationWarning(UserWarning):
    """Data are too few for a cut that is fitted to them, or may be another model's; or the model is no
    better than chance on them.
    """


class HostTransferWarning(UserWarning):
    """Arrays were moved from a device to the host and back, or a gradient ends there; the message
    says why.
    """
