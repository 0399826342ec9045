"""The command line, ``edge-infer``: one subcommand a task. Only `main` turns an error into an exit status."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from edge import __version__
from edge.archive.options import add_archive_command
from edge.backends import CHOICES, open_backend
from edge.bundle import Bundle, load_bundle, sign_bundle
from edge.daemon_commands import add_daemon_commands
from edge.errors import EdgeError, MachineError, UsageError, describe_os_error
from edge.gate import FORCE, require_gate
from edge.guard import NO_GUARD_HELP
from edge.measure_commands import add_measure_commands
from edge.signature import (
    PASSPHRASE_VARIABLE,
    PUBLIC_KEY_VARIABLE,
    SIGNATURE,
    UNSIGNED,
    configured_key,
    fingerprint,
    load_private_key,
)

EXIT_STATUS = """exit status: 0 done; 1 some inputs were refused, each named with its reason; 2 wrong use;
3 the bundle or the machine does not fit (what is missing is named); 130 interrupted; 141 nobody reads the output"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}: see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status. An error is one line on stderr."""
    # pydicom would bring GDCM into this process, which takes 16 MB; `edge.gdcm_process` alone decodes by it.
    sys.modules.setdefault("gdcm", None)  # type: ignore[arg-type]
    try:
        status = _run(arguments)
        sys.stdout.flush()  # here, where a full disk can still be told
        return status
    except EdgeError as error:
        return _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        _settle_output()
        return 141
    except OSError as error:
        return _fail(describe_os_error(error), MachineError.exit_status)
    except MemoryError:
        return _fail("out of memory: free some, or use a smaller batch or image", MachineError.exit_status)


