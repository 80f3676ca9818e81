"""A small local page to look at a model with: draw or drop a picture, see what the network makes of it."""

from xpcnn.serve.looking import Looking
from xpcnn.serve.server import PageServer

__all__ = ["Looking", "PageServer"]
