// RUN: prefill-opt %s -split-input-file -verify-diagnostics

// `contexts` of prefill.attention.

func.func @contexts_without_a_cache(%q: tensor<1x2x?x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>) {
  // expected-error @+1 {{takes contexts only if causal and with a cache}}
  %o = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) contexts(%s : tensor<1x2xi64>) {causal, context_temperature = 0.9 : f32, context_scale = 0.9 : f32, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>
  return
}

// -----

func.func @contexts_without_numbers(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>, %f: tensor<1x2xf32>) {
  // expected-error @+1 {{has context_temperature exactly with contexts}}
  %o, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) contexts(%s : tensor<1x2xi64>) {causal, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>
  return
}

// -----

func.func @numbers_without_contexts(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>, %f: tensor<1x2xf32>) {
  // expected-error @+1 {{has context_scale exactly with contexts}}
  %o, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) {causal, context_scale = 0.9 : f32, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>
  return
}

// -----

func.func @contexts_negative(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>, %f: tensor<1x2xf32>) {
  // expected-error @+1 {{context_scale must be a positive number}}
  %o, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) contexts(%s : tensor<1x2xi64>) {causal, context_temperature = 0.9 : f32, context_scale = -0.9 : f32, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>
  return
}

// -----

func.func @contexts_zero(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>, %f: tensor<1x2xf32>) {
  // expected-error @+1 {{context_temperature must be a positive number}}
  %o, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) contexts(%s : tensor<1x2xi64>) {causal, context_temperature = 0.0 : f32, context_scale = 0.9 : f32, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>
  return
}

// -----

func.func @contexts_nan(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>, %f: tensor<1x2xf32>) {
  // expected-error @+1 {{context_temperature must be a positive number}}
  %o, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) contexts(%s : tensor<1x2xi64>) {causal, context_temperature = 0x7FC00000 : f32, context_scale = 0.9 : f32, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>
  return
}

// -----

func.func @contexts_and_lse(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>, %f: tensor<1x2xf32>) {
  // expected-error @+1 {{takes contexts only without window_left, sinks and lse}}
  %o, %l, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) contexts(%s : tensor<1x2xi64>) {causal, context_temperature = 0.9 : f32, context_scale = 0.9 : f32, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32>, tensor<1x2x?xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>
  return
}

// -----

func.func @contexts_of_floats(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>, %f: tensor<1x2xf32>) {
  // expected-error @+1 {{contexts must be [n,2] of i64}}
  %o, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) contexts(%f : tensor<1x2xf32>) {causal, context_temperature = 0.9 : f32, context_scale = 0.9 : f32, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>
  return
}

// -----

func.func @contexts_and_window(%q: tensor<1x2x?x64xf32>, %c: tensor<1x2x99x64xf32>, %n: tensor<2xi64>, %s: tensor<1x2xi64>, %f: tensor<1x2xf32>) {
  // expected-error @+1 {{takes contexts only without window_left}}
  %o, %a, %b = prefill.attention %q, %q, %q segment_starts(%n : tensor<2xi64>) cache(%c, %c, %s : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>, tensor<1x2xi64>) contexts(%s : tensor<1x2xi64>) {causal, window_left = 3 : i64, context_temperature = 0.9 : f32, context_scale = 0.9 : f32, q_heads = 2 : i64, kv_heads = 2 : i64, head_dim = 64 : i64, v_head_dim = 64 : i64, scale = 1.0 : f32}
    : tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32>, tensor<1x2x?x64xf32> -> tensor<1x2x?x64xf32> present : tensor<1x2x99x64xf32>, tensor<1x2x99x64xf32>
  return
}
