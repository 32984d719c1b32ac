/*===- cost_device.c - Devices, and attention on them -------------*- C -*-===*\
|*
|* What prefill/cost.h offers on top of cost.c's constants.
|*
\*===----------------------------------------------------------------------===*/
#include "sparse.h"
#include <prefill/cost.h>

/* The CPU's rates are fitted to the dense column and the export's column of
 * benchmarks/results/end_to_end.json (SmolLM2-135M, 1,024 to 8,192 tokens, two
 * threads of a Zen 4 with AVX-512): `attention` is what the kernel benchmark
 * gives, `linear` follows from 1,024 tokens, `bytes` from the export, which
 * writes its score matrices to memory. */
static const prefill_device devices[] = {
    {"cpu", NULL,
     "measured on two threads of a Zen 4 with AVX-512, float32 "
     "(benchmarks/results)",
     1, 1, 64, 64, 108e9, 104e9, 104e9, 4.6e9, 12e9, 32e6},
    {"h100", "sm_90a",
     "not measured here: linear layers at the peak of bf16, 989 TFLOP/s (a "
     "lower bound of time); attention as published for FlashAttention-3, "
     "causal; memory by data sheet",
     0, 0, 128, 128, 989e12, 685e12, 473e12, 3.35e12, 3.35e12, 0},
    {"a100", "sm_80",
     "not measured here: everything at the peaks of bf16, 312 TFLOP/s, and of "
     "memory, 2 TB/s (a lower bound of time)",
     0, 0, 128, 128, 312e12, 312e12, 312e12, 2e12, 2e12, 0},
};

const prefill_device *prefill_device_at(size_t index) {
  return index < sizeof(devices) / sizeof(devices[0]) ? &devices[index] : NULL;
}

/* Tiles and visible blocks of a dense head. */
static pf_work dense_work(const prefill_cost_shape *shape) {
  pf_work work = {0};
  const int64_t bq = shape->block_q, bk = shape->block_k;
  const int64_t offset = shape->keys - shape->rows;
  for (int64_t row = 0; row < shape->rows; row += bq) {
    int64_t begin = 0, end = shape->keys;
    if (shape->causal)
      end = pf_min(end, offset + pf_min(row + bq, shape->rows));
    if (shape->window_left >= 0)
      begin = pf_max(0, offset + row - shape->window_left);
    if (begin >= end)
      continue;
    ++work.tiles;
    work.blocks += pf_ceil_div(end, bk) - begin / bk;
  }
  return work;
}

static void no_score(const prefill_score_args *args) { (void)args; }

void prefill_cost_attention(const prefill_cost_shape *shape,
                            const prefill_head_plan *plan, int32_t dense_below,
                            prefill_cost_units *units) {
  const pf_work dense = dense_work(shape);
  *units = (prefill_cost_units){.dense = pf_cost_dense(&dense),
                                .chosen = pf_cost_dense(&dense),
                                .visited = (double)dense.blocks,
                                .visible = (double)dense.blocks};
  /* A tile or less runs dense: an estimate would read as many keys. */
  if (!plan || plan->pattern == PREFILL_PATTERN_DENSE || plan->density >= 1 ||
      !shape->causal || dense.tiles < 2)
    return;
  /* A call of which the cost functions see what they look at. */
  const prefill_tile_variant variant = {.score = no_score};
  const pf_call call = {.variant = &variant,
                        .hot = pf_hot_for(pf_cpu_isa()),
                        .s = shape->rows,
                        .t = shape->keys,
                        .bq = shape->block_q,
                        .bk = shape->block_k,
                        .tiles = pf_ceil_div(shape->rows, shape->block_q),
                        .blocks = pf_ceil_div(shape->keys, shape->block_k),
                        .causal = true,
                        .modalities = 2};
  if (dense_below >= 0 ? shape->keys < dense_below
                       : !pf_worth_estimating(&call, plan, &dense, shape->keys))
    return;
  bool bounded;
  const pf_work likely =
      pf_predict_work(&call, plan, &dense, shape->keys, false);
  units->sparse = 1;
  units->estimate =
      pf_cost_estimate(&call, plan, &dense, shape->keys, &bounded);
  units->visited = (double)(likely.blocks + likely.column_tiles);
  units->chosen = units->estimate + pf_cost_sparse(&likely);
}
