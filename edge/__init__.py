"""The device side of mdconv-edge: reads images, runs a bundle, keeps results. Imports neither torch nor onnx."""

__version__ = "0.1.0"
