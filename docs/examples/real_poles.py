"""A layer with real poles only: h[k] = λ h[k-1] + B u[k], y[k] = C h[k], λ = exp(-exp(decay)), all real."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmreduce import DiagonalStateSpace, Discrete, reduce_model, register_layer
from ssmreduce.layers.selecting import SelectingLayer
from ssmreduce.layers.selection import pursue, refit


class RealPoles(eqx.Module):  # its forward pass is left out
    decay: jax.Array
    B: jax.Array
    C: jax.Array

    def __init__(self, states, width, key):
        first, second = jax.random.split(key)
        self.decay = jnp.linspace(-4.0, 1.0, states)
        self.B = jax.random.normal(first, (states, width))
        self.C = jax.random.normal(second, (width, states))


def gram(weights, horizon):
    """Inner products of the impulse responses of the states: sums of (λᵢ λⱼ)ᵏ bᵢ·bⱼ over the steps k."""
    poles = np.exp(-np.exp(weights["decay"]))
    products = np.outer(poles, poles)
    steps = 1.0 if horizon is None else 1.0 - products**horizon
    return steps / (1.0 - products) * (weights["B"] @ weights["B"].T)


class RealPolesLayer(SelectingLayer):
    shapes = {"decay": ("n",), "B": ("n", "m"), "C": ("p", "n")}

    def ports(self, weights):  # no batch axes, inputs, outputs
        return (), weights["B"].shape[1], weights["C"].shape[0]

    def read(self, weights):
        self.check(weights)
        return DiagonalStateSpace.from_log(
            -np.exp(weights["decay"]),
            weights["B"],
            weights["C"],
            time=Discrete(),
            real_output=True,
            read_after_update=True,
        )

    def ranking(self, weights, horizon):
        return pursue(gram(weights, horizon), weights["C"])

    def refitted(self, weights, kept, horizon):
        C = refit(gram(weights, horizon), weights["C"], kept)
        return {"decay": weights["decay"][kept], "B": weights["B"][kept], "C": C}

    def kept_states(self, kept, order):
        return kept


register_layer(RealPoles, RealPolesLayer())
print(reduce_model([RealPoles(32, 2, jax.random.key(0))], 8))
