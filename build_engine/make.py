"""Build a bundle: checkpoint -> ONNX -> calibrated ONNX -> engine, verified on real images, ready to deploy.

python build_engine/make.py --int8
python build_engine/make.py --regate out/mobilenet_v2-int8-onnxruntime    the accuracy gate again, on this machine
python build_engine/make.py --bundle out/mobilenet_v2-int8-onnxruntime --triton-repository models/    for Triton servers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    from build_engine.build import BuildOptions, build_bundle
    from build_engine.gate_again import regate_bundle
    from build_engine.images import CALIBRATION_IMAGES, MINIMUM
    from build_engine.mixed_precision import CHOICES
    from build_engine.thresholds import parse_rule
    from build_engine.triton_repository import export_to_triton
    from build_engine.verify import say
    from mdconv.networks import NETWORKS
except ImportError as missing:
    sys.exit(
        f"make.py: cannot import {missing.name}: run it in the environment that `make demo` sets up "
        "(.venv/bin/python build_engine/make.py), or pip install '.[build]'. The gate of a bundle can be "
        "repeated without it: python -m calibration.regate"
    )

from calibration.limits import NAMES, add_limit_options, limits_of
from calibration.observers import METHODS
from edge.bundle import BACKENDS, load_bundle
from edge.errors import BundleError, EdgeError, describe_os_error
from edge.gate import FAIL
from edge.signature import PASSPHRASE_VARIABLE, configured_key

_WITHOUT_BUILD = {"regate": ("gate_data", "backend", *NAMES), "bundle": ("triton_repository",)}
"""Options in whose place nothing is built, and what each may come with."""


def parse(arguments: Sequence[str] | None) -> BuildOptions:
    """The command line as options; argparse itself ends the process with status 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="make.py",
        description="Build a bundle from a checkpoint: export, calibrate, build the engine, verify on real images. The "
        "last line printed is the bundle's path.",
        epilog="Exit status: 0 done, 2 wrong use, 3 the machine does not fit or the bundle failed its gate.",
    )
    precision = parser.add_mutually_exclusive_group()
    for name, text in (
        ("int8", "8-bit weights and activations (default)"),
        ("fp16", "half precision"),
        ("fp32", "single precision"),
    ):
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=text)
    parser.add_argument(
        "--checkpoint", type=Path, metavar="F", help="safetensors file of mdconv.train (default: the demo checkpoint)"
    )
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="what the checkpoint must be; without a checkpoint, a network other than the demo's gets random weights, "
        f"to time it before it is trained: {', '.join(NETWORKS)}",
    )
    parser.add_argument(
        "--md-stages",
        metavar="STAGES",
        help='of --network: stages with MD-Conv, as "layer3,layer5", "all" or "none" (default: the network\'s own)',
    )
    parser.add_argument(
        "--input-size",
        type=_at_least(32),
        metavar="PIXELS",
        help="height and width of the input (default: the checkpoint's)",
    )
    parser.add_argument(
        "--batch", type=_at_least(1), default=1, metavar="N", help="most images an inference (default: 1)"
    )
    parser.add_argument(
        "--calibration-data",
        type=Path,
        metavar="DIR",
        help="radiographs to calibrate on (needed but for the demo checkpoint): a folder, or a table in the form of "
        "ChestX-ray14 (.csv) beside or above its images; stratified by finding by that table, or by labels.csv",
    )
    parser.add_argument(
        "--calibration-method", choices=METHODS, default="mse", help="how ranges are chosen (default: mse)"
    )
    parser.add_argument(
        "--calibration-images",
        type=_at_least(1),
        metavar="N",
        help=f"most images to calibrate on (default: {CALIBRATION_IMAGES}); INT8 needs {MINIMUM}, or N if that is less",
    )
    parser.add_argument(
        "--calibration-seed",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="another seed chooses other images where there are more than enough (default: 0)",
    )
    parser.add_argument(
        "--no-equalization",
        dest="equalization",
        action="store_false",
        help="leave the channels before and behind depthwise layers as different in size as they are",
    )
    parser.add_argument(
        "--no-bias-correction",
        dest="bias_correction",
        action="store_false",
        help="leave the mean error of each quantized layer where it is",
    )
    parser.add_argument(
        "--mixed-precision",
        choices=CHOICES,
        default="auto",
        help="auto: where an INT8 build fails its self-test or its gate, leave the fewest layers in float16 with which "
        "it passes; measure: say also of a build that passes what INT8 in each layer costs; off (default: auto)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", *BACKENDS),
        default="auto",
        help="what to build for (default: auto = tensorrt where it works here, else onnxruntime)",
    )
    parser.add_argument(
        "--lowering",
        choices=("auto", "plugin", "padded", "split"),
        default="auto",
        help="how MD-Conv reaches the engine builder: by the fused TensorRT plugin or as stock convolutions (default: "
        "auto = build what the backend offers, time it here, keep the fastest; padded where nothing can be timed)",
    )
    parser.add_argument(
        "--gate-data", type=Path, metavar="DIR", help="images to judge the build by, with labels.csv if there is one"
    )
    add_limit_options(parser)
    parser.add_argument(
        "--no-gate", dest="gate", action="store_false", help="skip the accuracy gate; the manifest says so"
    )
    parser.add_argument(
        "--thresholds",
        type=_rule,
        metavar="RULE",
        help="how to choose from which probability on a finding is positive: youden, or sensitivity=0.9 or another "
        "share (default: the checkpoint's own)",
    )
    parser.add_argument(
        "--threshold-data", type=Path, metavar="DIR", help="validation images with labels.csv to choose --thresholds on"
    )
    parser.add_argument("--workspace-mb", type=_at_least(1), metavar="N", help="limit of the engine builder's memory")
    parser.add_argument("--timing-cache", type=Path, metavar="F", help="TensorRT timing cache to read and update")
    parser.add_argument(
        "--sign-key",
        type=Path,
        metavar="F",
        help="sign the bundle's manifest with this Ed25519 private key (PEM, PKCS8); the passphrase of an encrypted "
        f"one is taken from the environment variable {PASSPHRASE_VARIABLE} or asked for",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="the bundle (default: out/<network>-<precision>-<backend>)"
    )
    parser.add_argument(
        "--regate",
        type=Path,
        metavar="BUNDLE",
        help="build nothing: repeat this bundle's gate here and write the verdict into its manifest; of the other "
        "options it takes those of the gate and the backend",
    )
    parser.add_argument(
        "--triton-repository",
        type=Path,
        metavar="DIR",
        help="write the bundle as a model into this Triton model repository, too; what stands there is never replaced",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="BUNDLE",
        help="build nothing: write this bundle into the repository; the last line printed is the model's folder",
    )
    options = parser.parse_args(arguments)
    if options.bundle is not None and options.triton_repository is None:
        parser.error("--bundle is for --triton-repository: name that, too")
    for name, own in _WITHOUT_BUILD.items():
        others = vars(options).keys() - {name, *own}
        given = sorted(other for other in others if getattr(options, other) != parser.get_default(other))
        if getattr(options, name) is not None and given:
            parser.error(f"--{name} builds nothing, so it takes no option about {', '.join(given)}: leave that out")
    options.precision = options.precision or "int8"
    rest = {name: value for name, value in vars(options).items() if name not in NAMES}
    return BuildOptions(**rest, limits=limits_of(options))


def _rule(text: str) -> str:
    try:
        parse_rule(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither youden nor sensitivity=X with X above 0, to 1") from None
    return text


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return whole_number


def _export(directory: Path, repository: Path) -> Path:
    bundle = load_bundle(directory, configured_key(None))
    if bundle.notice:
        say(bundle.notice)
    return export_to_triton(bundle, repository)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(arguments)
    try:
        if options.regate is not None:
            verdict = regate_bundle(options.regate, options.gate_data, options.limits, options.backend)
            print(options.regate)
            return BundleError.exit_status if verdict == FAIL else 0
        if options.bundle is not None and options.triton_repository is not None:
            print(_export(options.bundle, options.triton_repository))
            return 0
        built = build_bundle(options)
        if options.triton_repository is not None:
            say(f"for Triton: {_export(built, options.triton_repository)}")
        print(built)
    except EdgeError as error:
        print(f"make.py: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"make.py: {describe_os_error(error)}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("make.py: interrupted; nothing was left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
