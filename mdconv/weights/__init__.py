"""The shipped weights. They are trained on synthetic phantoms: research use only; CARD.md beside them says how."""

from __future__ import annotations

from pathlib import Path

DEMO_CHECKPOINT = Path(__file__).parent / "mobilenet_v2_mdconv_phantom.safetensors"
"""MobileNet-v2 with MD-Conv in layer5, 14 findings of ChestX-ray14, 448 pixels."""
