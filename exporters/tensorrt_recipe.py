"""What goes beside an ONNX file for a Jetson: how to build the engine there, three ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

from edgekit.exporters.tensorrt_rules import Parser, Profile
from edgekit.runtimes.onnx_session import settings_path

WORKSPACE_MIB = 1024

_SHELL = Template("""\
#!/bin/sh
# Builds the TensorRT engine of $name on the Jetson itself: an engine fits one GPU and one TensorRT only.
# Made for TensorRT $release or newer. Usage: sh $script [ENGINE]
set -eu
here=$$(cd "$$(dirname "$$0")" && pwd)
engine=$${1:-"$$here/$stem.engine"}
trtexec=$$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
exec "$$trtexec" \\
$flags
""")

_PYTHON = Template('''\
"""Builds the TensorRT engine of $name on the Jetson itself: an engine fits one GPU and one TensorRT only.

Needs the tensorrt Python package that JetPack brings (8.2 to 10). Usage: python3 $script [ENGINE]
"""

import sys
from pathlib import Path

import tensorrt as trt

HERE = Path(__file__).resolve().parent
ONNX = HERE / "$onnx"
PRECISIONS = $precisions
PROFILES = $profiles
WORKSPACE_BYTES = $workspace << 20


def parse(builder, logger):
    flags = 0
    if int(trt.__version__.split(".")[0]) < 10:  # from 10 on every network has an explicit batch
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(ONNX.read_bytes()):
        raise SystemExit("\\n".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
    return network, parser


def configure(builder, cache_path):
    config = builder.create_builder_config()
    if hasattr(config, "set_memory_pool_limit"):  # since 8.4
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    else:
        config.max_workspace_size = WORKSPACE_BYTES
    for precision in PRECISIONS:
        config.set_flag(getattr(trt.BuilderFlag, precision))
    if PROFILES:
        profile = builder.create_optimization_profile()
        for name, (smallest, best, largest) in PROFILES.items():
            profile.set_shape(name, smallest, best, largest)
        config.add_optimization_profile(profile)
    cache = config.create_timing_cache(cache_path.read_bytes() if cache_path.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return config


def main():
    engine_path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "$stem.engine"
    cache_path = engine_path.with_suffix(".timing")
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network, parser = parse(builder, logger)
    config = configure(builder, cache_path)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise SystemExit("TensorRT built no engine; its messages stand above")
    engine_path.write_bytes(bytes(engine))
    cache_path.write_bytes(bytes(config.get_timing_cache().serialize()))
    print(f"{engine_path}: {engine_path.stat().st_size} bytes, TensorRT {trt.__version__}")


if __name__ == "__main__":
    main()
''')


def write_recipe(
    artifact: Path, name: str, precision: str, parser: Parser, profiles: Mapping[str, Profile]
) -> tuple[Path, ...]:
    """`STEM-build_engine.sh`, `STEM-build_engine.py` and `STEM-ort_tensorrt.json` beside `artifact`."""
    shell = artifact.with_name(f"{artifact.stem}-build_engine.sh")
    script = artifact.with_name(f"{artifact.stem}-build_engine.py")
    settings = settings_path(artifact)
    flags = " \\\n".join(f"  {flag}" for flag in trtexec_flags(artifact, precision, parser, profiles))
    shell.write_text(
        _SHELL.substitute(name=name, release=parser.release, script=shell.name, stem=artifact.stem, flags=flags),
        encoding="utf-8",
    )
    script.write_text(
        _PYTHON.substitute(
            name=name,
            script=script.name,
            onnx=artifact.name,
            stem=artifact.stem,
            precisions=repr(_flags(precision)),
            profiles=repr({key: (p.minimum, p.optimum, p.maximum) for key, p in profiles.items()}),
            workspace=WORKSPACE_MIB,
        ),
        encoding="utf-8",
    )
    table = {"provider": "TensorrtExecutionProvider", "provider_options": provider_options(precision, profiles)}
    settings.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return shell, script, settings


def trtexec_flags(artifact: Path, precision: str, parser: Parser, profiles: Mapping[str, Profile]) -> list[str]:
    """trtexec builds, times and saves. --memPoolSize came with 8.4 and replaced --workspace, both in MiB."""
    workspace = (
        f"--workspace={WORKSPACE_MIB}" if parser.release == "8.2" else f"--memPoolSize=workspace:{WORKSPACE_MIB}"
    )
    flags = [
        f'--onnx="$here/{artifact.name}"',
        '--saveEngine="$engine"',
        *(f"--{flag.lower()}" for flag in _flags(precision)),
        workspace,
        '--timingCacheFile="${engine%.engine}.timing"',
    ]
    for kind, shapes in _shape_lists(profiles).items():
        flags.append(f"--{kind}Shapes={shapes}")
    return flags


def provider_options(precision: str, profiles: Mapping[str, Profile]) -> dict[str, str]:
    """Of ONNX Runtime's TensorRT provider; folders are relative, a session puts them where it keeps caches."""
    flags = _flags(precision)
    options = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "tensorrt-cache",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": "tensorrt-cache",
        "trt_max_workspace_size": str(WORKSPACE_MIB << 20),
        "trt_fp16_enable": str("FP16" in flags),
        "trt_int8_enable": str("INT8" in flags),
    }
    return options | {f"trt_profile_{kind}_shapes": shapes for kind, shapes in _shape_lists(profiles).items()}


def _flags(precision: str) -> tuple[str, ...]:
    """int8 is explicit in the graph; FP16 beside it lets the float layers run in half."""
    return {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}[precision]


def _shape_lists(profiles: Mapping[str, Profile]) -> dict[str, str]:
    if not profiles:
        return {}
    columns = {"min": "minimum", "opt": "optimum", "max": "maximum"}
    return {
        kind: ",".join(f"{name}:{'x'.join(map(str, getattr(p, column)))}" for name, p in profiles.items())
        for kind, column in columns.items()
    }
