"""Shrink state-space layers by balanced truncation, also while they train."""

from importlib.metadata import version as _version

from ssmreduce.adapters.registry import read_system as read_system
from ssmreduce.adapters.registry import register_layer as register_layer
from ssmreduce.adapters.registry import write_system as write_system
from ssmreduce.equations.solve import LyapunovSolution as LyapunovSolution
from ssmreduce.equations.solve import solve_lyapunov as solve_lyapunov
from ssmreduce.equations.solve import solve_lyapunov_factor as solve_lyapunov_factor
from ssmreduce.errors import DataFileError as DataFileError
from ssmreduce.errors import MissingBackendError as MissingBackendError
from ssmreduce.errors import NoConvergenceError as NoConvergenceError
from ssmreduce.errors import NonFiniteError as NonFiniteError
from ssmreduce.errors import OptimizerStateError as OptimizerStateError
from ssmreduce.errors import OrderError as OrderError
from ssmreduce.errors import ShapeError as ShapeError
from ssmreduce.errors import SSMReduceError as SSMReduceError
from ssmreduce.errors import TimeDomainError as TimeDomainError
from ssmreduce.errors import UnreachableToleranceError as UnreachableToleranceError
from ssmreduce.errors import UnstableSystemError as UnstableSystemError
from ssmreduce.errors import UnsupportedEquationError as UnsupportedEquationError
from ssmreduce.errors import UnsupportedLayerError as UnsupportedLayerError
from ssmreduce.gramians.factors import controllability_gramian as controllability_gramian
from ssmreduce.gramians.factors import observability_gramian as observability_gramian
from ssmreduce.hankel import error_bounds as error_bounds
from ssmreduce.hankel import hankel_singular_values as hankel_singular_values
from ssmreduce.models.reduce import reduce_layer as reduce_layer
from ssmreduce.models.reduce import reduce_model as reduce_model
from ssmreduce.models.report import LayerReduction as LayerReduction
from ssmreduce.models.report import ModelReduction as ModelReduction
from ssmreduce.reduction.balanced import Balancing as Balancing
from ssmreduce.reduction.balanced import balance as balance
from ssmreduce.reduction.balanced import balanced_truncation as balanced_truncation
from ssmreduce.reduction.order import ErrorBound as ErrorBound
from ssmreduce.reduction.order import FixedOrder as FixedOrder
from ssmreduce.reduction.order import HankelEnergy as HankelEnergy
from ssmreduce.reduction.order import HankelMass as HankelMass
from ssmreduce.reduction.order import OrderRule as OrderRule
from ssmreduce.reduction.report import Reduction as Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace as DiagonalStateSpace
from ssmreduce.systems.state_space import StateSpace as StateSpace
from ssmreduce.time_domain import Continuous as Continuous
from ssmreduce.time_domain import Discrete as Discrete
from ssmreduce.training.reducer import InTrainingReducer as InTrainingReducer
from ssmreduce.training.schedule import ReductionSchedule as ReductionSchedule
from ssmreduce.training.tracking import ReductionEvent as ReductionEvent

__all__ = [
    "Balancing",
    "Continuous",
    "DataFileError",
    "DiagonalStateSpace",
    "Discrete",
    "ErrorBound",
    "FixedOrder",
    "HankelEnergy",
    "HankelMass",
    "InTrainingReducer",
    "LayerReduction",
    "LyapunovSolution",
    "MissingBackendError",
    "ModelReduction",
    "NoConvergenceError",
    "NonFiniteError",
    "OptimizerStateError",
    "OrderError",
    "OrderRule",
    "Reduction",
    "ReductionEvent",
    "ReductionSchedule",
    "SSMReduceError",
    "ShapeError",
    "StateSpace",
    "TimeDomainError",
    "UnreachableToleranceError",
    "UnstableSystemError",
    "UnsupportedEquationError",
    "UnsupportedLayerError",
    "__version__",
    "balance",
    "balanced_truncation",
    "controllability_gramian",
    "error_bounds",
    "hankel_singular_values",
    "observability_gramian",
    "read_system",
    "reduce_layer",
    "reduce_model",
    "register_layer",
    "solve_lyapunov",
    "solve_lyapunov_factor",
    "write_system",
]

__version__ = _version("ssmreduce")
