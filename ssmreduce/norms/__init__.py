"""Norms of systems: H2, H-infinity, Hankel, and those of a difference."""

from ssmreduce.norms.gramian import h2_norm as h2_norm
from ssmreduce.norms.gramian import hankel_norm as hankel_norm
from ssmreduce.norms.hinf import HinfNorm as HinfNorm
from ssmreduce.norms.hinf import certified_difference as certified_difference
from ssmreduce.norms.hinf import hinf_difference as hinf_difference
from ssmreduce.norms.hinf import hinf_norm as hinf_norm
from ssmreduce.norms.horizon import finite_horizon_difference as finite_horizon_difference
