// RUN: prefill-opt %s -split-input-file -verify-diagnostics

func.func @heads(%q: tensor<1x9x?x64xf32>, %k: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{kv_heads must divide q_heads}}
  %o = prefill.attention %q, %k, %k {q_heads = 9 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x9x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x9x?x64xf32>
  return
}

// -----

func.func @head_dim(%q: tensor<1x2x?x32xf32>) {
  // expected-error @+1 {{q has head dimension 32, expected 64}}
  %o = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x32xf32>, tensor<1x2x?x32xf32>, tensor<1x2x?x32xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @layout(%q: tensor<1x?x128xf32>) {
  // expected-error @+1 {{q of rank 3 needs the layout bshd}}
  %o = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x?x128xf32>, tensor<1x?x128xf32>, tensor<1x?x128xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @type(%q: tensor<1x2x?x64xi8>) {
  // expected-error @+1 {{q must have f32, f16 or bf16 elements}}
  %o = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xi8>, tensor<1x2x?x64xi8>, tensor<1x2x?x64xi8> -> tensor<1x2x?x64xi8>
  return
}

// -----

func.func @result(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{o must be a tensor of rank 3 or 4}}
  %o = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<*xf32>
  return
}

// -----

func.func @alignment(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{needs q_offset or q_positions exactly with alignment operand}}
  %o = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32, alignment = #prefill<align operand>}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @rotated_k(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{has rotated_k only with rotary}}
  %o, %k = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> rotated_k : tensor<1x2x?x64xf32>
  return
}

// -----

func.func @rotary(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{needs cos and sin exactly with rotary}}
  %o = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32, rotary = #prefill<rotary half>, rotary_dim = 64 : i64}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @window(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{window_left must not be negative}}
  %o = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32, window_left = -1 : i64}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @both_right(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{causal already says window_right = 0}}
  %o = prefill.attention %q, %q, %q {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32, window_right = 3 : i64}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @softcap(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{softcap must be a positive number}}
  %o = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32, softcap = 0.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @axis(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{columns must run along the column axis, got block}}
  %c, %d = prefill.score.last_rows %q, %q rows 64 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>, <diagonal>
  return
}

// -----

func.func @rule(%q: tensor<1x2x?x64xf32>) {
  %s = prefill.score.pooled %q, %q : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // expected-error @+1 {{needs exactly one of top_k, density, top_p and threshold}}
  %b = prefill.select %s {top_k = 4 : i64, density = 0.5 : f32} : <block> -> <block>
  return
}

// -----

func.func @top_p(%q: tensor<1x2x?x64xf32>) {
  %s = prefill.score.pooled %q, %q : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // expected-error @+1 {{top_p and threshold need scores that are shares of mass}}
  %b = prefill.select %s {top_p = 0.5 : f32} : <block> -> <block>
  return
}

// -----

func.func @threshold_range(%q: tensor<1x2x?x64xf32>) {
  %s = prefill.score.sampled %q, %q stride 8 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // expected-error @+1 {{threshold must be in (0, 1]}}
  %b = prefill.select %s {threshold = 0.0 : f32} : <block> -> <block>
  return
}

// -----

func.func @threshold_axis(%q: tensor<1x2x?x64xf32>) {
  %c, %d = prefill.score.last_rows %q, %q rows 64 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <column>, <diagonal>
  // expected-error @+1 {{threshold, init and near need block scores}}
  %b = prefill.select %c {top_k = 4 : i64, near = 64 : i64} : <column> -> <column>
  return
}

// -----

func.func @min_tokens(%q: tensor<1x2x?x64xf32>) {
  %s = prefill.score.sampled %q, %q stride 8 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // expected-error @+1 {{min_tokens needs column or diagonal scores}}
  %b = prefill.select %s {top_p = 0.5 : f32, min_tokens = 5 : i64} : <block> -> <block>
  return
}

// -----

func.func @near(%q: tensor<1x2x?x64xf32>) {
  %s = prefill.score.sampled %q, %q stride 8 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // expected-error @+1 {{attribute 'near' failed to satisfy constraint}}
  %b = prefill.select %s {top_p = 0.5 : f32, near = -1 : i64} : <block> -> <block>
  return
}

// -----

