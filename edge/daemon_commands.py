"""The commands about the daemon: ``serve``, ``reload``, ``token``, ``unit``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from edge.backends import CHOICES
from edge.errors import MachineError, UsageError
from edge.gate import FORCE
from edge.guard import NO_GUARD_HELP
from edge.places import default_state

UNIT = "edge-infer.service"

Command = Callable[..., argparse.ArgumentParser]
"""Adds one command: its name, what runs it, its help, the parsers that it shares options with."""


def add_daemon_commands(command: Command) -> None:
    """Add the commands, and their options."""
    serve = "run images as they come from folders, HTTP, DICOM and video; results into a ledger and on to sinks"
    sub = command("serve", _serve, serve)
    sub.add_argument("--config", type=Path, metavar="F", help="settings (TOML); flags and the environment override it")
    sub.add_argument("--bundle", type=Path, metavar="DIR", help="the bundle to run")
    sub.add_argument(
        "--watch",
        type=Path,
        action="append",
        metavar="DIR",
        help="take what appears in this folder; repeatable",
    )
    sub.add_argument("--http-port", type=int, metavar="P", help="listen for HTTP on this port of 127.0.0.1")
    sub.add_argument("--dicom-port", type=int, metavar="P", help="listen for DICOM on this port of 127.0.0.1")
    sub.add_argument("--state", type=Path, metavar="DIR", help=f"the ledger's place: {default_state()}")
    sub.add_argument("--backend", choices=CHOICES, help="default: auto, the first that works here")
    sub.add_argument("--public-key", type=Path, metavar="F", help="refuse a bundle that this key (PEM) did not sign")
    sub.add_argument(
        FORCE,
        action="store_true",
        default=None,
        help="run a bundle that failed its gate; every result says so",
    )
    sub.add_argument(
        "--drain",
        action="store_true",
        default=None,
        help="stop once the folders hold nothing new and all is done",
    )
    sub.add_argument(
        "--keep-names",
        action="store_true",
        default=None,
        help="keep file names with the results (they may hold patients' names)",
    )
    sub.add_argument("--no-guard", dest="guard", action="store_false", default=None, help=NO_GUARD_HELP)

    sub = command("reload", _reload, "have a running daemon take the bundle that its settings name now")
    sub.add_argument(
        "--state", type=Path, default=default_state(), metavar="DIR", help="the daemon's state directory: %(default)s"
    )

    sub = command("token", _token, "make a client's bearer token for [http], and the line by which it is known")
    sub.add_argument("name", metavar="NAME", help="the client's name, for the log; letters, digits, . _ -")

    sub = command("unit", _unit, "print a systemd unit for this installation")
    sub.add_argument(
        "--config",
        type=Path,
        default=Path("/etc/edge-infer/settings.toml"),
        metavar="F",
        help="the settings that it serves with: %(default)s",
    )


def _serve(options: argparse.Namespace) -> int:
    try:
        from edge.config import load_config
        from edge.daemon import Server
        from edge.logs import set_up_logs
    except ImportError as error:
        raise MachineError(f"serve cannot be loaded ({error}): pip install 'mdconv-edge[serve]'") from None

    flags = _serve_flags(options)
    config = load_config(options.config, flags)
    if not (config.watch or config.http or config.dicom or config.video or config.drain):
        raise UsageError(
            "no source is given, expected --watch, --http-port or --dicom-port, or one in the settings: see "
            "`edge-infer serve --help`"
        )
    set_up_logs(config.log.format, "debug" if options.verbose else config.log.level)
    refused = Server(config, lambda: load_config(options.config, flags)).run()
    return 1 if refused and config.drain else 0


def _serve_flags(options: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, by the names of the settings."""
    names = ("bundle", "watch", "state", "backend", "public_key", "allow_failed_gate", "drain", "keep_names", "guard")
    flags = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    for section in ("http", "dicom"):
        port = getattr(options, f"{section}_port")
        if port is not None:
            flags[section] = {"port": port}
    return flags


def _reload(options: argparse.Namespace) -> int:
    from edge.control import ask

    answer = ask(options.state, "reload")
    print(f"{answer['bundle']} serves (manifest SHA-256 {answer['manifest']})")
    return 0


def _token(options: argparse.Namespace) -> int:
    from edge.sources.http.tokens import new_token

    token, line = new_token(options.name)
    print(f"token, for the client alone, not to be had again: {token}")
    print(f"line for the file of tokens ([http] tokens): {line}")
    return 0


def _unit(options: argparse.Namespace) -> int:
    text = resources.files("edge").joinpath(UNIT).read_text()
    command = f"{Path(sys.executable).with_name('edge-infer')} serve --config {options.config.absolute()}"
    lines = [f"ExecStart={command}" if line.startswith("ExecStart=") else line for line in text.splitlines()]
    print("\n".join(lines))
    return 0
