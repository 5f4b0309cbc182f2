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
        arrays = {k: x for k, x in vars(model).items() if isinstance(x, np.ndarray)}
        yield path, model, {k: x.ndim for k, x in arrays.items()}
        for name, part in vars(model).items():
            if isinstance(part, Part):
                yield from self.find(part, (*path, name))

    def prepared(self, model, changes, opt_state, moments):
        model = copy.deepcopy(model)
        for change in changes:
            layer = functools.reduce(getattr, change.handle.path, model)
            vars(layer).update(self.like(change.handle.arrays, change.values))
        return Prepared(model, opt_state)


register_framework(Part, Parts())
