"""Exceptions of ssmreduce.

Every exception derives from `SSMReduceError` and from the builtin it specialises, so that
``except ValueError`` written without knowledge of this package still works.
"""

from __future__ import annotations


class SSMReduceError(Exception):
    """Base class of every error that ssmreduce raises on purpose."""


class ShapeError(SSMReduceError, ValueError):
    """An array has the wrong size, dtype or layout; of two sizes that clash, both are printed."""


class NonFiniteError(SSMReduceError, ValueError):
    """An input holds NaN or Inf, or an answer would."""


class TimeDomainError(SSMReduceError, TypeError):
    """A time domain is missing, is not a time domain, or does not fit the other one."""


class UnstableSystemError(SSMReduceError, ValueError):
    """A pole lies on or outside the stability boundary where no Gramian exists."""


class OrderError(SSMReduceError, ValueError):
    """An order, or a setting that decides one, is out of range or cannot be delivered."""


class UnreachableToleranceError(SSMReduceError, ValueError):
    """The requested tolerance lies below what the arithmetic can certify."""


class UnsupportedEquationError(SSMReduceError, ValueError):
    """A solver cannot treat this kind of equation: its time domain, its dtype, or what it asks for."""


class NoConvergenceError(SSMReduceError, RuntimeError):
    """An iteration stopped before it reached its tolerance."""


class UnsupportedLayerError(SSMReduceError, TypeError):
    """No registered layer class can read this object."""


class OptimizerStateError(SSMReduceError, TypeError):
    """An optimizer state holds something that cannot be carried to a reduced layer."""


class DistributedError(SSMReduceError, RuntimeError):
    """The processes of a distributed training differ, or are not all there."""


class CutRefusedError(SSMReduceError, RuntimeError):
    """A cut is not made: it would cost more of the loss than a policy allows."""


class TracedValueError(SSMReduceError, TypeError):
    """A function needs the entries of an array that has none while it is traced by jit or vmap."""


class MissingBackendError(SSMReduceError, ImportError):
    """An optional package is needed; the message names the pip command that adds it."""


class DataFileError(SSMReduceError, ValueError):
    """A data file is missing, unreadable, or not laid out as expected."""


class ScalingWarning(UserWarning):
    """Inputs or outputs differ so much in size that the small ones drown in rounding."""


class CalibrationWarning(UserWarning):
    """Data are too few for a cut that is fitted to them, or the model is no better than chance on them."""


class HostTransferWarning(UserWarning):
    """Arrays were moved from a device to the host and back, or a gradient ends; the message says why."""
