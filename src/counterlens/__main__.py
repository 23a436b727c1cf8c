"""`python -m counterlens` is the same as the `counterlens` command."""

import sys

from counterlens.cli import main

if __name__ == "__main__":
    sys.exit(main())
