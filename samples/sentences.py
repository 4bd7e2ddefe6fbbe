"""English sentences with known structure: the documentation in the modules of packages that edgekit's extras bring.

Prose of the docstrings, freed of markup. One file in three is for evaluation and never trained on; what stands in both,
or among the sentences that the sample minilm calibrates on, is left out of training.
"""

from __future__ import annotations

import ast
import functools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edgekit.errors import MissingExtraError, UnknownNameError
from edgekit.zoo.minilm import sentences

# Of each package the parts whose documentation is prose; of transformers' models only the code, which repeats itself.
PACKAGES = {
    "numpy": ("*",),
    "scipy": ("*",),
    "sklearn": ("*",),
    "skimage": ("*",),
    "torch": ("nn", "optim", "distributions", "utils", "distributed", "ao", "fx", "autograd", "quantization"),
    "transformers": ("generation", "data", "pipelines", "utils", "integrations", "quantizers", "*.py"),
}
EXTRAS = {"sklearn": "samples", "skimage": "samples"}
SKIPPED = {"tests", "testing", "externals", "array_api_compat", "array_api_extra"}
WORDS = 5, 40
KINDS = ("neighbours", "summary", "title")
JUDGED_OF = 3
TITLE_WORDS = 3

_ROLE = re.compile(r":[\w:]+:`~?(?:[\w.]*\.)?([^`<]*?)(?:\s*<[^`]*>)?`")
_MARKUP = re.compile(r"`{1,2}~?([^`]*)`{1,2}_{0,2}|\*{1,2}([^*\s][^*]*)\*{1,2}")
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_HEADING = re.compile(r"^.*\n[ \t]*[-=~]{3,}[ \t]*$", re.MULTILINE)
_LISTED = re.compile(r"\s:\s|-{2}|TODO|Args:|Returns:|Raises:")
_PROSE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'\"()/\-]*[.!?]")


@dataclass(frozen=True)
class Pairs:
    """`first[i]` belongs to `second[i]` and to no other; no text stands twice."""

    first: tuple[str, ...]
    second: tuple[str, ...]

    def unrelated(self, seed: int = 0) -> tuple[str, ...]:
        """`second` in an order that leaves none at its place."""
        order = np.random.default_rng(seed).permutation(len(self.second))
        shifted = np.empty_like(order)
        shifted[order] = np.roll(order, 1)
        return tuple(self.second[place] for place in shifted)


@dataclass(frozen=True)
class _Entry:
    """A documented module, class or function: its name in words, its paragraphs as sentences (none where not prose)."""

    judged: bool
    title: str
    paragraphs: tuple[tuple[str, ...], ...]


def sentence_pairs(kind: str, count: int = 1000) -> Pairs:
    """Evaluation pairs, at most `count`: the same ones at every call.

    neighbours: two sentences that follow each other in one paragraph. summary: the first sentence of a docstring,
    and the next paragraph of it. title: the name in words ("incremental pca"), and the summary.
    Raises UnknownNameError for another kind, MissingExtraError where a package is missing.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of pairs", kind, KINDS)
    known = set(sentences())
    found = []
    for entry in _entries():
        if not entry.judged:
            continue
        for first, second in _related(kind, entry):
            if first not in known and second not in known and first != second:
                known |= {first, second}
                found.append((first, second))
    chosen = [found[place] for place in np.random.default_rng(0).permutation(len(found))[:count]]
    return Pairs(tuple(first for first, _ in chosen), tuple(second for _, second in chosen))


def _related(kind: str, entry: _Entry) -> Iterator[tuple[str, str]]:
    if kind == "neighbours":
        for paragraph in entry.paragraphs:
            yield from zip(paragraph[::2], paragraph[1::2], strict=False)
    elif kind == "title" and entry.paragraphs[0] and len(entry.title.split()) >= TITLE_WORDS:
        yield entry.title, entry.paragraphs[0][0]
    elif kind == "summary" and len(entry.paragraphs) > 1 and entry.paragraphs[0] and entry.paragraphs[1]:
        yield entry.paragraphs[0][0], " ".join(entry.paragraphs[1])


def training_sentences(count: int | None = None) -> tuple[str, ...]:
    """Sentences to distil on, in an order of chance that is the same at every call; all (thousands) where no `count`.

    None is in `sentence_pairs` or `edgekit.zoo.minilm.sentences`. Raises MissingExtraError where a package is missing.
    """
    every = _entries()
    judged = {text for entry in every if entry.judged for paragraph in entry.paragraphs for text in paragraph}
    left_out = judged | set(sentences())
    texts = (text for entry in every if not entry.judged for paragraph in entry.paragraphs for text in paragraph)
    found = [text for text in dict.fromkeys(texts) if text not in left_out]
    return tuple(found[place] for place in np.random.default_rng(0).permutation(len(found))[:count])


@functools.cache
def _entries() -> tuple[_Entry, ...]:
    found = []
    for package, parts in PACKAGES.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise MissingExtraError(package, EXTRAS.get(package, "export"), "the sentences' text")
        root = Path(spec.origin).parent
        for file in _modules(root, parts):
            judged = zlib.crc32(file.relative_to(root.parent).as_posix().encode()) % JUDGED_OF == 0
            found += [_Entry(judged, title, prose) for title, prose in _documented(file)]
    return tuple(found)


def _modules(root: Path, parts: tuple[str, ...]) -> list[Path]:
    files = {
        file
        for part in parts
        for place in root.glob(part)
        for file in ([place] if place.is_file() else place.rglob("*"))
    }
    return sorted(file for file in files if file.suffix == ".py" and not SKIPPED & set(file.relative_to(root).parts))


def _documented(file: Path) -> Iterator[tuple[str, tuple[tuple[str, ...], ...]]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node)
            if text:
                blocks = re.split(r"\n\s*\n", _HEADING.sub("\n", text))
                prose = tuple(prose_sentences(block) for block in blocks)
                yield words(file.stem if isinstance(node, ast.Module) else node.name), prose


def words(name: str) -> str:
    """`IncrementalPCA` and `incremental_pca` -> "incremental pca"."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+", " ", name)
    return " ".join(apart.lower().split())


def prose_sentences(block: str) -> tuple[str, ...]:
    """The sentences of one paragraph of a docstring without its markup; empty where any part of it is not prose."""
    if _LISTED.search(block):
        return ()
    text = _MARKUP.sub(lambda match: match.group(1) or match.group(2) or "", _ROLE.sub(r"\1", block))
    found = tuple(" ".join(sentence.split()) for sentence in _END.split(text.strip()))
    whole = all(_PROSE.fullmatch(one) and WORDS[0] <= len(one.split()) <= WORDS[1] for one in found)
    return found if whole else ()
