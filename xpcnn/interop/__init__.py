"""Networks and weights of other frameworks: ONNX files in and out, weights of PyTorch and Keras."""
