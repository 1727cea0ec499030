"""The command line of the main job: check, compose, resolve, run."""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlx_ft import runtime
from mlx_ft.config.compose import (
    SETTINGS,
    CommandLine,
    accept,
    check,
    compose,
    explain,
    open_hydra,
)
from mlx_ft.config.screen import fit
from mlx_ft.errors import ConfigError, MlxFtError, UserError

INTERRUPTED = 130
EXIT_CODES = {"FINISHED": 0, "KILLED": INTERRUPTED}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `train.py` command line; returns the exit code.

    0 done; 1 failed while running; 2 the user's mistake; 130, 143 interrupted.
    """
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    if "--version" in arguments:
        print(f"mlx-ft {version('mlx-ft')}, Hydra {version('hydra-core')}")
        return 0
    try:
        return _dispatch(_parse(arguments))
    except MlxFtError as error:
        print(fit(str(error)), *_left(error), sep="\n", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print("Interrupted.", *_left(error), sep="\n", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        _report(error)
        return 1


def _left(error: BaseException) -> list[str]:
    """What there is of a run that did not end well: its notes; before it began, nothing."""
    if notes := getattr(error, "__notes__", []):
        return [*notes]
    if isinstance(error, UserError):
        return ["Nothing was written."]
    return ["Nothing was trained."] if isinstance(error, KeyboardInterrupt) else []


def _parse(argv: list[str]) -> Namespace:
    """Hydra's own options; what they leave over counts as a `key=value` argument."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}. All options: --help")

    parser.error = refuse
    args: Namespace
    args, left = parser.parse_known_args(argv)
    args.overrides += left
    if args.experimental_rerun is not None:
        raise ConfigError(
            "--experimental-rerun is refused: it unpickles a file, which can run any code. "
            "Run again with --config-dir RUN_FOLDER --config-name config"
        )
    args.parser = parser
    return args


def _dispatch(args: Namespace) -> int:
    folders = [Path(folder) for folder in (args.config_dir, args.config_path) if folder]
    command = CommandLine(
        overrides=() if args.shell_completion else tuple(args.overrides),
        config_name=args.config_name or "main",
        config_dirs=tuple(folders),
        multirun=args.multirun,
    )
    shows = (args.help, args.hydra_help, args.cfg, args.shell_completion, args.info)
    if sum(map(bool, (*shows, args.multirun))) > 1:
        raise ConfigError("Only one of -m, --cfg, --info, --help at a time")
    if any(shows):
        return _show(args, command)
    if args.resolve or args.package:
        raise ConfigError("--resolve and --package go with --cfg")
    return _sweep(command) if args.multirun else _train(command)


def _train(command: CommandLine) -> int:
    accepted = accept(command)
    from mlx_ft.run import run  # heavy: only once the configuration is accepted

    result = run(
        accepted.config,
        public=accepted.public,
        run_dir=accepted.run_dir,
        overrides=command.overrides,
        choices=accepted.choices,
    )
    return EXIT_CODES.get(result.status, 1)


def _show(args: Namespace, command: CommandLine) -> int:
    """Everything that only prints: Hydra does it."""
    check(command)
    hydra = open_hydra(command)
    name, overrides = command.config_name, command.for_hydra()
    if not args.shell_completion:
        compose(hydra, command)  # refuses what a run would refuse; Hydra would not
    try:
        if args.help:
            hydra.app_help(name, args.parser, Namespace(overrides=overrides, resolve=args.resolve))
        elif args.hydra_help:
            hydra.hydra_help(name, args.parser, Namespace(overrides=[*SETTINGS]))
        elif args.cfg:
            hydra.show_cfg(name, overrides, args.cfg, args.package, args.resolve)
        elif args.shell_completion:
            hydra.shell_completion(name, args.overrides)
        else:
            hydra.show_info(args.info, name, overrides)
    except SystemExit as stop:  # Hydra knows no such part
        if stop.code:
            raise ConfigError(f"No {args.package} to show") from stop
    except (HydraException, OmegaConfBaseException, LookupError, TypeError, ValueError) as error:
        raise ConfigError(explain(error)) from error
    return 0


def _sweep(command: CommandLine) -> int:
    """`-m`: the sweeper plugin of `hydra_plugins/` expands the grid and runs the trials.

    Hydra's own multirun would also instantiate `hydra.callbacks`, which run code.
    """
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    from mlx_ft.sweeper.trial import run_trial

    if runtime.one_of_several():
        raise ConfigError(
            "a sweep cannot be started by mlx.launch, whose processes train one run together. "
            "Start it with python train.py -m, or with several workers: hydra/launcher=joblib"
        )
    check(command)
    hydra = open_hydra(command)
    cfg = compose(hydra, command)
    sweeper = Plugins.instance().instantiate_sweeper(
        hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks()),
        task_function=run_trial,
        config=cfg,
    )
    arguments = OmegaConf.to_container(cfg.hydra.overrides.task)  # ${oc.env:...} stays as text
    try:
        return int(sweeper.sweep(arguments))
    except InstantiationException as error:  # of the launcher, before anything is written
        raise ConfigError(explain(error)) from error


def _report(error: Exception) -> None:
    """What failed and what is left; the traceback too, unless a note says where it is."""
    notes = getattr(error, "__notes__", [])
    if not notes:
        traceback.print_exception(error)
    failure = f"The run failed. {type(error).__name__}: {explain(error)}."
    print(fit(failure), *notes, sep="\n", file=sys.stderr)
