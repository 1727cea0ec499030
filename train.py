"""The main job: `python train.py lora.rank=32`."""

import sys

from mlx_ft.interrupt import die_quietly

if __name__ == "__main__":
    die_quietly()
    from mlx_ft.main import main

    sys.exit(main())
