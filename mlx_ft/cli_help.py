"""What `mlx-ft --help` and the help of its commands say."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DESCRIPTION = "Fine-tune language models with MLX as experiments."
EXAMPLES = """\
examples:
  mlx-ft train lora.rank=32              train; the same as python train.py lora.rank=32
  mlx-ft quick org/model my_rows.jsonl   the shortest way to a run on your own model and data
  mlx-ft generate "How big is Chad?"     ask the newest run's model
  mlx-ft chat                            talk to it; /compare shows the base beside it
  mlx-ft evaluate --against base         its figures again, beside those of the base
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
  mlx-ft generate --run my/adapter --model embedded "..."  an adapter without its run
"""
CHAT = """\
Lines that begin with / are commands: /adapter RUN or base, /compare, /system TEXT, /undo, /new,
/save FILE.jsonl, /help, /quit. Ctrl-C stops an answer, Ctrl-D ends the chat. Questions from a file
or pipe, one a line, are answered one after the other; the exit code is 1 if one could not be.

examples:
  mlx-ft chat                                              the newest run's model
  mlx-ft chat --run models:/NAME@ALIAS --temperature 0.7
  mlx-ft chat --run my/adapter --model embedded < questions.txt
"""
EVALUATE = """\
Loads the base model, puts the adapter on, and measures validation loss and the answers to the
test questions as the training did at its end; or on other rows, by other metrics, beside another
model. Each metric comes with its 95% interval, a difference also with its p. Writes nothing but
what --csv and --log ask for, and the answers where a metric of your own fails on one.

examples:
  mlx-ft evaluate                                          the newest run, on its own test rows
  mlx-ft evaluate --against base                           what it has learned, and what it lost
  mlx-ft evaluate --run outputs/runs/X --against outputs/runs/Y --log
  mlx-ft evaluate --data rows.jsonl --metric normalised_match --metric contains --csv answers.csv
  mlx-ft evaluate --data rows.jsonl --metric-from my_metrics.py:score
  mlx-ft evaluate --base                                   the base model alone
  mlx-ft evaluate --tasks arc_easy,hellaswag --rows 100 --against base
"""
# Of each option its value's name and its help.
EVALUATE_OPTIONS = {
    "against": ("base|RUN", "judge the base, or another run's model, on the same rows, too"),
    "data": ("FILE", "rows to judge on, as data.path takes them; default: the run's own"),
    "metric": ("NAME", "exact_match, normalised_match, contains, contains_answer, json_valid, "
                       "sql_execution or python_tests; may be repeated; default: the run's"),
    "metric_from": ("FILE.py:FUNCTION", "a function (prediction, reference, fields) -> bool or "
                                        "number of your own; the file's code is run"),
    "database": ("NAME", "of sql_execution: builtin:NAME or an SQLite file; default: the run's"),
    "rows": ("N", "rows used at most; with --tasks, questions of each"),
    "max_tokens": ("N", "of an answer; default: a quarter more than the longest expected one"),
    "show": ("N", "answers shown for which two models differ; default: 6"),
    "json": (None, "print one JSON object, with all answers"),
    "csv": ("FILE.csv", "write a line for each answer"),
    "log": (None, "log the figures to the run in MLflow; to a new one if it was not tracked"),
    "tasks": ("NAME,...", "standard tasks of lm-eval, which downloads them (extra: lm-eval)"),
    "shots": ("N", "examples in a prompt of --tasks; default: the task's"),
}  # fmt: skip
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
VALIDATE = """\
Look at every row of the data as training would: kept, truncated or rejected, with line and reason;
tokens, targets, repeats, rows that training and validation share; what to mend, and what it takes.

  mlx-ft validate rows.jsonl                               a file or a folder of your own
  mlx-ft validate principles                               a built-in dataset
  mlx-ft validate rows.jsonl data.max_errors=5% --out report
  mlx-ft validate data=custom data.path=rows.jsonl         in full; so train takes it, too

Settings are those of `mlx-ft train`. Writes report.json, report.png and, where rows are rejected,
quarantine.jsonl. Mend it and train on both, leaving the rows that are still faulty in the first
file out: 'data.path=[rows.jsonl,mended.jsonl]' data.max_errors=5%
"""
CONVERT = """\
Write rows of another format. OUT's name says the kind of file: .jsonl, .json, .csv, .tsv or
.parquet, each also with .gz or .zst. What the format has no place for is counted and said; rows
that it cannot express are left out and said, and the exit code is then 1.

  mlx-ft data convert chats.json rows.jsonl --to messages
  mlx-ft data convert rows.jsonl alpaca.csv.gz --to alpaca
"""
DOCUMENTS = """\
Make rows to train on from documents: by rules, not by a model. Every answer stands in the
documents; what no rule is sure of is left out and counted.

reads    Markdown, reStructuredText, text, HTML, PDF, Word (.docx), Python files and a Chroma
         collection; other source code as raw text
writes   FOLDER/train.jsonl, valid.jsonl, test.jsonl    questions with their answers, as chats
         FOLDER/chunks.jsonl, chunks_valid.jsonl, ...   raw text, for continued training
         FOLDER/report.json                             what was made of each file, and what not
kinds    definition, question, list, summary, text_to_code, code_to_text, function

examples:
  mlx-ft data from-documents docs --out data/manual --subject "My Project"
  mlx-ft validate data/manual
  mlx-ft train data=custom data.path=data/manual

