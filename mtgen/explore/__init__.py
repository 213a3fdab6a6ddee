"""A page on loopback to try a trained run with: draw by any condition, lead from one image to another, read, reconstruct, translate."""

from mtgen.explore.serve import serve_page

__all__ = ["serve_page"]
