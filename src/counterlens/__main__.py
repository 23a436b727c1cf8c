"""`python -m counterlens` is the same as the `counterlens` command."""

from counterlens.cli import main

if __name__ == "__main__":
    main()
