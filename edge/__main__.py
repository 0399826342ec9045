"""``python -m edge`` is ``edge-infer``, for where the script is not on the path."""

from __future__ import annotations

import sys

from edge.cli import main

sys.exit(main())