func.func @bits(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{bits must be 4 or 8}}
  %s = prefill.score.quantized %q, %q bits 5 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  return
}

// -----

func.func @reference(%q: tensor<1x2x?x64xf32>) {
  %s = prefill.score.quantized %q, %q bits 8 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // expected-error @+1 {{threshold goes with quantised scores that have a reference}}
  %b = prefill.select %s {threshold = 0.5 : f32} : <block> -> <block>
  return
}

// -----

func.func @sampled(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{stride must be 1, 2, 4, 8, 16, 32 or 64}}
  %s = prefill.score.sampled %q, %q stride 3 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  return
}

// -----

func.func @compressed(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{every must be at most keys}}
  %s = prefill.score.compressed %q, %q keys 16 every 32 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  return
}

// -----

func.func @guard(%q: tensor<1x2x?x64xf32>) {
  %s = prefill.score.sampled %q, %q stride 8 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  %b = prefill.select %s {top_p = 0.5 : f32} : <block> -> <block>
  // expected-error @+1 {{below must be in (0, 1]}}
  %g = prefill.keep_dissimilar %b, %q, %q below 2.0 : <block>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  return
}

// -----

func.func @agreeing(%q: tensor<1x2x?x64xf32>) {
  %c, %d = prefill.score.last_rows %q, %q rows 64 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <column>, <diagonal>
  %s = prefill.score.pooled %q, %q : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  %i = prefill.index.dense
  // expected-error @+1 {{columns must run along the column axis, got diagonal}}
  %j = prefill.index.agreeing %d, %s below 0.1 ? %i : %i : <diagonal>, <block>
  return
}

// -----

func.func @strided(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{attribute 'stride' failed to satisfy constraint}}
  %i = prefill.index.strided init 64 local 64 stride 0
  return
}

// -----

func.func @boundary(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{columns must run along the column axis, got diagonal}}
  %c, %d = prefill.score.boundary %q, %q modality(%q : tensor<1x2x?x64xf32>) rows 64 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <diagonal>, <diagonal>
  return
}

// -----

func.func @grid(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{scores must run along the grid axis, got block}}
  %s = prefill.score.grid %q, %q rows 64 init 4 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  return
}

// -----

func.func @gridSelection(%q: tensor<1x2x?x64xf32>) {
  %s = prefill.score.grid %q, %q rows 64 init 4 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <grid>
  // expected-error @+1 {{one of grid scores is kept, by top_k = 1 or top_p}}
  %b = prefill.select %s {top_k = 2 : i64} : <grid> -> <grid>
  return
}

// -----

func.func @stride(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{stride must be 2, 4, 8, 16, 32 or 64}}
  %s = prefill.score.antidiagonal %q, %q stride 12 : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  return
}

// -----

func.func @density(%q: tensor<1x2x?x64xf32>) {
  %s = prefill.score.pooled %q, %q : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> <block>
  // expected-error @+1 {{density must be in (0, 1]}}
  %b = prefill.select %s {density = 1.5 : f32} : <block> -> <block>
  return
}

// -----

func.func @choice() {
  %a = prefill.index.a_shape init 1 local 1
  // expected-error @+1 {{head choice 1 is not one of the 1 operands}}
  %i = prefill.index.per_head %a heads [0, 1]
  return
}

// -----

