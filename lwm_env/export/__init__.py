"""A world's step as one ONNX file: writing it, running it, and making it smaller with int8 weights."""
