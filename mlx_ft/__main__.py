"""`python -m mlx_ft`: the command `mlx-ft` where its script is not on the path."""

import sys

from mlx_ft.cli import main

if __name__ == "__main__":
    sys.exit(main())
