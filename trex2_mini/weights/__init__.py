"""Weights from elsewhere and for elsewhere: warm starts, distillation of the text tower, the Hub, ONNX."""