def _settle_output() -> None:
    """Give what cannot be written somewhere to go: Python flushes once more at exit, and ends with 120 if it fails."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> int:
    _settle_output()
    print(f"edge-infer: {' '.join(message.split())}", file=sys.stderr)
    return status


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if options.verbose else options.log_level,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names may be of any bytes
    status = options.run(options)
    assert isinstance(status, int)
    return status


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="log every step to stderr")
    key = _Parser(add_help=False)
    key.add_argument(
        "--public-key",
        type=Path,
        metavar="F",
        help="refuse a bundle that this Ed25519 key (PEM) did not sign; default: the file that the environment "
        f"variable {PUBLIC_KEY_VARIABLE} names, else no signature is needed",
    )
    bundle = _Parser(add_help=False, parents=[key])
    bundle.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="the bundle to run")
    bundle.add_argument(FORCE, action="store_true", help="run a bundle that failed its gate; every result says so")
    bundle.add_argument("--backend", choices=CHOICES, default="auto", help="default: auto, the first that works here")
    guard = _Parser(add_help=False)
    guard.add_argument("--no-guard", dest="guard", action="store_false", help=NO_GUARD_HELP)

    parser = _Parser(prog="edge-infer", description="Findings in chest radiographs, on the device.", epilog=EXIT_STATUS)
    parser.add_argument("--version", action="version", version=f"edge-infer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str, parents: Sequence[_Parser] = ()) -> _Parser:
        sub = commands.add_parser(name, help=help, description=help, parents=[*parents, common], epilog=EXIT_STATUS)
        sub.set_defaults(run=run, log_level=logging.INFO if name == "serve" else logging.WARNING)
        return sub

    sub = command("classify", _classify, "find what is in image files: one line an image", [bundle, guard])
    sub.add_argument("files", nargs="+", type=Path, metavar="FILE", help="DICOM, PNG or JPEG image")
    sub.add_argument("--json", action="store_true", help="one JSON object a line, refused images too")
    sub.add_argument(
        "--cam", type=Path, metavar="DIR", help="write each image's class activation maps there (.npy, .png)"
    )

    add_daemon_commands(command)
    add_archive_command(command, [bundle, guard], _load)

    add_measure_commands(command, [bundle, guard])

    command("selftest", _selftest, "check that a bundle gives its reference results on this machine", [bundle])

    sub = command("doctor", _doctor, "what this machine has, what is missing, what to do", [key])
    sub.add_argument("--bundle", type=Path, metavar="DIR", help="check this bundle's files, too")
    sub.add_argument("--config", type=Path, metavar="F", help="check what the daemon with these settings needs, too")

    sub = command("passport", _passport, "what a bundle is: network, training, findings, gate, files, signature", [key])
    sub.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="the bundle to describe")
    sub.add_argument("--json", action="store_true", help="one JSON object instead of words")

    sub = command("sign", _sign, f"sign a bundle's manifest; the signature is {SIGNATURE} beside it", [])
    sub.add_argument(
        "--bundle", type=Path, required=True, metavar="DIR", help="the bundle to sign, once it is reviewed"
    )
    sub.add_argument(
        "--key",
        type=Path,
        required=True,
        metavar="F",
        help="Ed25519 private key (PEM, PKCS8); the passphrase of an encrypted one is taken from the environment "
        f"variable {PASSPHRASE_VARIABLE} or asked for",
    )
    return parser


def _load(options: argparse.Namespace) -> Bundle:
    bundle = load_bundle(options.bundle, configured_key(options.public_key))
    require_gate(bundle.manifest, options.allow_failed_gate)
    if bundle.notice:
        print(f"edge-infer: {bundle.notice}", file=sys.stderr)
    return bundle


# The modules that decode and infer are imported by the commands that need them, so that the others start at once.


def _classify(options: argparse.Namespace) -> int:
    bundle = _load(options)
    from edge.classify import classify

    return classify(
        bundle,
        options.files,
        backend=options.backend,
        as_json=options.json,
        cam_directory=options.cam,
        guard=options.guard,
    )


def _selftest(options: argparse.Namespace) -> int:
    bundle = _load(options)
    from edge.selftest import describe, self_test

    with open_backend(bundle, options.backend) as backend:
        print(f"backend {backend.name}: {describe(self_test(bundle, backend))}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from edge.doctor import examine, render

    bundle, public_key = options.bundle, options.public_key
    daemon: list[Any] = []
    if options.config is not None:
        bundle, public_key, daemon = _examine_settings(options)
    findings = [*examine(bundle, public_key=configured_key(public_key)), *daemon]
    print(render(findings, color=sys.stdout.isatty()))
    return 0 if all(finding.ok for finding in findings if finding.needed) else MachineError.exit_status


def _examine_settings(options: argparse.Namespace) -> tuple[Path | None, Path | None, list[Any]]:
    """The bundle and the key of the daemon's settings, and findings about the rest."""
    from edge.config import load_config
    from edge.doctor import Finding
    from edge.doctor_daemon import examine_daemon

    flags = {name: getattr(options, name) for name in ("bundle", "public_key") if getattr(options, name) is not None}
    try:
        config = load_config(options.config, flags)
    except UsageError as error:
        return options.bundle, options.public_key, [Finding("settings", False, str(error), "correct it", needed=True)]
    read = Finding("settings", True, f"{options.config} can be used")
    return config.bundle, config.public_key, [read, *examine_daemon(config)]


def _passport(options: argparse.Namespace) -> int:
    bundle = load_bundle(options.bundle, configured_key(options.public_key))
    from edge.passport import passport, render

    described = passport(bundle)
    print(json.dumps(described, indent=2) if options.json else render(described))
    return 0


def _sign(options: argparse.Namespace) -> int:
    private = load_private_key(options.key)
    bundle = sign_bundle(options.bundle, private)
    if bundle.notice:
        print(f"edge-infer: {bundle.notice}", file=sys.stderr)  # whoever signs should know what it says
    again = "" if bundle.signature.state == UNSIGNED else ", in place of the signature that was there"
    print(
        f"signed {bundle.name} (manifest SHA-256 {bundle.sha256}) with key {fingerprint(private.public_key())}{again}: "
        f"{bundle.directory / SIGNATURE}"
    )
    return 0
