"""From a part's program to what runs: the package in the cache, a new one that passed its check, or the eager graph."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch
from torch.fx import GraphModule

from edgekit.errors import EdgekitError, SessionError
from edgekit.runtimes.torch_engine.check import Truth, program_graph
from edgekit.runtimes.torch_engine.compiled import (
    Package,
    Target,
    Workshop,
    compile_graph,
    find_package,
    missing_tools,
)
from edgekit.runtimes.torch_engine.precision import in_precision
from edgekit.runtimes.torch_engine.program import load_program
from edgekit.runtimes.torch_engine.runner import CompiledRunner, EagerRunner, Runner

logger = logging.getLogger("edgekit")


def find_runner(path: Path, sha256: str, target: Target, cache: Path, *, compiles: bool) -> Runner:
    """A runner of the program at `path`, nothing on its device yet. Where it should be compiled and is not, a warning
    says why.

    Raises SessionError, NumericsError where the precision overflows, MissingExtraError where it needs kernels.
    """
    if target.precision in ("int8", "w4a16"):
        import edgekit.runtimes.torch_engine.ops  # noqa: F401 - compiled code finds the operators by name
    eager = partial(EagerRunner, partial(_graph, path, target.precision), target.device)
    key = target.key(sha256)
    known = find_package(cache, key)
    if not compiles:
        return _checked(path, target, eager())
    if known is None:
        known = _make(path, target, cache, key)
    if not known.trouble:
        try:
            return _opened(known, target)
        except RuntimeError as error:
            logger.info("the package of %s is made anew: %s", path.name, error)
            known = _make(path, target, cache, key, replace=True)
            if not known.trouble:
                return _opened(known, target)
    logger.warning("%s runs eager on %s, not compiled: %s", path.name, target.device, known.trouble)
    return _checked(path, target, eager())


def _graph(path: Path, precision: str) -> GraphModule:
    return in_precision(program_graph(load_program(path)), precision)[0]


def _opened(package: Package, target: Target) -> Runner:
    """Raises RuntimeError for a package that does not load."""
    runner = CompiledRunner(package, target.device)
    runner.upload()
    runner.evict()
    return runner


def _checked(path: Path, target: Target, runner: Runner) -> Runner:
    """Raises NumericsError where the precision overflows, SessionError where the GPU's eager answers are not the
    processor's: there is nothing left to fall back to."""
    program = load_program(path)
    graph, _ = in_precision(program_graph(program), target.precision)
    truth = Truth.of(program, graph, target.precision)
    if target.device.type != "cpu":
        reason = _disagreement(runner, truth, target)
        if reason:
            raise SessionError(
                f"{path.name} on {target.device} does not give the processor's answers: {reason}",
                hint="check driver and GPU (nvidia-smi), or take --device cpu",
            )
    return runner


def _make(path: Path, target: Target, cache: Path, key: str, *, replace: bool = False) -> Package:
    """Compiled, compared and kept. What was found wrong with the code is kept too; what is wrong with this machine
    (no compiler, a full disk or GPU) is not, for it may be mended."""
    missing = missing_tools(target)
    program = load_program(path)
    graph, quantized = in_precision(program_graph(program), target.precision)
    truth = Truth.of(program, graph, target.precision)
    told = f", {quantized} products quantized" if quantized else ""
    logger.info("%s in %s: %.1f dB from float64 on random inputs%s", path.name, target.precision, truth.sqnr_db, told)
    if missing:
        return Package(cache, missing)
    workshop: Workshop | None = None
    try:
        workshop = Workshop(cache, key, replace=replace)
        compile_graph(program, graph, truth, target, workshop.folder)
        return workshop.publish(_trouble(Package(workshop.folder), truth, target))
    except EdgekitError:
        raise
    except OSError as error:
        return Package(cache, f"the cache {cache} cannot be written ({error.strerror}; EDGEKIT_CACHE names another)")
    except Exception as error:  # inductor raises its own, the compiler's and torch's errors, out of memory among them
        return Package(cache, f"compiling failed: {type(error).__name__}: {_first_line(error)}")
    finally:
        if workshop is not None:
            workshop.discard()


def _trouble(package: Package, truth: Truth, target: Target) -> str:
    """Why the compiled code must not be used, or ""."""
    reason = _disagreement(CompiledRunner(package, target.device), truth, target)
    return f"the compiled code failed its check: {reason}" if reason else ""


def _disagreement(runner: Runner, truth: Truth, target: Target) -> str:
    runner.upload()
    with torch.no_grad():
        found = runner.run([value.to(target.device) for value in truth.inputs])
    runner.evict()
    return truth.disagreement([value.cpu() for value in found])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else ""
