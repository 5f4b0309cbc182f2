"""`PytreeFramework`: models that are pytrees, of Equinox modules or of dicts of JAX arrays.

Imported only once the user's own object proves that JAX is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmreduce import _checks
from ssmreduce._array_libraries import HostArray, is_complex_array, to_double, to_host
from ssmreduce.errors import OptimizerStateError, ShapeError
from ssmreduce.frameworks import pytree_matching, pytree_recording
from ssmreduce.frameworks.framework import Framework, Snapshot
from ssmreduce.frameworks.handle import LayerChange, LayerHandle, Path
from ssmreduce.frameworks.moments import Moment, read_moment
from ssmreduce.frameworks.pytree_stand_ins import part_at
from ssmreduce.frameworks.saved import NamedTrees
from ssmreduce.frameworks.transaction import Prepared


@final
class PytreeFramework(Framework, NamedTrees):
    """A model is a pytree, an Equinox module or a dict of arrays in it a layer. Nothing changes in place."""

    maps_batches = True
    side_by_side = True

    def find(self, model: Any) -> Iterator[tuple[Path, Any, dict[str, int]]]:
        """Yield modules with their fields, and dicts with their entries."""
        if isinstance(model, eqx.Module | dict):
            held = model if isinstance(model, dict) else vars(model)
            axes = {
                name: value.ndim
                for name, value in held.items()
                if isinstance(name, str) and eqx.is_array(value)
            }
            yield (), model, axes
        inside = jax.tree_util.tree_leaves_with_path(
            model, is_leaf=lambda node: node is not model and isinstance(node, eqx.Module | dict)
        )
        for path, part in inside:
            if isinstance(part, eqx.Module | dict):
                for rest, found, axes in self.find(part):
                    yield (*path, *rest), found, axes

    def path_name(self, path: Path) -> str:
        """Return a key path as it reads in code, for example ``blocks[0].lru``."""
        return jax.tree_util.keystr(path).lstrip(".") or "model"

    def scratch(self, model: Any) -> Any:
        """Return `model`, which no cut changes."""
        return model

    def like(self, arrays: Mapping[Any, Any], values: Mapping[Any, HostArray]) -> dict[Any, Any]:
        """Return arrays of JAX, rounded once on the host."""
        new = {}
        for name, value in values.items():
            array = arrays[name]
            real = value if is_complex_array(array) else value.real
            new[name] = jnp.asarray(np.asarray(real, dtype=array.dtype))
        return new

    def check_optimizer(self, model: Any, opt_state: Any, followers: Sequence[Any]) -> None:
        """Raise `OptimizerStateError` for an optimizer in place of its state, or an iterator.

        Whose state it is tells the structure of the model, by which its moments are read.
        """
        is_optimizer = callable(getattr(opt_state, "init", None)) or hasattr(
            opt_state, "param_groups"
        )
        if is_optimizer or isinstance(opt_state, Iterator):
            raise OptimizerStateError(
                f"`opt_state` is a {_checks.type_name(opt_state)}; expected the state of an optimizer of "
                "optax. Pass what its init(...) or its last update(...) returned."
            )

    def moments_of(
        self, model: Any, opt_state: Any, handles: Sequence[LayerHandle]
    ) -> list[Moment]:
        """Return what an optax state holds, found by the paths of the weights, with which its own end."""
        weights = {
            _path_of(handle, name): (handle.path, name)
            for handle in handles
            for name in handle.kind.shapes
        }
        own = _by_path(model)
        moments: list[Moment] = []
        for path, leaf in _by_path(opt_state).items():
            start = _start_of(path, own)
            if start is None:
                _check_unrelated(leaf, path, own)
            elif path[start:] in weights:
                prefix, weight = path[:start], path[start:]
                is_complex = np.iscomplexobj(own[weight])
                read = read_moment(_field_of(prefix), to_double(leaf), is_complex=is_complex)
                field, where = _field_in_torch(opt_state, prefix), self.path_name(prefix)
                moments.append(Moment(field, where, *weights[weight], path, *read))
        return moments

    def prepared(
        self,
        model: Any,
        changes: Sequence[LayerChange],
        opt_state: Any,
        moments: Mapping[Any, HostArray],
    ) -> Prepared:
        """Make copies with new layers and moments. Gradients of a pytree are another pytree.

        Numbers of states that are leaves follow by the ratio. Static fields belong to the structure of the
        tree, which an optimizer state shares: they stay as they are.
        """
        own = _by_path(model)
        weights = {
            _path_of(change.handle, name): value
            for change in changes
            for name, value in change.values.items()
        }
        new = self.like(own, weights)
        for change in changes:
            for name in change.handle.kind.sizes:
                path = (*change.handle.path, jax.tree_util.GetAttrKey(name))
                if type(own.get(path)) is int:
                    new[path] = round(own[path] * change.ratio)
        kept = self.like(_by_path(opt_state), moments)
        return Prepared(_replaced(model, new), _replaced(opt_state, kept))

    record = staticmethod(pytree_recording.record)
    evaluated = staticmethod(pytree_recording.evaluated)
    constant_losses = staticmethod(pytree_recording.constant_losses)
    outputs = staticmethod(pytree_matching.outputs)
    matched = staticmethod(pytree_matching.matched)

    def snapshot(self, model: Any, opt_state: Any, handles: Sequence[LayerHandle]) -> Snapshot:
        """Copy the arrays and numbers of both trees, safe from donated buffers."""
        return {"model": _leaves(model), "opt_state": _leaves(opt_state)}

    def prepared_back(
        self, model: Any, opt_state: Any, snapshot: Snapshot, handles: Sequence[LayerHandle]
    ) -> Prepared:
        """Make both trees with the leaves of a snapshot, on the devices of the present ones."""
        return Prepared(
            _restored(model, snapshot["model"], "model"),
            _restored(opt_state, snapshot["opt_state"], "opt_state"),
        )

    def named_trees(self, model: Any) -> NamedTrees:
        """The arrays of a pytree have names."""
        return self

    def saved_arrays(self, model: Any, saved: Any) -> dict[Path, Any]:
        """Return the leaves of `saved` by the names of their keys: one for each array of `model`.

        Raises
        ------
        ShapeError
            If a name is missing or left over, or what is under it no array with as many axes.
        """
        try:
            leaves = jax.tree_util.tree_leaves_with_path(
                saved, is_leaf=lambda node: isinstance(node, Iterator)
            )
        except (TypeError, ValueError) as error:
            raise ShapeError(
                f"`saved` is a {_checks.type_name(saved)} that is no pytree ({error}); expected dicts of "
                "arrays by name. Pass what Orbax restored."
            ) from error
        if [path for path, _ in leaves] == [()]:
            raise ShapeError(
                f"`saved` is a {_checks.type_name(saved)}; expected a report or a pytree of arrays. Read the "
                "file first, with json.load(file) or checkpointer.restore(path)."
            )
        given = {_names(path): leaf for path, leaf in leaves}
        own = {_names(path): (self.path_name(path), leaf) for path, leaf in _by_path(model).items()}
        missing = [
            name for key, (name, leaf) in own.items() if _is_array(leaf) and key not in given
        ]
        extra = [self.path_name(path) for path, _ in leaves if _names(path) not in own]
        if missing or extra:
            raise ShapeError(
                f"`saved` lacks {', '.join(missing[:4]) or 'nothing'} and has "
                f"{', '.join(extra[:4]) or 'nothing'} besides; expected the names of `model`. "
                "Build the model as it was."
            )
        for key, (name, leaf) in own.items():
            if _is_array(leaf) and not (_is_array(given[key]) and given[key].ndim == leaf.ndim):
                shape = f" of shape {given[key].shape}" if _is_array(given[key]) else ""
                raise ShapeError(
                    f"`{name}` of `saved` is a {_checks.type_name(given[key])}{shape}; expected an "
                    f"array with {leaf.ndim} axes. Build the model as it was."
                )
        return given

    def shapes_of_layer(
        self, given: Mapping[Path, Any], path: Path, names: Sequence[str]
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the named arrays of the layer at `path`."""
        return {name: given[(*_names(path), name)].shape for name in names}

    def with_arrays(self, model: Any, given: Mapping[Path, Any]) -> Any:
        """Return a copy of `model` whose arrays are those that `saved_arrays` returned.

        Raises
        ------
        ShapeError
            If the shape or the dtype of one differs.
        """

        def take(path: Path, leaf: Any) -> Any:
            if not _is_array(leaf):
                return leaf
            value = given[_names(path)]
            if (value.shape, value.dtype) != (leaf.shape, leaf.dtype):
                raise ShapeError(
                    f"`{self.path_name(path)}` of `saved` has shape {value.shape} and dtype {value.dtype}; "
                    f"expected {leaf.shape} and {leaf.dtype}. Build the model as it was."
                )
            return jnp.asarray(value) if isinstance(leaf, jax.Array) else np.array(value)

        return jax.tree_util.tree_map_with_path(take, model)


