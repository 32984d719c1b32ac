// RUN: prefill-opt %s | prefill-opt | FileCheck %s
// RUN: prefill-opt %s --verify-roundtrip -o /dev/null

// CHECK-LABEL: func @dense
func.func @dense(%q: tensor<1x9x?x64xf32>, %k: tensor<1x3x?x64xf32>,
                 %v: tensor<1x3x?x64xf32>) -> tensor<1x?x576xf32> {
  // CHECK: prefill.attention %{{.*}}, %{{.*}}, %{{.*}} {causal, head_dim = 64 : i64, kv_heads = 3 : i64, o_layout = #prefill<layout bshd>, q_heads = 9 : i64, scale = 1.250000e-01 : f32, v_head_dim = 64 : i64}
  %o = prefill.attention %q, %k, %v {causal, q_heads = 9 : i64, kv_heads = 3 : i64,
    head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32,
    o_layout = #prefill<layout bshd>}
    : tensor<1x9x?x64xf32>, tensor<1x3x?x64xf32>, tensor<1x3x?x64xf32> -> tensor<1x?x576xf32>
  return %o : tensor<1x?x576xf32>
}

// CHECK-LABEL: func @operands
func.func @operands(%q: tensor<?x?x128xf16>, %bias: tensor<?x1x?x?xf16>, %mask: tensor<?x?xi1>,
                    %lengths: tensor<?xi32>, %sinks: tensor<8xf16>, %seg: tensor<?x?xi64>,
                    %offset: tensor<i64>, %cos: tensor<?x8xf16>) {
  // CHECK: bias({{.*}}) key_mask({{.*}}) kv_lengths({{.*}}) sinks({{.*}}) segments({{.*}}) q_offset({{.*}}) rotary({{.*}})
  // CHECK-SAME: alignment = #prefill<align operand>
  // CHECK-SAME: masked_row = #prefill<masked_row mean>
  // CHECK-SAME: rotary = #prefill<rotary half>
  // CHECK-SAME: -> tensor<?x?x128xf16>, tensor<?x8x?xf32> rotated_k : tensor<?x8x?x16xf16>
  %o, %lse, %rotated = prefill.attention %q, %q, %q bias(%bias : tensor<?x1x?x?xf16>)
    key_mask(%mask : tensor<?x?xi1>) kv_lengths(%lengths : tensor<?xi32>)
    sinks(%sinks : tensor<8xf16>) segments(%seg, %seg : tensor<?x?xi64>, tensor<?x?xi64>)
    q_offset(%offset : tensor<i64>) rotary(%cos, %cos : tensor<?x8xf16>, tensor<?x8xf16>)
    {q_heads = 8 : i64, kv_heads = 8 : i64, head_dim = 16 : i64, v_head_dim = 16 : i64,
     scale = 0.25 : f32, softcap = 50.0 : f32, window_left = 127 : i64, causal,
     q_layout = #prefill<layout bshd>, k_layout = #prefill<layout bshd>,
     v_layout = #prefill<layout bshd>, o_layout = #prefill<layout bshd>,
     alignment = #prefill<align operand>, masked_row = #prefill<masked_row mean>,
     rotary = #prefill<rotary half>, rotary_dim = 16 : i64}
    : tensor<?x?x128xf16>, tensor<?x?x128xf16>, tensor<?x?x128xf16> -> tensor<?x?x128xf16>, tensor<?x8x?xf32> rotated_k : tensor<?x8x?x16xf16>
  return
}

// CHECK-LABEL: func @sparse
func.func @sparse(%q: tensor<1x2x?x64xf32>) -> tensor<1x2x?x64xf32> {
  // CHECK: %[[C:.*]], %[[D:.*]] = prefill.score.last_rows %{{.*}}, %{{.*}} rows 64 : {{.*}} -> <column>, <diagonal>
  %c, %d = prefill.score.last_rows %q, %q rows 64 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <column>, <diagonal>
  // CHECK: prefill.select %[[C]] {forced = 30 : i64, top_k = 1000 : i64} : <column> -> <column>
  %sc = prefill.select %c {top_k = 1000 : i64, forced = 30 : i64} : <column> -> <column>
  %sd = prefill.select %d {density = 0.25 : f32} : <diagonal> -> <diagonal>
  // CHECK: prefill.index.relative
  %i0 = prefill.index.relative %sc, %sd : <column>, <diagonal>
  // CHECK: prefill.index.a_shape init 128 local 3968
  %i1 = prefill.index.a_shape init 128 local 3968
  // CHECK: prefill.index.per_head %{{.*}}, %{{.*}} heads [0, 1]
  %i = prefill.index.per_head %i0, %i1 heads [0, 1]
  // CHECK: prefill.sparse_attention
  %o = prefill.sparse_attention %q, %q, %q, %i {causal, q_heads = 2 : i64, kv_heads = 2 : i64,
    head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 0.125 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return %o : tensor<1x2x?x64xf32>
}

// CHECK-LABEL: func @blocks
func.func @blocks(%q: tensor<1x2x?x64xf32>) {
  %s = prefill.score.pooled %q, %q : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  %b = prefill.select %s {top_k = 100 : i64} : <block> -> <block>
  // CHECK: prefill.index.blocks
  %i = prefill.index.blocks %b : <block>
  // CHECK: prefill.score.antidiagonal %{{.*}}, %{{.*}} stride 8 : {{.*}} -> <block>
  %a = prefill.score.antidiagonal %q, %q stride 8 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // CHECK: prefill.select %{{.*}} {forced = 1 : i64, top_p = 0.899999976 : f32} : <block> -> <block>
  %p = prefill.select %a {top_p = 0.9 : f32, forced = 1 : i64} : <block> -> <block>
  // CHECK: prefill.index.tri_shape init 128 local 3968 last 100
  %t = prefill.index.tri_shape init 128 local 3968 last 100
  // CHECK: prefill.index.dense
  %e = prefill.index.dense
  return
}

// CHECK-LABEL: func @estimates
func.func @estimates(%q: tensor<1x2x?x64xf32>) {
  // CHECK: prefill.score.pooled %{{.*}}, %{{.*}} {softmax} :
  %p = prefill.score.pooled %q, %q {softmax} : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // CHECK: prefill.score.sampled %{{.*}}, %{{.*}} values(%{{.*}} : tensor<1x2x?x64xf32>) stride 2 :
  %sv = prefill.score.sampled %q, %q values(%q : tensor<1x2x?x64xf32>) stride 2 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // CHECK: prefill.score.sampled %{{.*}}, %{{.*}} stride 1 :
  %s = prefill.score.sampled %q, %q stride 1 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // CHECK: prefill.score.quantized %{{.*}}, %{{.*}} bits 8 reference(32, 128) :
  %r = prefill.score.quantized %q, %q bits 8 reference(32, 128) : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // CHECK: prefill.select %{{.*}} {init = 32 : i64, near = 128 : i64, threshold = 4.000000e-03 : f32}
  %0 = prefill.select %r {threshold = 0.004 : f32, init = 32 : i64, near = 128 : i64} : <block> -> <block>
  // CHECK: prefill.score.quantized %{{.*}}, %{{.*}} bits 4 {stride = 8 : i64} :
  %m = prefill.score.quantized %q, %q bits 4 {stride = 8 : i64} : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // CHECK: prefill.score.compressed %{{.*}}, %{{.*}} keys 32 every 16 :
  %c = prefill.score.compressed %q, %q keys 32 every 16 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // CHECK: prefill.keep_dissimilar %{{.*}}, %{{.*}}, %{{.*}} below 5.000000e-01 :
  %g = prefill.keep_dissimilar %0, %q, %q below 0.5 : <block>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // CHECK: prefill.index.strided init 64 local 1024 stride 8
  %i = prefill.index.strided init 64 local 1024 stride 8
  // CHECK: prefill.score.boundary %{{.*}}, %{{.*}} modality(%{{.*}} : tensor<1x2x?x64xf32>) rows 64 pairs :
  %ba, %bb = prefill.score.boundary %q, %q modality(%q : tensor<1x2x?x64xf32>) rows 64 pairs : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <column>, <diagonal>
  %bc = prefill.select %ba {top_k = 5 : i64} : <column> -> <column>
  %bd = prefill.select %bb {top_k = 5 : i64} : <diagonal> -> <diagonal>
  // CHECK: prefill.index.boundary %{{.*}}, %{{.*}} modality(%{{.*}} : tensor<1x2x?x64xf32>) : <column>, <diagonal>
  %be = prefill.index.boundary %bc, %bd modality(%q : tensor<1x2x?x64xf32>) : <column>, <diagonal>
  // CHECK: prefill.score.grid %{{.*}}, %{{.*}} rows 64 init 4 vertical slash :
  %ga = prefill.score.grid %q, %q rows 64 init 4 vertical slash : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <grid>
  // CHECK: prefill.select %{{.*}} {top_p = 5.000000e-01 : f32} : <grid> -> <grid>
  %gb = prefill.select %ga {top_p = 0.5 : f32} : <grid> -> <grid>
  // CHECK: prefill.index.grid %{{.*}} last 64 horizontal : <grid>
  %gc = prefill.index.grid %gb last 64 horizontal : <grid>
  // CHECK: prefill.score.grid %{{.*}}, %{{.*}} rows 1 init 0 stride 7 :
  %gd = prefill.score.grid %q, %q rows 1 init 0 stride 7 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <grid>
  %v, %d = prefill.score.last_rows %q, %q rows 64 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <column>, <diagonal>
  // CHECK: prefill.select %{{.*}} {min_tokens = 512 : i64, top_p = 5.000000e-01 : f32}
  %w = prefill.select %v {top_p = 0.5 : f32, min_tokens = 512 : i64} : <column> -> <column>
  // CHECK: prefill.select %{{.*}} {top_p = 5.000000e-01 : f32}
  %x = prefill.select %p {top_p = 0.5 : f32} : <block> -> <block>
  // CHECK: prefill.index.agreeing %{{.*}}, %{{.*}} below 1.000000e-01 ? %{{.*}} : %{{.*}} : <column>, <block>
  %j = prefill.index.agreeing %v, %p below 0.1 ? %i : %i : <column>, <block>
  // CHECK: prefill.index.skip %{{.*}} below 1.000000e-03
  %k = prefill.index.skip %j below 0.001
  return
}

// CHECK-LABEL: @contexts
func.func @contexts(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>) {
  // CHECK: prefill.attention {{.*}} cache({{.*}}) contexts(%{{.*}} : tensor<1x2xi64>) {causal, context_scale = 8.000000e-01 : f32, context_temperature = 5.000000e-01 : f32
  %o, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) contexts(%s : tensor<1x2xi64>) {causal, context_temperature = 0.5 : f32, context_scale = 0.8 : f32, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>
  return
}

// CHECK-LABEL: @rows
func.func @rows(%q: tensor<1x2x?x64xf32>, %ids: tensor<?x?xi64>, %given: tensor<?x?xi1>, %starts: tensor<?xi64>) {
  // CHECK: prefill.attention {{.*}} token_score : tensor<?x?xf32>
  %o, %score = prefill.attention %q, %q, %q {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> token_score : tensor<?x?xf32>
  // CHECK: prefill.protect_rows %{{.*}} given(%{{.*}} : tensor<?x?xi1>) alive(%{{.*}} : tensor<?x?xi64>) segment_starts(%{{.*}} : tensor<?xi64>) wanted(%{{.*}} : tensor<?xi64>) bos 4 last 1 {id_ranges = array<i64: 0, 3>, row_ranges = array<i64: 7, 9>} : tensor<?x?xi64> -> tensor<?x?xi1>
  %p = prefill.protect_rows %ids given(%given : tensor<?x?xi1>) alive(%ids : tensor<?x?xi64>) segment_starts(%starts : tensor<?xi64>) wanted(%starts : tensor<?xi64>) bos 4 last 1 {id_ranges = array<i64: 0, 3>, row_ranges = array<i64: 7, 9>} : tensor<?x?xi64> -> tensor<?x?xi1>
  // CHECK: prefill.select_rows %{{.*}} protect(%{{.*}} : tensor<?x?xi1>) segment_starts(%{{.*}} : tensor<?xi64>) keep 5.000000e-01 : tensor<?x?xf32> -> tensor<?x?xi64>, tensor<?xi64>
  %r, %s = prefill.select_rows %score protect(%p : tensor<?x?xi1>) segment_starts(%starts : tensor<?xi64>) keep 0.5 : tensor<?x?xf32> -> tensor<?x?xi64>, tensor<?xi64>
  return
}

// CHECK-LABEL: @windows
func.func @windows(%x: tensor<1x37x32xf32>, %q: tensor<1x4x?x64xf32>, %k: tensor<1x2x?x64xf32>, %ids: tensor<?x?xi64>, %vision: tensor<?x?xi1>, %t: tensor<?x32xf32>) {
  %p = prefill.protect_rows %ids bos 1 last 0 : tensor<?x?xi64> -> tensor<?x?xi1>
  // CHECK: prefill.merge_windows %{{.*}} protect(%{{.*}} : tensor<?x?xi1>) grid 6 window 3 by 2 similarity 8.000000e-01 skip 1 : tensor<1x37x32xf32> -> tensor<1x?x32xf32>, tensor<?x?xi64>, tensor<1xi64>
  %y, %r, %m = prefill.merge_windows %x protect(%p : tensor<?x?xi1>) grid 6 window 3 by 2 similarity 0.8 skip 1 : tensor<1x37x32xf32> -> tensor<1x?x32xf32>, tensor<?x?xi64>, tensor<1xi64>
  // CHECK: prefill.flow_score %{{.*}}, %{{.*}}, %{{.*}} columns(%{{.*}} : tensor<?x?xi1>) alive(%{{.*}} : tensor<?x?xi64>) rotary(%{{.*}}, %{{.*}} : tensor<?x32xf32>, tensor<?x32xf32>) {head_dim = 64 : i64, heads = 4 : i64, kv_heads = 2 : i64, rotary = #prefill<rotary half>, rotary_dim = 64 : i64, scale = 1.250000e-01 : f32, value_scale = 5.000000e-01 : f32}
  %a, %b = prefill.flow_score %q, %k, %k columns(%vision : tensor<?x?xi1>) alive(%ids : tensor<?x?xi64>) rotary(%t, %t : tensor<?x32xf32>, tensor<?x32xf32>) {head_dim = 64 : i64, heads = 4 : i64, kv_heads = 2 : i64, rotary = #prefill<rotary half>, rotary_dim = 64 : i64, scale = 0.125 : f32, value_scale = 0.5 : f32} : tensor<1x4x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<?x?xf32>, tensor<?x?xf32>
  %last = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // CHECK: prefill.select_rows %{{.*}} protect(%{{.*}} : tensor<?x?xi1>) columns(%{{.*}} : tensor<?x?xi1>) target 64 : tensor<?x?xf32> -> tensor<?x?xi64>
  %kept = prefill.select_rows %a protect(%last : tensor<?x?xi1>) columns(%vision : tensor<?x?xi1>) target 64 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// CHECK-LABEL: @patches
func.func @patches(%q: tensor<1x2x?x64xf32>, %ids: tensor<?x?xi64>) {
  // CHECK: prefill.flow_score %{{.*}}, %{{.*}}, %{{.*}} {head_dim = 64 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 1.250000e-01 : f32} : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<?x?xf32>, tensor<?x?xf32>
  %a, %b = prefill.flow_score %q, %q, %q {head_dim = 64 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 0.125 : f32} : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<?x?xf32>, tensor<?x?xf32>
  // CHECK: prefill.flow_score %{{.*}}, %{{.*}}, %{{.*}} previous(%{{.*}} : tensor<?x?xf32>) {cls,
  %c, %d = prefill.flow_score %q, %q, %q previous(%a : tensor<?x?xf32>) {cls, head_dim = 64 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 0.125 : f32} : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<?x?xf32>, tensor<?x?xf32>
  %p = prefill.protect_rows %ids bos 1 last 0 : tensor<?x?xi64> -> tensor<?x?xi1>
  // CHECK: prefill.select_rows %{{.*}} protect(%{{.*}} : tensor<?x?xi1>) shares(%{{.*}} : tensor<?x?xf32>) target 64 left 4 skip 1 : tensor<?x?xf32> -> tensor<?x?xi64>
  %r = prefill.select_rows %c protect(%p : tensor<?x?xi1>) shares(%d : tensor<?x?xf32>) target 64 left 4 skip 1 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// CHECK-LABEL: @vision_rows
func.func @vision_rows(%q: tensor<1x2x?x64xf32>, %ids: tensor<?x?xi64>, %vision: tensor<?x?xi1>, %text: tensor<?x?xi1>) {
  // CHECK: prefill.attention {{.*}} score_rows(%{{.*}} : tensor<?x?xi1>) {{.*}} token_score : tensor<?x?xf32> token_peak : tensor<?x?xf32>
  %o, %score, %peak = prefill.attention %q, %q, %q score_rows(%text : tensor<?x?xi1>) {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> token_score : tensor<?x?xf32> token_peak : tensor<?x?xf32>
  // CHECK: prefill.protect_rows %{{.*}} only(%{{.*}} : tensor<?x?xi1>) bos 4 last 1
  %p = prefill.protect_rows %ids only(%vision : tensor<?x?xi1>) bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // CHECK: prefill.select_rows %{{.*}} protect(%{{.*}} : tensor<?x?xi1>) peak(%{{.*}} : tensor<?x?xf32>) columns(%{{.*}} : tensor<?x?xi1>) global 1.000000e-03 individual 2.000000e-03 : tensor<?x?xf32> -> tensor<?x?xi64>
  %r = prefill.select_rows %score protect(%p : tensor<?x?xi1>) peak(%peak : tensor<?x?xf32>) columns(%vision : tensor<?x?xi1>) global 0.001 individual 0.002 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// CHECK-LABEL: func @groups
func.func @groups(%q: tensor<1x2x?x64xf32>, %ids: tensor<?x?xi64>, %starts: tensor<?xi64>, %parts: tensor<?x2xi64>, %c: tensor<1x2x?x64xf32>) {
  // CHECK: %[[P:.*]] = prefill.protect_rows %{{.*}} segment_starts(%{{.*}} : tensor<?xi64>) parts(%{{.*}} : tensor<?x2xi64>) bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  %p = prefill.protect_rows %ids segment_starts(%starts : tensor<?xi64>) parts(%parts : tensor<?x2xi64>) bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // CHECK: prefill.key_norm %{{.*}} : tensor<1x2x?x64xf32> -> tensor<1x?xf32>
  %score = prefill.key_norm %q : tensor<1x2x?x64xf32> -> tensor<1x?xf32>
  // CHECK: %[[R:.*]] = prefill.select_rows %{{.*}} protect(%[[P]] : tensor<?x?xi1>) segment_starts(%{{.*}} : tensor<?xi64>) keep 1.000000e+00 {round_down, topk = 64 : i64} : tensor<1x?xf32> -> tensor<1x?xi64>
  %r = prefill.select_rows %score protect(%p : tensor<?x?xi1>) segment_starts(%starts : tensor<?xi64>) keep 1.0 {round_down, topk = 64 : i64} : tensor<1x?xf32> -> tensor<1x?xi64>
  // CHECK: prefill.attention {{.*}} cache(%{{.*}} : {{.*}}) kept(%[[R]] : tensor<1x?xi64>) {causal
  %o, %k, %v = prefill.attention %q, %q, %q segment_starts(%starts : tensor<?xi64>) cache(%c, %c, %parts : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<?x2xi64>) kept(%r : tensor<1x?xi64>) {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>
  return
}
