"""ModelOpt's ONNX quantization of one model, from file to file. Runs in an environment of its own: it shares no
package with the rest, and imports none of ours (see `modelopt_environment`).

    python -I quantization_modelopt.py model.onnx calibration.npy model.int8.onnx --method entropy

Everything else is ModelOpt's default, but for two things: what is not quantized stays float32 (not float16), so that
rounding to int8 is all that is compared, and calibration runs on the CPU. The last line printed is JSON: ``seconds``
of processor time, ``version``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from modelopt.onnx.quantization import quantize


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="float32, ops of standard ONNX alone")
    parser.add_argument("calibration", type=Path, help="(N, 1, S, S) uint8, as .npy")
    parser.add_argument("output", type=Path)
    parser.add_argument("--method", choices=("entropy", "max"), default="entropy")
    options = parser.parse_args()
    started = time.process_time()
    quantize(
        str(options.model),
        quantize_mode="int8",
        calibration_data=np.load(options.calibration),
        calibration_method=options.method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(options.output),
        log_level="WARNING",
    )
    print(json.dumps({"seconds": time.process_time() - started, "version": version("nvidia-modelopt")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
