"""package.module:callable -> Model. The callable gives a module, a module and its example inputs, or a Model."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from edgekit.digests import digest_module
from edgekit.errors import EdgekitError, SourceError
from edgekit.model import Model, Source
from edgekit.sources.modules import from_module, slug


def from_callable(reference: str, example_inputs: Any = None) -> Model:
    """`example_inputs`, where given, replaces what the callable returns. Raises SourceError."""
    module_name, _, attribute = reference.partition(":")
    built = _call(_attribute(_import(module_name), attribute), reference)
    if isinstance(built, Model):
        return built
    if isinstance(built, tuple):
        if len(built) != 2:
            raise SourceError(
                f"{reference} returns a tuple of {len(built)}, allowed (module, example_inputs)",
                hint="example_inputs is a tensor, a tuple of tensors or a dict by name",
            )
        built, returned = built
        example_inputs = returned if example_inputs is None else example_inputs
    if not isinstance(built, nn.Module):
        raise SourceError(
            f"{reference} gives a {type(built).__name__}, allowed a torch.nn.Module",
            hint="return a module, (module, example_inputs), or an edgekit.Model",
        )
    source = Source("callable", reference, digest_module(built))
    return from_module(built, example_inputs, name=slug(type(built).__name__), source=source)


def _import(name: str) -> ModuleType:
    """The working directory counts, as it does for `python -m`."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            near = _nearest_module(name)
            hint = f"did you mean {near!r}? " if near else ""
            raise SourceError(
                f"there is no module {error.name!r}", hint=f"{hint}run from the folder that holds it, or install it"
            ) from error
        raise SourceError(
            f"importing {name} needs {error.name!r}, which is not installed", hint=f"pip install {error.name}"
        ) from error
    except Exception as error:  # a module's own code may raise anything
        raise SourceError(
            f"importing {name} fails: {type(error).__name__}: {error}", hint=f'python -c "import {name}" shows where'
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def _nearest_module(name: str) -> str | None:
    """A module beside the one that was meant, of nearly the same name."""
    parent, _, last = name.rpartition(".")
    folders = [Path.cwd()]
    if parent:
        try:
            folders = [Path(entry) for entry in importlib.import_module(parent).__path__]
        except (ImportError, AttributeError):
            return None
    known = {
        item.stem
        for folder in folders
        for item in folder.iterdir()
        if item.suffix == ".py" or (item / "__init__.py").exists()
    }
    near = difflib.get_close_matches(last, known, n=1)
    return ".".join(filter(None, (parent, near[0]))) if near else None


def _attribute(module: ModuleType, path: str) -> Any:
    value: Any = module
    for part in path.split(".") if path else [""]:
        if not hasattr(value, part):
            known = [name for name in dir(value) if not name.startswith("_")]
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            callables = [name for name in known if callable(getattr(value, name, None))]
            raise SourceError(
                f"{module.__name__} has no attribute {part!r}", hint=f"{hint}callables: {', '.join(callables[:12])}"
            )
        value = getattr(value, part)
    return value


def _call(value: Any, reference: str) -> Any:
    if isinstance(value, nn.Module | Model) or not callable(value):
        return value
    try:
        return value()
    except EdgekitError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise SourceError(
            f"{reference} fails: {type(error).__name__}: {error}", hint="it is called without arguments"
        ) from error
