from __future__ import annotations

import ast
import inspect

import pytest

from edgekit.errors import DataError
from samples.docstrings import docstrings


def test_each_docstring_comes_once_from_every_place(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""Module."""\nclass A:\n    """Class."""\n    def f(self):\n        """Method."""\n'
    )
    (tmp_path / "b.py").write_text('async def g():\n    """Class."""\ndef h(): pass\n')
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/c.py").write_text('"""Left out."""')
    assert docstrings(tmp_path) == ["Module.", "Class.", "Method."]


def test_the_standard_library_has_many():
    found = docstrings()
    assert len(found) > 4000
    assert ast.__doc__ is not None
    assert inspect.cleandoc(ast.__doc__) in found


def test_a_folder_without_any_is_refused(tmp_path):
    with pytest.raises(DataError, match="no docstrings"):
        docstrings(tmp_path)