def _path_of(handle: LayerHandle, name: str) -> Path:
    """The path of a weight."""
    key = jax.tree_util.DictKey if isinstance(handle.layer, dict) else jax.tree_util.GetAttrKey
    return (*handle.path, key(name))


def _by_path(tree: Any) -> dict[Path, Any]:
    """The leaves of a tree."""
    return dict(jax.tree_util.tree_leaves_with_path(tree))


def _replaced(tree: Any, new: Mapping[Path, Any]) -> Any:
    """A tree with other leaves at some paths."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: new.get(path, leaf), tree)


def _start_of(path: Path, weights: Collection[Path]) -> int | None:
    """Where the path of a weight begins in the path of a leaf of an optimizer state."""
    return next((k for k in range(len(path)) if path[k:] in weights), None)


def _field_of(prefix: Path) -> str | None:
    """The field of a state that a path leads to before it goes on as the path of a weight."""
    names = [key.name for key in prefix if isinstance(key, jax.tree_util.GetAttrKey)]
    keys = [str(key.key) for key in prefix if isinstance(key, jax.tree_util.DictKey)]
    return (names or keys or [None])[-1]


_CENTRED = {"mu": "grad_avg", "nu": "square_avg"}
"""Fields of optax's centred RMSprop, which Adam has too, and their names in torch, which are its own."""


