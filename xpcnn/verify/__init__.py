"""Parity: every op on any backend, against its definition and the definition's derivative.

``xpcnn verify`` runs it and writes a certificate. Errors are relative to the largest value (absolute below 1).
"""

from xpcnn.verify.cases import DRAWERS
from xpcnn.verify.check import TOLERANCE
from xpcnn.verify.report import Row, certificate, measure

OPS = tuple(DRAWERS)

__all__ = ["OPS", "TOLERANCE", "Row", "certificate", "measure"]
