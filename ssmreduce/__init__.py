"""Reduce linear systems and state-space layers by balanced truncation, also while they train."""

from importlib.metadata import version as _version

from ssmreduce.equations.solve import solve_lyapunov as solve_lyapunov
from ssmreduce.equations.solve import solve_lyapunov_factor as solve_lyapunov_factor
from ssmreduce.errors import SSMReduceError as SSMReduceError
from ssmreduce.gramians.factors import controllability_gramian as controllability_gramian
from ssmreduce.gramians.factors import observability_gramian as observability_gramian
from ssmreduce.hankel import error_bounds as error_bounds
from ssmreduce.hankel import hankel_singular_values as hankel_singular_values
from ssmreduce.layers.known import register_layer as register_layer
from ssmreduce.layers.options import CutOptions as CutOptions
from ssmreduce.models.calibrate import calibrate as calibrate
from ssmreduce.models.calibration import Calibration as Calibration
from ssmreduce.models.checkpoint import load_reduced as load_reduced
from ssmreduce.models.checkpoint import shaped_like as shaped_like
from ssmreduce.models.reduce import reduce_layer as reduce_layer
from ssmreduce.models.reduce import reduce_model as reduce_model
from ssmreduce.models.sweep import sweep as sweep
from ssmreduce.models.systems_of_layers import read_system as read_system
from ssmreduce.models.systems_of_layers import write_system as write_system
from ssmreduce.norms import h2_norm as h2_norm
from ssmreduce.norms import hankel_norm as hankel_norm
from ssmreduce.norms import hinf_norm as hinf_norm
from ssmreduce.reduction.balanced import Balancing as Balancing
from ssmreduce.reduction.balanced import balance as balance
from ssmreduce.reduction.balanced import balanced_truncation as balanced_truncation
from ssmreduce.reduction.h2_optimal import h2_optimal as h2_optimal
from ssmreduce.reduction.modal import modal_truncation as modal_truncation
from ssmreduce.reduction.order import ErrorBound as ErrorBound
from ssmreduce.reduction.order import FixedOrder as FixedOrder
from ssmreduce.reduction.order import HankelEnergy as HankelEnergy
from ssmreduce.reduction.order import HankelMass as HankelMass
from ssmreduce.reduction.order import MeasuredError as MeasuredError
from ssmreduce.reduction.order import OrderRule as OrderRule
from ssmreduce.reduction.order import TotalBudget as TotalBudget
from ssmreduce.reduction.perturbation import singular_perturbation as singular_perturbation
from ssmreduce.reduction.realisation import balanced_realisation as balanced_realisation
from ssmreduce.reduction.realisation import minimal_realisation as minimal_realisation
from ssmreduce.reduction.report import Reduction as Reduction
from ssmreduce.reduction.selection import select_states as select_states
from ssmreduce.reduction.unstable import split_unstable as split_unstable
from ssmreduce.responses import frequency_response as frequency_response
from ssmreduce.responses import impulse_response as impulse_response
from ssmreduce.responses import step_response as step_response
from ssmreduce.systems.coordinates import diagonalised as diagonalised
from ssmreduce.systems.coordinates import real_form as real_form
from ssmreduce.systems.coordinates import transformed as transformed
from ssmreduce.systems.diagonal import DiagonalStateSpace as DiagonalStateSpace
from ssmreduce.systems.interconnect import difference as difference
from ssmreduce.systems.interconnect import parallel as parallel
from ssmreduce.systems.interconnect import series as series
from ssmreduce.systems.sampling import to_continuous as to_continuous
from ssmreduce.systems.sampling import to_discrete as to_discrete
from ssmreduce.systems.simulation import simulate as simulate
from ssmreduce.systems.state_space import StateSpace as StateSpace
from ssmreduce.time_domain import Continuous as Continuous
from ssmreduce.time_domain import Discrete as Discrete
from ssmreduce.training.policy import RollbackPolicy as RollbackPolicy
from ssmreduce.training.reducer import InTrainingReducer as InTrainingReducer
from ssmreduce.training.schedule import ReductionSchedule as ReductionSchedule
from ssmreduce.training.trace import HankelTrace as HankelTrace

__all__ = [
    "Balancing",
    "Calibration",
    "Continuous",
    "CutOptions",
    "DiagonalStateSpace",
    "Discrete",
    "ErrorBound",
    "FixedOrder",
    "HankelEnergy",
    "HankelMass",
    "HankelTrace",
    "InTrainingReducer",
    "MeasuredError",
    "OrderRule",
    "Reduction",
    "ReductionSchedule",
    "RollbackPolicy",
    "SSMReduceError",
    "StateSpace",
    "TotalBudget",
    "__version__",
    "balance",
    "balanced_realisation",
    "balanced_truncation",
    "calibrate",
    "controllability_gramian",
    "diagonalised",
    "difference",
    "error_bounds",
    "frequency_response",
    "h2_norm",
    "h2_optimal",
    "hankel_norm",
    "hankel_singular_values",
    "hinf_norm",
    "impulse_response",
    "load_reduced",
    "minimal_realisation",
    "modal_truncation",
    "observability_gramian",
    "parallel",
    "read_system",
    "real_form",
    "reduce_layer",
    "reduce_model",
    "register_layer",
    "select_states",
    "series",
    "shaped_like",
    "simulate",
    "singular_perturbation",
    "solve_lyapunov",
    "solve_lyapunov_factor",
    "split_unstable",
    "step_response",
    "sweep",
    "to_continuous",
    "to_discrete",
    "transformed",
    "write_system",
]

__version__ = _version("ssmreduce")
