"""Several processes that train or predict together, started by ``mpiexec`` or ``srun``."""

from xpcnn.parallel.group import Group, check_alike, launched, share, world

__all__ = ["Group", "check_alike", "launched", "share", "world"]
