"""A framework of one's own: plain Python objects that hold NumPy arrays, and other such objects."""

import copy
import functools

import numpy as np

from ssmreduce.frameworks.current import register_framework
from ssmreduce.frameworks.framework import Framework
from ssmreduce.frameworks.transaction import Prepared


class Part:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Parts(Framework):
    def find(self, model, stops, path=()):
        if stops(model):
            yield path, model
        else:
            for name, part in vars(model).items():
                if isinstance(part, Part):
                    yield from self.find(part, stops, (*path, name))

    def at(self, model, path):
        return functools.reduce(getattr, path, model)

    def array_axes(self, layer):
        return {k: x.ndim for k, x in vars(layer).items() if isinstance(x, np.ndarray)}

    def read_arrays(self, layer, names):
        return {k: getattr(layer, k) * np.float64(1.0) for k in names}

    def precision(self, layer, names):
        return max(np.finfo(getattr(layer, k).dtype).eps for k in names)

    def item_sizes(self, layer, names):
        return {k: getattr(layer, k).itemsize for k in names}

    def rounded(self, layer, values):
        return {k: x.astype(getattr(layer, k).dtype) * np.float64(1.0) for k, x in values.items()}

    def prepared(self, model, changes, opt_state, moments, gradients):
        model = copy.deepcopy(model)
        for change in changes:
            layer = self.at(model, change.handle.path)
            for name, x in change.values.items():
                setattr(layer, name, x.astype(getattr(layer, name).dtype))
        return Prepared(model, opt_state)


register_framework(Part, Parts())