func.func @choices(%q: tensor<1x2x?x64xf32>) {
  %a = prefill.index.a_shape init 1 local 1
  %i = prefill.index.per_head %a heads [0]
  // expected-error @+1 {{index chooses for 1 heads, the attention has 2}}
  %o = prefill.sparse_attention %q, %q, %q, %i {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @skip() {
  %i = prefill.index.dense
  // expected-error @+1 {{below is not between 0 and 1}}
  %j = prefill.index.skip %i below 1.0
  return
}

// -----

func.func @cache_alone(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %s: tensor<1x2xi64>) {
  // expected-error @+1 {{takes a cache only with segment_starts}}
  %o, %a, %b = prefill.attention %q, %q, %q cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>
  return
}

// -----

func.func @cache_without_present(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>) {
  // expected-error @+1 {{has present exactly with a cache}}
  %o = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @cache_of_other_heads(%q: tensor<1x2x?x64xf32>, %c: tensor<1x3x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>) {
  // expected-error @+1 {{past_k has 3 heads, expected 2}}
  %o, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x3x99x64xf32>, tensor<1x3x99x64xf32>, tensor<1x2xi64>) {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x3x99x64xf32>, tensor<1x3x99x64xf32>
  return
}

// -----

func.func @cache_of_another_size(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>) {
  // expected-error @+1 {{present must have the types of the cache}}
  %o, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x98x64xf32>
  return
}

// -----

func.func @unprotected(%score: tensor<?x?xf32>) {
  // expected-error @+1 {{needs protect: a selection without protected rows may drop the system prompt}}
  %rows = prefill.select_rows %score keep 0.5 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @protected_by_anything(%score: tensor<?x?xf32>, %mask: tensor<?x?xi1>) {
  // expected-error @+1 {{protect must come from prefill.protect_rows}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) keep 0.5 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @keep(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>) {
  %mask = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{keep must be in (0, 1]}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) keep 0.0 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @ranges(%ids: tensor<?x?xi64>) {
  // expected-error @+1 {{id_ranges must be from 0 on and ascending, got 5 to 3}}
  %mask = prefill.protect_rows %ids bos 4 last 1 {id_ranges = array<i64: 5, 3>} : tensor<?x?xi64> -> tensor<?x?xi1>
  return
}

// -----

func.func @last(%ids: tensor<?x?xi64>) {
  // expected-error @+1 {{attribute 'last' failed to satisfy constraint}}
  %mask = prefill.protect_rows %ids bos 4 last -1 : tensor<?x?xi64> -> tensor<?x?xi1>
  return
}

// -----

func.func @token_score(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{has token_score only if causal}}
  %o, %s = prefill.attention %q, %q, %q {q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> token_score : tensor<?x?xf32>
  return
}

// -----

func.func @no_rule(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{needs one rule: keep, or global and individual, or target}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>)  : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @two_rules(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{needs one rule: keep, or global and individual, or target}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) peak(%score : tensor<?x?xf32>) columns(%v : tensor<?x?xi1>) keep 0.5 global 0.5 individual 0.5 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @half_a_rule(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{needs one rule: keep, or global and individual, or target}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) peak(%score : tensor<?x?xf32>) columns(%v : tensor<?x?xi1>) global 0.5 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @no_columns(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{needs peak and columns with global}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) global 0.5 individual 0.5 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @columns_for_nothing(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{has peak and columns only with global}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) peak(%score : tensor<?x?xf32>) columns(%v : tensor<?x?xi1>) keep 0.5 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @thresholds(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{global and individual must be in [0, 1]}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) peak(%score : tensor<?x?xf32>) columns(%v : tensor<?x?xi1>) global 0.5 individual 1.5 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @score_positions(%q: tensor<1x2x?x64xf32>, %p: tensor<?xi64>) {
  // expected-error @+1 {{and with q_positions only without segment_starts}}
  %o, %s = prefill.attention %q, %q, %q q_positions(%p : tensor<?xi64>) segment_starts(%p : tensor<?xi64>) {causal, alignment = #prefill<align operand>, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> token_score : tensor<?x?xf32>
  return
}

// -----

func.func @marked_positions(%q: tensor<1x2x?x64xf32>, %p: tensor<?xi64>, %m: tensor<?x?xi1>) {
  // expected-error @+1 {{has score_rows only without segment_starts and q_positions}}
  %o, %s, %e = prefill.attention %q, %q, %q q_positions(%p : tensor<?xi64>) score_rows(%m : tensor<?x?xi1>) {causal, alignment = #prefill<align operand>, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> token_score : tensor<?x?xf32> token_peak : tensor<?x?xf32>
  return
}

// -----

func.func @peak(%q: tensor<1x2x?x64xf32>) {
  // expected-error @+1 {{has score_rows exactly with token_score and token_peak}}
  %o, %s, %p = prefill.attention %q, %q, %q {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> token_score : tensor<?x?xf32> token_peak : tensor<?x?xf32>
  return
}

// -----

func.func @nobody_asks(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 0 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{needs the last row protected: it is the one that asks}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) keep 0.5 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @no_shares(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{needs one rule}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) target 64 left 4 skip 1 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @no_left(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 0 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{needs one rule}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) shares(%score : tensor<?x?xf32>) target 64 skip 1 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @padded(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 0 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{with target is for images without padding, or for columns of one prompt}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) columns(%v : tensor<?x?xi1>) shares(%score : tensor<?x?xf32>) target 64 left 4 skip 1 : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @kept_without_a_cache(%q: tensor<1x2x?x64xf32>, %r: tensor<1x?xi64>) {
  // expected-error @+1 {{takes kept rows only with a cache}}
  %o = prefill.attention %q, %q, %q kept(%r : tensor<1x?xi64>) {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @topk(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>) {
  %mask = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{attribute 'topk' failed to satisfy constraint}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) keep 1.0 {topk = 0 : i64} : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @parts_with_padding(%ids: tensor<?x?xi64>, %parts: tensor<?x2xi64>, %starts: tensor<?xi64>) {
  // expected-error @+1 {{takes parts only with segment_starts and no padding}}
  %mask = prefill.protect_rows %ids alive(%ids : tensor<?x?xi64>) segment_starts(%starts : tensor<?xi64>) parts(%parts : tensor<?x2xi64>) bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  return
}

// -----

func.func @topk_of_thresholds(%score: tensor<?x?xf32>, %ids: tensor<?x?xi64>, %v: tensor<?x?xi1>) {
  %mask = prefill.protect_rows %ids bos 4 last 1 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{has topk and round_down only with keep}}
  %rows = prefill.select_rows %score protect(%mask : tensor<?x?xi1>) peak(%score : tensor<?x?xf32>) columns(%v : tensor<?x?xi1>) global 0.5 individual 0.5 {topk = 4 : i64} : tensor<?x?xf32> -> tensor<?x?xi64>
  return
}

// -----

func.func @merge_without_protection(%x: tensor<1x37x32xf32>, %p: tensor<?x?xi1>) {
  // expected-error @+1 {{protect must come from prefill.protect_rows}}
  %y, %r, %m = prefill.merge_windows %x protect(%p : tensor<?x?xi1>) grid 6 window 3 by 3 similarity 0.8 skip 1 : tensor<1x37x32xf32> -> tensor<1x?x32xf32>, tensor<?x?xi64>, tensor<1xi64>
  return
}

// -----

func.func @merge_of_parts(%x: tensor<1x37x32xf32>, %ids: tensor<?x?xi64>) {
  %p = prefill.protect_rows %ids bos 1 last 0 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{needs windows of several patches that divide the grid}}
  %y, %r, %m = prefill.merge_windows %x protect(%p : tensor<?x?xi1>) grid 6 window 4 by 3 similarity 0.8 skip 1 : tensor<1x37x32xf32> -> tensor<1x?x32xf32>, tensor<?x?xi64>, tensor<1xi64>
  return
}

// -----

func.func @merge_of_everything(%x: tensor<1x37x32xf32>, %ids: tensor<?x?xi64>) {
  %p = prefill.protect_rows %ids bos 1 last 0 : tensor<?x?xi64> -> tensor<?x?xi1>
  // expected-error @+1 {{similarity must be in [-1, 1]}}
  %y, %r, %m = prefill.merge_windows %x protect(%p : tensor<?x?xi1>) grid 6 window 3 by 3 similarity 1.5 skip 1 : tensor<1x37x32xf32> -> tensor<1x?x32xf32>, tensor<?x?xi64>, tensor<1xi64>
  return
}

// -----

func.func @flow_of_a_class_token(%q: tensor<1x2x?x64xf32>, %v: tensor<?x?xi1>) {
  // expected-error @+1 {{with columns is for a language model}}
  %a, %b = prefill.flow_score %q, %q, %q columns(%v : tensor<?x?xi1>) {cls, head_dim = 64 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 0.125 : f32} : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<?x?xf32>, tensor<?x?xf32>
  return
}

// -----

func.func @flow_rotated(%q: tensor<1x2x?x64xf32>, %t: tensor<?x32xf32>) {
  // expected-error @+1 {{has rotary and alive only with columns}}
  %a, %b = prefill.flow_score %q, %q, %q rotary(%t, %t : tensor<?x32xf32>, tensor<?x32xf32>) {head_dim = 64 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 0.125 : f32, rotary = #prefill<rotary half>, rotary_dim = 64 : i64} : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<?x?xf32>, tensor<?x?xf32>
  return
}
