"""From a checkpoint to a bundle: export to ONNX, calibration, lowering, the engine, and the bundle's files."""
