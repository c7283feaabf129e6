"""ONNX classifiers that are verified before anyone can deploy them."""