def _field_in_torch(opt_state: Any, prefix: Path) -> str | None:
    """The field of a state, as torch calls it where optax's name says too little."""
    field = _field_of(prefix)
    if field in _CENTRED and "RStdDev" in type(part_at(opt_state, prefix[:-1])).__name__:
        return _CENTRED[field]
    return field


_CONSTANTS = frozenset({"ns_coeffs"})
"""Fields of optax states that are numbers of the method: Muon's polynomial."""


def _check_unrelated(leaf: Any, path: Path, model: Mapping[Path, Any]) -> None:
    """Raise `OptimizerStateError` for an array of an optimizer state that is that of no weight."""
    if not (getattr(leaf, "ndim", 0) and np.issubdtype(to_host(leaf).dtype, np.inexact)):
        return
    if _field_of(path) in _CONSTANTS:
        return
    count = sum(array.size for array in model.values() if eqx.is_inexact_array(array))
    if leaf.shape == (count,):
        reason = (
            "joins all weights, as flatten(...) has it, so that a cut does not know its entries"
        )
    elif any(_start_of(path[:end], model) is not None for end in range(len(path))):
        reason = (
            "is a part of a moment only, a factor of it say, which does not say what the others are"
        )
    else:
        reason = "belongs to no weight of the model"
    raise OptimizerStateError(
        f"the optimizer state holds an array of shape {leaf.shape} at {PytreeFramework().path_name(path)} "
        f"that {reason}; expected moments with the structure of the model. Use Adam, AdamW, SGD, RMSprop or "
        "Lion, initialised from the model itself, or cut without the optimizer and start it anew."
    )


def _names(path: Path) -> Path:
    """The keys of a path as strings, the same for the field of a module and the key of a dict."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


_NUMBERS = bool | int | float | complex


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _leaves(tree: Any) -> dict[str, Any]:
    """Copies of the arrays on the host, and numbers, by name."""
    return {
        jax.tree_util.keystr(path): leaf if isinstance(leaf, _NUMBERS) else _on_host(leaf)
        for path, leaf in _by_path(tree).items()
        if _is_array(leaf) or isinstance(leaf, _NUMBERS)
    }


def _on_host(array: Any) -> HostArray:
    return np.array(jax.random.key_data(array) if _is_key(array) else array, subok=True)


def _kind(leaf: Any) -> Any:
    """What a cut leaves as it is."""
    return (leaf.dtype, leaf.ndim) if hasattr(leaf, "dtype") else None


def _restored(tree: Any, saved: dict[str, Any], what: str) -> Any:
    here = _leaves(tree)
    other = sorted(saved.keys() ^ here.keys()) + [
        name for name in here.keys() & saved.keys() if _kind(here[name]) != _kind(saved[name])
    ]
    if other:
        raise ShapeError(
            f"the snapshot from before the cut and `{what}` differ in {', '.join(other[:4])}; "
            f"expected the same leaves, dtypes and numbers of axes. Build `{what}` as it was."
        )

    def restore(path: Any, leaf: Any) -> Any:
        value = saved.get(jax.tree_util.keystr(path), leaf)
        if not isinstance(leaf, jax.Array):
            return value.copy() if isinstance(value, np.ndarray) else value
        if _is_key(leaf):
            return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
        return jax.device_put(value, leaf.sharding)

    return jax.tree_util.tree_map_with_path(restore, tree)
