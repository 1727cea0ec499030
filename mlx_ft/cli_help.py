"""What `mlx-ft --help` and the help of its commands say."""

from __future__ import annotations

DESCRIPTION = "Fine-tune language models with MLX as experiments."
EXAMPLES = """\
examples:
  mlx-ft train lora.rank=32              train; the same as python train.py lora.rank=32
  mlx-ft quick org/model my_rows.jsonl   the shortest way to a run on your own model and data
  mlx-ft generate "How big is Chad?"     ask the newest run's model
  mlx-ft evaluate --run outputs/runs/X   its figures again, from the saved adapter alone
  mlx-ft ui                              look at all runs in MLflow

exit codes: 0 done, 1 failed while running, 2 a mistake in what was given, 130 and 143 interrupted.
Each command has a page of its own: mlx-ft quick --help
"""
MODEL_ACTIONS = {
    "list": "recipes, downloaded models and converted copies",
    "show": "one model in detail",
    "download": "fetch a model, with progress; continues where it stopped",
    "remove": "delete a downloaded or converted model",
}
QUICK = """\
8 steps: enough to see that model and data go together. The same as mlx-ft train
experiment=quick model.path=MODEL data=custom data.path=DATA, and like there any key=value
argument can follow. For the whole training leave out experiment=quick.

examples:
  mlx-ft quick embedded                                    the built-in model and rows
  mlx-ft quick embedded my_rows.jsonl tracking=none        your rows, without MLflow
  mlx-ft quick mistralai/Mistral-7B-Instruct-v0.3 my_rows.jsonl train.max_steps=20
"""
GENERATE = """\
examples:
  mlx-ft generate "Which countries border Chad?"           the newest run's model
  mlx-ft generate --base "Which countries border Chad?"    without what it learned
  mlx-ft generate --run outputs/runs/X - < question.txt
"""
EVALUATE = """\
Loads the base model, puts the adapter on, and measures validation loss and the answers to the
test questions as the training did at its end. Writes nothing.

examples:
  mlx-ft evaluate                                          the newest run
  mlx-ft evaluate --run outputs/runs/X --json
  mlx-ft evaluate --base                                   the base model, to compare
"""
MODELS = """\
examples:
  mlx-ft models list
  mlx-ft models download mistral_7b_v03                    a recipe, or a hub name
"""
UI = """\
examples:
  mlx-ft ui                                                the runs of mlruns/ in this folder
  mlx-ft ui --port 5001 paths.tracking_dir=elsewhere/mlruns
"""
