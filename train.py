"""The main job: `python train.py lora.rank=32`."""

import sys

from mlx_ft.main import main

if __name__ == "__main__":
    sys.exit(main())
