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
    def find(self, model, path=()):
        yield path, model
        for name, part in vars(model).items():
            if isinstance(part, Part):
                yield from self.find(part, (*path, name))

    def at(self, model, path):
        return functools.reduce(getattr, path, model)

    def array_axes(self, layer):
        return {k: x.ndim for k, x in vars(layer).items() if isinstance(x, np.ndarray)}

    def arrays(self, layer, names):
        return {k: getattr(layer, k) for k in names}

    def prepared(self, model, changes, opt_state, moments):
        model = copy.deepcopy(model)
        for change in changes:
            layer = self.at(model, change.handle.path)
            vars(layer).update(self.like(change.handle.arrays, change.values))
        return Prepared(model, opt_state)


register_framework(Part, Parts())
