"""A local web page to try a trained run: generate, interpolate, predict, reconstruct, translate."""

from mtgen.explore.serve import serve_page

__all__ = ["serve_page"]
