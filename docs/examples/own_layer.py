"""A layer of one's own: h[k] = λ h[k-1] + B u[k], y[k] = Re(C h[k]), λ = exp(-exp(decay) + i frequency)."""

import numpy as np
import torch
from torch import nn

from ssmreduce import reduce_model, register_layer
from ssmreduce.layers.lti import LTILayer, check_decay


class Oscillators(nn.Module):  # its forward pass is left out
    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(-4.0, -1.0, states))
        self.frequency = nn.Parameter(torch.linspace(0.1, 3.0, states))
        self.B = nn.Parameter(torch.randn(states, width, dtype=torch.complex64))
        self.C = nn.Parameter(torch.randn(width, states, dtype=torch.complex64))


class OscillatorLayer(LTILayer):
    shapes = {"decay": ("n",), "frequency": ("n",), "B": ("n", "m"), "C": ("p", "n")}
    poles = ("decay", "frequency")

    def modes(self, weights):
        logarithms = -np.exp(weights["decay"]) + 1j * weights["frequency"]
        one = np.ones(logarithms.shape)
        return logarithms, one, one

    def pole_weights(self, logarithms, weights):
        check_decay(logarithms, "an Oscillators layer")
        return {"decay": np.log(-logarithms.real), "frequency": logarithms.imag}

    def matrices(self, weights):
        return weights["B"], weights["C"]

    def matrix_weights(self, B, C):
        return {"B": B, "C": C}


register_layer(Oscillators, OscillatorLayer())
print(reduce_model(nn.Sequential(Oscillators(32, 2)), 8))
