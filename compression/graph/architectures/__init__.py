"""Weights that come without a graph: a torch `state_dict` and the name of its architecture become one ONNX file."""
