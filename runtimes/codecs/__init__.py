"""Codecs: how a feature crosses a link. numpy, constriction and zstandard only; the same bytes on every processor."""
