"""Cut an LRU layer of one's own in Keras 3, in the middle of training, with the moments of Adam."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from keras import ops

from ssmreduce import reduce_model


class LRU(keras.layers.Layer):
    """h[k] = λ h[k-1] + exp(gamma_log) B u[k], y[k] = Re(C h[k]) + D u[k].

    λ = exp(-exp(nu_log) + i exp(theta_log)).
    """

    def __init__(self, states, **options):
        super().__init__(**options)
        self.states = states

    def build(self, shape):
        n, m, rng = self.states, shape[-1], np.random.default_rng(0)
        start = {"nu_log": np.log(-0.5 * np.log(rng.uniform(0.5, 0.95, n)))}
        start |= {"theta_log": np.log(rng.uniform(0.01, 3.1, n)), "gamma_log": np.full(n, -1.0)}
        for name, size in (("B", (n, m)), ("C", (m, n))):
            start |= {
                f"{name}_{part}": rng.normal(0.0, size[1] ** -0.5, size) for part in ("re", "im")
            }
        start["D"] = np.ones(m)
        for name, value in start.items():
            weight = self.add_weight(name=name, shape=value.shape, initializer="zeros")
            weight.assign(value)
            setattr(self, name, weight)

    def call(self, inputs):
        length = inputs.shape[1]
        rate = -ops.exp(self.nu_log)[:, None] * np.arange(length)
        angle = ops.exp(self.theta_log)[:, None] * np.arange(length)
        power_re, power_im = ops.exp(rate) * ops.cos(angle), ops.exp(rate) * ops.sin(angle)
        scale = ops.exp(self.gamma_log)[:, None]
        B_re, B_im = scale * self.B_re, scale * self.B_im
        c_re = self.C_re[:, :, None] * B_re[None] - self.C_im[:, :, None] * B_im[None]
        c_im = self.C_re[:, :, None] * B_im[None] + self.C_im[:, :, None] * B_re[None]
        kernel = ops.einsum("pnm,nk->kpm", c_re, power_re) - ops.einsum(
            "pnm,nk->kpm", c_im, power_im
        )
        lags = np.arange(length)[:, None] - np.arange(length)
        kernels = kernel[np.maximum(lags, 0)] * (lags >= 0)[:, :, None, None]
        return ops.einsum("tspm,bsm->btp", kernels, inputs) + self.D * inputs


def build(states):
    """A small network, and its optimizer."""
    layers = [
        keras.layers.Dense(4, name="in"),
        LRU(states, name="lru"),
        keras.layers.Dense(1, name="out"),
    ]
    model = keras.Sequential([keras.Input((16, 3)), *layers], name="net")
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def moments(model):
    """The variables of Adam, by field and by the path of the weight."""
    own = {variable.path.replace("/", "_"): variable.path for variable in model.trainable_variables}
    fields = {"momentum": {}, "velocity": {}}
    for variable in model.optimizer.variables:
        name, _, field = variable.name.rpartition("_")
        if field in fields:
            fields[field][own[name]] = variable
    return fields


def reduced(model, order):
    """A model with fewer states, in which weights and moments are those of the cut."""
    names = {"momentum": "exp_avg", "velocity": "exp_avg_sq"}
    state = {
        names[field]: {path: np.asarray(variable) for path, variable in variables.items()}
        for field, variables in moments(model).items()
    }
    weights = {variable.path: np.asarray(variable) for variable in model.variables}
    result = reduce_model(weights, order, opt_state=state)
    smaller = build(result.report["net/lru"].new_order)
    smaller.optimizer.iterations.assign(model.optimizer.iterations)
    for variable in smaller.variables:
        variable.assign(result.model[variable.path])
    for field, variables in moments(smaller).items():
        for path, variable in variables.items():
            variable.assign(result.optimizer_state[names[field]][path])
    return smaller, result.report


keras.utils.set_random_seed(0)
x = np.random.default_rng(1).normal(size=(128, 16, 3)).astype("float32")
y = np.cumsum(x[:, :, :1], axis=1) / 5.0
model = build(32)
print(f"loss {model.evaluate(x, y, verbose=0):.4f}")
print(f"loss {model.fit(x, y, epochs=8, verbose=0).history['loss'][-1]:.4f} before the cut")
model, report = reduced(model, 12)
print(report)
print(f"right after it {model.evaluate(x, y, verbose=0):.4f}")
print(f"loss {model.fit(x, y, epochs=12, verbose=0).history['loss'][-1]:.4f} at the end")
