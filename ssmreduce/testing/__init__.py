"""Assertions and Hypothesis strategies for tests of reductions and of state-space layers."""

from ssmreduce.testing.assertions import assert_balanced as assert_balanced
from ssmreduce.testing.assertions import assert_error_within_bound as assert_error_within_bound
from ssmreduce.testing.assertions import assert_lyapunov as assert_lyapunov
from ssmreduce.testing.assertions import assert_outputs_close as assert_outputs_close
from ssmreduce.testing.assertions import assert_same_library as assert_same_library
from ssmreduce.testing.assertions import assert_stable as assert_stable
from ssmreduce.testing.assertions import assert_systems_close as assert_systems_close
from ssmreduce.testing.strategies import diagonal_state_spaces as diagonal_state_spaces
from ssmreduce.testing.strategies import state_spaces as state_spaces
