"""The network as ONNX graphs, one per component. `spec` and `bundle` import no torch; the rest does."""
