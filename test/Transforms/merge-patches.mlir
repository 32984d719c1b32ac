// RUN: split-file %s %t
// RUN: prefill-opt %t/encoder.mlir -merge-patches="prune=mustdrop:vit-merge=2x2@0.5,key=0.25 protect=rows:9-10" -verify-each | FileCheck %s
// RUN: prefill-opt %t/encoder.mlir -merge-patches="prune=mustdrop:key=0.25" -verify-each | FileCheck %s --check-prefix=KEY
// RUN: prefill-opt %t/encoder.mlir -merge-patches="prune=mustdrop:vit-merge=1x1@0.5,key=0" -verify-each | FileCheck %s --check-prefix=SAME
// RUN: not prefill-opt %t/encoder.mlir -merge-patches="prune=mustdrop:vit-merge=3x3@0.8" 2>&1 | FileCheck %s --check-prefix=GRID
// RUN: not prefill-opt %t/encoder.mlir -merge-patches="prune=mustdrop:vit-merge=2x2@0.8,anchor=mean" 2>&1 | FileCheck %s --check-prefix=SQUARE
// RUN: not prefill-opt %t/encoder.mlir -merge-patches="prune=mustdrop:layers=1" 2>&1 | FileCheck %s --check-prefix=TEXT
// RUN: not prefill-opt %t/table.mlir -merge-patches="prune=mustdrop:vit-merge=2x2@0.8" 2>&1 | FileCheck %s --check-prefix=TABLE
// RUN: not prefill-opt %t/number.mlir -merge-patches="prune=mustdrop:vit-merge=2x2@0.8" 2>&1 | FileCheck %s --check-prefix=NUMBER
// RUN: sed 's/"pixels"/"protected_rows"/' %t/encoder.mlir | not prefill-opt - -merge-patches="prune=mustdrop:vit-merge=2x2@0.8 protect=system" 2>&1 | FileCheck %s --check-prefix=INPUT

// INPUT: the model has an input 'protected_rows' already

// After the first layer windows are merged; what later layers get are the rows
// that are left, in another order. The last attention says which matter.

// CHECK: %[[X:.*]] = onnx.node "Add"(%pixels
// CHECK: %[[PROTECT:.*]] = prefill.protect_rows %{{.*}} bos 1 last 0 {row_ranges = array<i64: 9, 10>}
// CHECK: %[[Y:.*]], %[[ROWS:.*]], %[[MERGED:.*]] = prefill.merge_windows %[[X]] protect(%[[PROTECT]] : {{.*}}) grid 4 window 2 by 2 similarity 5.000000e-01 skip 1
// CHECK-DAG: prefill.attention %[[Y]], %[[Y]], %[[Y]]
// CHECK-DAG: %{{.*}}, %[[SHARES:.*]] = prefill.flow_score %[[Y]], %[[Y]], %[[Y]] {cls,
// CHECK-DAG: %[[PATCHES:.*]] = onnx.node "Slice"(%[[SHARES]]
// CHECK-DAG: %{{.*}} = onnx.node "TopK"(%[[PATCHES]]
// CHECK: onnx.return %{{.*}}, %[[ROWS]], %[[MERGED]], %{{.*}} {output_names = ["last_hidden_state", "prefill.rows.1", "prefill.merged", "prefill.key_rows"]}

// KEY-NOT: merge_windows
// KEY: prefill.flow_score
// KEY-NOT: merge_windows
// KEY: output_names = ["last_hidden_state", "prefill.key_rows"]

// SAME-NOT: flow_score
// SAME-NOT: merge_windows
// SAME: output_names = ["last_hidden_state"]

// GRID: -prune=mustdrop:vit-merge=3x3@0.8: a grid of 4 x 4 patches has no whole windows of 3 x 3
// SQUARE: its 17 patches are no square
// TEXT: merge-patches does vit-merge and key of mustdrop
// TABLE: -prune: Add 'with_table': it reads a value with a row for every patch, and merged patches have no place in it
// NUMBER: -prune: Gather 'third': it takes rows by their number, and merged patches have none

//--- encoder.mlir
!x = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %o = prefill.attention %pixels, %pixels, %pixels {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    onnx.return %x2 : !x {output_names = ["last_hidden_state"]}
  }
}
//--- table.mlir
!x = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>
!t = tensor<1x17x24xf32>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %table = onnx.initializer "table" : !t = dense<1.0> : !t
    %o = prefill.attention %pixels, %pixels, %pixels {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %x3 = onnx.node "Add"(%x2, %table) attributes {output_names = ["with_table"]} : (!x, !t) -> !x
    onnx.return %x3 : !x {output_names = ["last_hidden_state"]}
  }
}
//--- number.mlir
!x = tensor<?x17x24xf32, #onnx.dims<"B", "", "">>
!r = tensor<?x24xf32, #onnx.dims<"B", "">>
module attributes {onnx.opset_imports = [#onnx.opset<"", 18>]} {
  onnx.graph @main(%pixels: !x) attributes {inputs = ["pixels"]} {
    %three = onnx.initializer "three" : tensor<i64> = dense<3> : tensor<i64>
    %o = prefill.attention %pixels, %pixels, %pixels {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x = onnx.node "Add"(%pixels, %o) : (!x, !x) -> !x
    %o2 = prefill.attention %x, %x, %x {head_dim = 8 : i64, kv_heads = 3 : i64, q_heads = 3 : i64, scale = 0.5 : f32, v_head_dim = 8 : i64, q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>, v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>} : !x, !x, !x -> !x
    %x2 = onnx.node "Add"(%x, %o2) : (!x, !x) -> !x
    %r = onnx.node "Gather"(%x2, %three) {axis = 1 : si64} attributes {output_names = ["third"]} : (!x, tensor<i64>) -> !r
    onnx.return %r : !r {output_names = ["row"]}
  }
}
