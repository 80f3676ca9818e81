"""Several processes that train or predict together, started by ``mpiexec`` or ``srun``."""

from xpcnn.parallel.group import Group, launched, share, world

__all__ = ["Group", "launched", "share", "world"]
