"""`Framework`: where the arrays of layers live in a real object.

One final class for each: `TorchFramework` and `PytreeFramework` (Equinox, and dicts of JAX arrays);
`register_framework` adds others. A call resolves the layers of a model once, as
handles, and asks the framework about these alone.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ssmreduce._array_libraries import (
    Array,
    HostArray,
    from_host,
    is_complex_array,
    is_traced,
    namespace,
    to_double,
)
from ssmreduce._checks import type_name
from ssmreduce.errors import OptimizerStateError, UnsupportedLayerError
from ssmreduce.frameworks.handle import LayerChange, LayerHandle, Path
from ssmreduce.frameworks.moments import Moment
from ssmreduce.frameworks.recording import Recorded
from ssmreduce.frameworks.saved import NamedTrees, StateDicts
from ssmreduce.frameworks.transaction import Prepared

Snapshot = dict[str, Any]
"""A copy of one model, and of its optimizer state, in host memory: dicts, numbers and arrays alone."""


class Framework(ABC):
    """Where the arrays of layers live in a real object, and how they are replaced.

    Attributes
    ----------
    maps_batches : bool
        Whether models may take one sequence, and whoever runs them maps them over a batch.
    side_by_side : bool
        Whether `find` yields no arrays of objects inside of a layer with those of the layer.

    Notes
    -----
    Arguments that methods share:

    model : object
        A model of the framework, or a layer of it.
    layer : object
        An object that holds arrays of one layer.
    path : tuple
        Key path in the model, as `find` yields it.
    handles : sequence of LayerHandle
        Layers of the model.
    handle : LayerHandle
        One of them.
    opt_state : object or None
        The optimizer, or its state.
    followers : sequence of models
        Copies of the model that follow its cuts.
    run : callable
        Takes the model, and runs it on a batch.
    forward : callable
        ``forward(model, batch)`` returns the output of the model.
    batches : sequence
        Batches for `forward`.

    What a class has to have are the abstract methods; the others refuse, or do nothing.

    Examples
    --------
    >>> import torch
    >>> from ssmreduce.frameworks.current import framework_of
    >>> layer = torch.nn.Linear(2, 3)
    >>> framework = framework_of(layer)
    >>> framework.unwrapped(layer)
    (Linear(in_features=2, out_features=3, bias=True), {'weight': 2, 'bias': 1})
    >>> framework.on_host({"bias": layer.bias})["bias"].dtype
    dtype('float64')
    """

    maps_batches: bool = False
    side_by_side: bool = False

    # --- Layers and their arrays

    @abstractmethod
    def find(self, model: Any) -> Iterator[tuple[Path, Any, dict[str, int]]]:
        """Yield each part of a model that may be a layer, before the parts inside it.

        Yields
        ------
        path : tuple
            Key path; those of the parts inside begin with it.
        part : object
            What is there. It has its arrays as attributes, or is a mapping of them.
        axes : dict
            Names of the arrays that it holds itself, and their numbers of axes.
        """

    def path_name(self, path: Path) -> str:
        """Return a key path as it reads in code, ``model`` for the model itself."""
        return ".".join(map(str, path)) or "model"

    def unwrapped(self, layer: Any) -> tuple[Any, dict[str, int]]:
        """Return the only layer inside of wrappers that hold no array of their own, or `layer` itself, and
        the axes of its arrays as `find` yields them.
        """
        own = ((part, axes) for path, part, axes in self.find(layer) if not path)
        return next(own, (layer, {}))

    def on_host(self, arrays: Mapping[str, Array]) -> dict[str, HostArray]:
        """Return `arrays` at double precision on the host; tracers of JAX as they are."""
        return {name: x if is_traced(x) else to_double(x) for name, x in arrays.items()}

    def like(
        self, arrays: Mapping[str, Array], values: Mapping[str, HostArray]
    ) -> dict[str, Array]:
        """Return `values`, each in the library and dtype and on the device of that in `arrays`.

        Of a real array those are the real parts.
        """
        return {name: _like(arrays[name], value) for name, value in values.items()}

    def shares_weights(self, first: LayerHandle, second: LayerHandle) -> bool:
        """Tell whether two layers hold the same arrays, so that a change of one changes both.

        Parameters
        ----------
        first, second : LayerHandle
            The layers.

        Returns
        -------
        bool
            False where the framework cannot tell, as here.
        """
        return False

    # --- A cut

    def check_ready(self, model: Any, handles: Sequence[LayerHandle]) -> None:
        """Raise unless the arrays of the layers may be replaced now."""
        return None

    def check_optimizer(self, model: Any, opt_state: Any, followers: Sequence[Any]) -> None:
        """Raise `OptimizerStateError` unless `opt_state` can belong to `model`: here, unless it is None."""
        if opt_state is not None:
            raise OptimizerStateError(
                f"the optimizer is a {type_name(opt_state)}, but {type(self).__name__} knows of none; "
                "expected none. Cut the model alone, and start the optimizer anew."
            )

    def check_orders(self, model: Any, orders: Sequence[tuple[LayerHandle, int]]) -> None:
        """Raise `OrderError` unless layers that share one size in a config may have new orders.

        Parameters
        ----------
        model : object
            The model.
        orders : sequence of (LayerHandle, int)
            Those layers that change, of kinds with `config_sizes`, and their new numbers of states.
        """
        return None

    def moments_of(
        self, model: Any, opt_state: Any, handles: Sequence[LayerHandle]
    ) -> list[Moment]:
        """Return what an optimizer state holds for the weights of the layers.

        Raises
        ------
        OptimizerStateError
            If it holds what belongs to no weight, such as flattened or factored moments.
        """
        return []

    @abstractmethod
    def prepared(
        self,
        model: Any,
        changes: Sequence[LayerChange],
        opt_state: Any,
        moments: Mapping[Any, HostArray],
    ) -> Prepared:
        """Prepare new layers, with the gradients that they hold, and moments; nothing is changed yet.

        Where gradients are sharded, every rank has to call.

        Parameters
        ----------
        model : object
            The model.
        changes : sequence of LayerChange
            New arrays of each layer that is cut.
        opt_state : object or None
            The optimizer, or its state.
        moments : dict of arrays
            New moments, by the keys that `moments_of` returned.

        Returns
        -------
        Prepared
            The new model and optimizer state, or the same with the steps that change them in place.
        """

    # --- Runs of a model on data

    def record(
        self,
        model: Any,
        handles: Sequence[LayerHandle],
        run: Callable[[Any], Any],
        *,
        differentiates: bool,
        enough: int | None = None,
    ) -> dict[Path, list[Recorded]]:
        """Call `run` with the model, or a copy of it, and return the calls of each layer in it.

        The model is afterwards as before.

        Parameters
        ----------
        model : object
            The model.
        handles : sequence of LayerHandle
            Layers to record.
        run : callable
            Takes the model, and runs it on a batch.
        differentiates : bool
            Whether `run` returns a scalar, whose derivatives by the layers' outputs are recorded.
        enough : int, optional
            Once each layer was given so many sequences, the run may end; a framework need not
            make use of that.

        Returns
        -------
        dict of tuple to list of Recorded
            By key path of the layer.

        Raises
        ------
        UnsupportedLayerError
            If the framework records nothing, as here.
        """
        raise _no_runs(self, model)

    def differentiable(self) -> AbstractContextManager[Any]:
        """Return a context in which a user's loss may take derivatives of its own."""
        return nullcontext()

    def evaluated(self, model: Any, run: Callable[[Any], Any]) -> float:
        """Return the scalar of `run` with `model` in evaluation mode."""
        raise _no_runs(self, model)

    def constant_losses(
        self, model: Any, handles: Sequence[LayerHandle], run: Callable[[Any], Any]
    ) -> dict[str, float]:
        """Return what `run` returns if the model gives the same output for all sequences, by what
        that output is.

        Nothing where the framework cannot tell, as here.
        """
        return {}

    def outputs(
        self, model: Any, forward: Callable[[Any, Any], Any], batches: Sequence[Any]
    ) -> list[list[Any]]:
        """Return the floating-point arrays of ``forward(model, batch)`` in evaluation mode, by batch."""
        raise _no_runs(self, model)

    def matched(
        self,
        model: Any,
        handles: Sequence[LayerHandle],
        forward: Callable[[Any, Any], Any],
        batches: Sequence[Any],
        targets: Sequence[list[Any]],
        rates: Sequence[float],
    ) -> Any:
        """Train layers of a copy of a model to reproduce outputs, and return it.

        Adam descends the mean squared error over the weights of these layers alone, in evaluation
        mode.

        Parameters
        ----------
        model : object
            A copy, which may change.
        handles : sequence of LayerHandle
            The layers to train.
        forward : callable
            ``forward(model, batch)`` returns the output of the model.
        batches : sequence
            Batches for `forward`.
        targets : sequence of list of arrays
            What `outputs` returned for them.
        rates : sequence of float
            Learning rate of each step.

        Returns
        -------
        object
            The trained model.

        Raises
        ------
        UnsupportedLayerError
            If the framework does not train, as here.
        """
        raise _no_runs(self, model)

    def plain(self, model: Any) -> Any:
        """Return `model` without the wrappers of a distributed or compiled run."""
        return model

    def scratch(self, model: Any) -> Any:
        """Return a copy, which may be cut and run, of a plain `model`.

        It may be the model itself where cuts change nothing in place.
        """
        return copy.deepcopy(model)

    # --- Snapshots

    def snapshot(self, model: Any, opt_state: Any, handles: Sequence[LayerHandle]) -> Snapshot:
        """Copy every array to host memory; where several processes train the model, all have to
        call.

        The layers say what else depends on their orders. So that the state of a reducer can be
        saved and loaded again, a snapshot is ``{"model": {...}, "opt_state": {...}}``, in each
        arrays and numbers by name; any other is refused when it is taken.

        Raises
        ------
        UnsupportedLayerError
            If the framework takes none, as here.
        """
        raise _no_snapshots(self, model)

    def prepared_back(
        self, model: Any, opt_state: Any, snapshot: Snapshot, handles: Sequence[LayerHandle]
    ) -> Prepared:
        """Prepare the way back to a snapshot.

        Parameters
        ----------
        model : object
            The model as it is now.
        opt_state : object or None
            Its optimizer, or the state of that.
        snapshot : dict
            What `snapshot` returned.
        handles : sequence of LayerHandle
            Layers of the model.

        Returns
        -------
        Prepared
            As `prepared` returns it.

        Raises
        ------
        ShapeError
            If it is of another model or optimizer.
        UnsupportedLayerError
            If the framework takes no snapshots, as here.
        """
        raise _no_snapshots(self, model)

    # --- Several processes

    def team_of(self, model: Any) -> Any:
        """Return the processes that train `model`; None if it is one."""
        return None

    def gathered(self, model: Any, opt_state: Any, layers: Sequence[Any]) -> tuple[Any, Any]:
        """Return views of model and optimizer in which layers have full arrays; every rank has to
        call.

        Parameters
        ----------
        model : object
            The model.
        opt_state : object or None
            The optimizer, or its state.
        layers : sequence of objects
            What holds the arrays.

        Returns
        -------
        tuple
            Model and optimizer.
        """
        return model, opt_state

    def fields_of(self, opt_state: Any, handle: LayerHandle) -> dict[str, list[str]]:
        """Return the names of what an optimizer holds for each array of a layer."""
        return {}

    # --- Saved models

    def state_dicts(self, model: Any) -> StateDicts:
        """Return what loads state dicts into `model`; raise `UnsupportedLayerError` if nothing does."""
        raise UnsupportedLayerError(
            f"`model` is a {type_name(model)}; expected a torch.nn.Module. For a pytree call "
            "shaped_like(model, saved); a mapping has the shapes that it was saved with: take it as it is."
        )

    def named_trees(self, model: Any) -> NamedTrees:
        """Return what fills copies of `model` by name; raise `UnsupportedLayerError` if nothing does."""
        raise UnsupportedLayerError(
            f"`model` is a {type_name(model)}; expected a pytree of Equinox modules. A mapping of arrays has "
            "the shapes that it was saved with."
        )

    def take_sizes(self, model: Any, handles: Sequence[LayerHandle]) -> None:
        """Give fresh layers as many states as is recorded apart from the weights, in a config say."""
        return None

    def copies_inside(
        self, model: Any, opt_state: Any, handles: Sequence[LayerHandle]
    ) -> dict[Path, list[LayerHandle]]:
        """Return, by path of each layer that is a copy, the trained layers that it may be a copy of."""
        return {}


def _like(array: Array, value: HostArray) -> Array:
    real = value if is_complex_array(array) else value.real
    return namespace(array).astype(from_host(real, array), array.dtype)


def _no_runs(framework: Framework, model: Any) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"`model` is a {type_name(model)}, in which {type(framework).__name__} records nothing; expected a "
        "PyTorch or Equinox module. Record what goes into the layers, and pass "
        "Calibration.of_inputs({name: inputs})."
    )


def _no_snapshots(framework: Framework, model: Any) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"`model` is a {type_name(model)}, of which {type(framework).__name__} takes no snapshot; expected "
        "cuts that stand. Leave out the RollbackPolicy."
    )


def listed(names: Collection[str], most: int = 8) -> str:
    """Names for a message, the first few of many."""
    shown = list(names)[:most]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown) + more