All about it: docs/documents.md
"""
# Of each option its value's name and its help.
DOCUMENTS_OPTIONS = {
    "source": ("SOURCE", "a folder, one file, or chroma:PATH/COLLECTION"),
    "out": ("FOLDER", "where the rows go: a new or empty folder, or an earlier result's (needed)"),
    "subject": ("TEXT", 'what the documents are about, e.g. "Flask": the questions name it; '
                        "default: they name the page"),
    "valid_fraction": ("SHARE", "of the rows, for validation; default: %(default)s"),
    "test_fraction": ("SHARE", "of the rows, for the test; default: %(default)s"),
    "seed": ("N", "chooses the sections of validation and test; default: %(default)s"),
    "min_quality": ("SCORE", "leave out rows below it, from 0 to 1; default: %(default)s"),
    "kinds": ("LIST", "kinds of rows to make, with commas between; default: all"),
    "chunk_words": ("N", "most words of a raw text; 0: none are made; default: %(default)s"),
    "max_file_bytes": ("N", "leave out larger files; default: %(default)s"),
    "overwrite": (None, "replace an earlier result; default: it is left alone"),
}  # fmt: skip

RESUME = """\
The run's own configuration is taken, from its folder. What only makes it longer may be given:
  mlx-ft resume outputs/runs/2026-01-31_12-00-00
  mlx-ft resume outputs/runs/2026-01-31_12-00-00 train.max_steps=500
  mlx-ft resume outputs/runs/2026-01-31_12-00-00/checkpoints/step-000050
A damaged checkpoint is set aside and the one before it is taken. What would make it another run
is refused, with the list; train.resume_allow=[KEY] insists.
"""
RUNS = """\
Every run folder below FOLDER, those of sweeps too, with how it ended and its figures. Keys are
those of the configuration (lora.rank) and of summary.json (val_loss_after).

examples:
  mlx-ft runs --columns lora.rank,optimizer.learning_rate --sort val_loss_after
  mlx-ft runs --where lora.rank=16 --where 'accuracy_after>0.5'
  mlx-ft runs outputs/sweeps/mine --csv > runs.csv
"""
REPORT = """\
Which setting is best, whether that is more than luck, and what it hangs on. Prints tables and
writes report.html (figures, answers, everything in one file), trials.csv, trials.md and best.yaml,
the best configuration to run again. A sweep writes the same when it ends.

examples:
  mlx-ft report                                            the newest sweep
  mlx-ft report outputs/sweeps/mine --metric accuracy_after
  mlx-ft report outputs/runs/A outputs/runs/B 7955e3cb     runs, by folder or MLflow's id
  mlx-ft report --query "metrics.val_loss_after < 0.4 and params.`lora.rank` = '16'"
"""
FUSE = """\
The adapter is worked into its base, which is dequantized first: rounding to 4 bits again loses most
of a small update. What was written is read back and held against base and adapter as they were
trained, on validation rows of the run: the loss, and the largest difference of logits. Past the
tolerance nothing is written.

examples:
  mlx-ft fuse --out fused                                  the newest run
  mlx-ft fuse outputs/runs/X --out fused_8 --quantize 8
  mlx_lm.generate --model fused --prompt "Which countries border Chad?"
"""
EXPORT = """\
targets:
  peft     the adapter, for PEFT and whatever reads its files
  mlx      the adapter, for mlx_lm.generate --adapter-path
  hf       base and adapter as one model, for transformers
  gguf     the same in one file, for llama.cpp and LM Studio (needs mlx-ft[gguf])
  ollama   a GGUF file and its Modelfile (needs mlx-ft[gguf])

A folder gets a model card, README.md: what the run's records say, and nothing else.

examples:
  mlx-ft export --to peft --out adapter_for_peft           the newest run
  mlx-ft export outputs/runs/X --to gguf --out model.gguf --dtype q8_0
  mlx-ft export --to ollama --out assistant && cd assistant && ollama create me -f Modelfile

All about it: docs/export.md
"""
IMPORT = """\
Names, shapes and values are held against the base model, whose weights are not read; what our files
cannot say (DoRA, ranks of some projections, other trained modules) is refused, all of it at once.

examples:
  mlx-ft import their_adapter --out mine
  mlx-ft import their_adapter --out mine --model embedded
  mlx-ft export mine --to gguf --out mine.gguf             use it, or go on with it as it says
"""
DIFF = """\
examples:
  mlx-ft diff outputs/runs/X outputs/runs/Y
"""
SERVE = """\
Answers at /v1/chat/completions and /v1/completions, for the base model and every adapter by its
name, many in one batch; trains adapters from uploaded data, one job at a time, in a process of its
own; all paths with examples: docs/serving.md, and /docs of the server itself.
In a browser, its page at / does the same: chat, jobs, adapters, data, downloads.

examples:
  mlx-ft serve                                             the embedded model, on 127.0.0.1:8080
  mlx-ft serve --adapter sql=outputs/runs/X --port 8000    and a run of yours, as `sql`
  mlx-ft serve --host 0.0.0.0 --api-key-file keys.txt --allow-host box.lan

A signal ends it: answers that have begun come to their end, a job that runs saves itself and can
go on. Exit codes: 0 after Ctrl-C, 143 after SIGTERM.
"""


def add(commands: Commands, name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
    """A command whose own help says what it does, with examples."""
    return commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
