"""prefill-opt: fast prompt processing for ONNX transformers."""
