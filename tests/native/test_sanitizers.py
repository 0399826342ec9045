"""The kernels and the emulator under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.native.build import ROOT, kernel_library, sanitizer_runtime
from tests.native.host_kernel import SANITIZED


def test_no_sanitizer_has_anything_to_say() -> None:
    kernel_library(sanitized=True)  # before the sanitizer's runtime is loaded, which would slow the compiler down
    environment = os.environ | {
        SANITIZED: "1",
        "LD_PRELOAD": sanitizer_runtime(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.native.sanitized_sweep"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    layers, right = (int(word) for word in done.stdout.split() if word.isdigit())
    assert layers >= 150
    assert right == layers
