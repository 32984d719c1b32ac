module attributes {onnx.ir_version = 10 : i64, onnx.opset_imports = [#onnx.opset<"", 23>]} {
onnx.graph @attention(
    %q: tensor<?x4x?x64xf16, #onnx.dims<"b", "", "s", "">>,
    %k: tensor<?x2x?x64xf16, #onnx.dims<"b", "", "s", "">>,
    %v: tensor<?x2x?x64xf16, #onnx.dims<"b", "", "s", "">>)
    attributes {inputs = ["q", "k", "v"]} {
  %o = prefill.attention %q, %k, %v
    {causal, q_heads = 4 : i64, kv_heads = 2 : i64, head_dim = 64 : i64,
     v_head_dim = 64 : i64, scale = 0.125 : f32, layer = "0"}
    : tensor<?x4x?x64xf16, #onnx.dims<"b", "", "s", "">>,
      tensor<?x2x?x64xf16, #onnx.dims<"b", "", "s", "">>,
      tensor<?x2x?x64xf16, #onnx.dims<"b", "", "s", "">>
    -> tensor<?x4x?x64xf16, #onnx.dims<"b", "", "s", "">>
  onnx.return %o : tensor<?x4x?x64xf16, #onnx.dims<"b", "", "s", "">>
    {output_names = ["o"]}
}
}
