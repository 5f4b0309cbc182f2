"""Find the layers of a model that can be cut."""

from __future__ import annotations

from typing import Any

from ssmreduce import _checks
from ssmreduce.adapters.change import Path
from ssmreduce.adapters.registry import is_reducible, is_supported, known_names, model_backend
from ssmreduce.errors import OrderError, UnsupportedLayerError
from ssmreduce.models.options import CutOptions, plain_name


def find_layers(model: Any, options: CutOptions) -> list[tuple[Path, Any]]:
    """Return key path and object of every supported layer of a model that is not excluded.

    Raises
    ------
    UnsupportedLayerError
        If there is none, or, unless they are skipped, a variant of a known layer that cannot be reduced.
    """
    backend = model_backend(model)
    refused = refused_layers(model, options)
    if refused and not options.skip_unsupported:
        name, why = next(iter(refused.items()))
        raise UnsupportedLayerError(f"while looking at layer `{name}`: {why}")
    known = list(backend.find_layers(model, is_reducible))
    found = [entry for entry in known if not options.excludes(backend.path_name(entry[0]))]
    if found:
        return found
    if refused:
        reasons = "; ".join(f"`{name}`: {why}" for name, why in refused.items())
        raise UnsupportedLayerError(
            f"`model` has no layer that can be reduced; expected at least one. Passed over: {reasons}"
        )
    if known:
        raise UnsupportedLayerError(
            f"`exclude` names all {len(known)} layers of `model` that can be reduced; expected one that is "
            "left. Exclude fewer."
        )
    raise UnsupportedLayerError(
        f"`model` is a {_checks.type_name(model)} without a supported layer; expected modules with the "
        f"arrays of one of: {known_names()}. Bind your layer's class with register_layer(...)."
    )


def refused_layers(model: Any, options: CutOptions) -> dict[str, str]:
    """Return the variants of known layers that cannot be reduced: name in the model and reason.

    What is inside of a supported layer is its own business.
    """
    reasons: dict[int, str] = {}

    def is_known(candidate: object) -> bool:
        try:
            return is_supported(candidate)
        except UnsupportedLayerError as error:
            reasons[id(candidate)] = str(error)
            return True

    backend = model_backend(model)
    named = {backend.path_name(path): layer for path, layer in backend.find_layers(model, is_known)}
    return {
        name: reasons[id(layer)]
        for name, layer in named.items()
        if id(layer) in reasons and not options.excludes(name)
    }


def check_excluded(model: Any, options: CutOptions) -> None:
    """Raise `OrderError` if a name to exclude is that of no layer of `model`."""
    if callable(options.exclude) or not options.exclude:
        return
    backend = model_backend(model)
    everything = CutOptions(skip_unsupported=True)
    names = [backend.path_name(path) for path, _ in backend.find_layers(model, is_reducible)]
    names += refused_layers(model, everything)
    plain = {plain_name(name) for name in names}
    unknown = [name for name in options.exclude if plain_name(name) not in plain]
    if unknown:
        raise OrderError(
            f"`exclude` names {', '.join(unknown)}, but the layers are {', '.join(names)}; expected some of "
            "these. Leave out what is no layer."
        )
