"""`python -m forebay` is the `forebay` command."""

import sys

from forebay._cli import main

if __name__ == "__main__":  # pragma: no branch -- nobody imports it
    sys.exit(main())
