"""Calibration: from a float32 ONNX model and real images to an int8 one with explicit scales, and a verdict on it."""
