"""A layer as arrays, cut to 16 of its 64 stored states."""

import numpy as np

from ssmreduce import DiagonalStateSpace, Discrete, balance, sweep

rng = np.random.default_rng(0)
poles = rng.uniform(0.5, 0.99, 64) * np.exp(1j * rng.uniform(0, 2 * np.pi, 64))
B = rng.standard_normal((64, 4)) + 1j * rng.standard_normal((64, 4))
C = rng.standard_normal((4, 64)) + 1j * rng.standard_normal((4, 64))
system = DiagonalStateSpace(
    poles,
    B,
    C,
    time=Discrete(),
    real_output=True,
    read_after_update=True,
)

balancing = balance(system)
print(balancing.hsv)  # 128 values: 64 complex states are 128 real ones
print(balancing.bound(16))  # what 16 stored states cost at most
reduction = balancing.truncate(16)
print(reduction.order, reduction.real_order)  # stored states, real states
print(reduction.error_bound)  # for inputs of energy 1, at most
print(reduction.verify())  # the error measured: a lower bound
print(sweep(system, [8, 16, 32]))  # what each order costs, as a table
