"""``python -m xpcnn``."""

import sys

from xpcnn.cli import main

sys.exit(main())
