"""``python -m pyconv`` is ``pyconv``."""

import sys

from pyconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
