"""`python -m app` is `chorus`, for where the console script is not at hand."""

import sys

from app.cli import main

if __name__ == "__main__":
    sys.exit(main())
