/*===- cost.c - When is sparse attention worth while? -------------*- C -*-===*\
|*
|* One unit is the time of one dense block of the same kernel (block_q x block_k
|* scores with softmax and the product with V). The constants are ratios of
|* times on one machine (Zen 4, AVX-512, float32, d = 64), so that clock rates
|* and vector widths cancel. They were fitted to prefill-runtime-bench
|* --q-heads=3 --kv-heads=1, one thread, best of interleaved repeats: `dense` at
|* 64 to 8,192 keys gives the block and TILE, each pattern's `time`, `density`
|* and `estimate` at 1,024 to 8,192 its own. `prefill_plan::dense_below` >= 0
|* overrides all of this.
|*
\*===----------------------------------------------------------------------===*/
#include "sparse.h"

/* A tile of query rows: transposing Q and O and the call cost something, and
 * the diagonal's block, which every tile visits, is half hidden and costs less.
 */
#define TILE (-0.2)
/* A block that is visited through an index instead of in a row: its K and V are
 * not in the prefetcher's way. */
#define SPARSE_BLOCK 1.01
/* A tile of gathered columns: positions are compared for every one (0.98 to
 * 1.04). */
#define COLUMN_TILE 1.04
/* Listing blocks and columns of a sparse tile. */
#define SPARSE_TILE 0.12
/* Scores of the last rows, softmax, column and diagonal sums of bk keys, per bq
 * rows: half of a block's products, twice its exponentials. */
#define ESTIMATE_BLOCK 0.7
/* The same work without the generated score function. */
#define ESTIMATE_BLOCK_PORTABLE 0.9
/* Selection and merging per bk keys. */
#define SELECT_BLOCK 0.15
/* Handing work to other threads once more, both sides of it. */
#define FIXED 3.0
/* Pooling bk keys or bq queries. */
#define POOL_BLOCK 0.1
/* Scores of one tile against one block's mean, and selecting among them. */
#define POOLED_PAIR 0.0013
/* SpargeAttn's guard: cosines of bk keys or bq queries. */
#define GUARD_BLOCK 0.35
/* XAttention's scores of block_q strided rows against one block's, in bytes by
 * VNNI, times the stride. And quantising a tile's rows and a block's keys. */
#define STRIDED_PAIR 0.055
#define STRIDED_TILE 0.31
/* The attention of block_q sampled rows over one block: half of its products
 * and its exponentials. And selecting for a tile. */
#define SAMPLED_PAIR 0.55
#define SAMPLED_TILE 0.22
/* A tile's probabilities over the means that begin in one block, and packing
 * its rows. */
#define COMPRESSED_PAIR 0.043
#define COMPRESSED_TILE 0.28
/* Share of the blocks that a top-p, or SALE's threshold, keeps, beside a tile's
 * own. */
#define TOP_P_DENSITY 0.35

/* SALE's integer scores of one tile against one block with a compare per row,
 * and with exponentials, by VNNI; how much slower AVX2 is. */
#define QUANTIZED_PAIR 0.12
#define QUANTIZED_MASS_PAIR 0.18
#define QUANTIZED_WITHOUT_VNNI 3.0
/* Quantising bq queries and bk keys, the blocks that are partly visible, and
 * those that the others are compared with. */
#define QUANTIZED_TILE 0.95

/* Looking through the strides of a grid: all of them, and per bk keys. */
#define GRID_STRIDES 35.0
#define GRID_BLOCK 0.17

/* Sparse must be cheaper by this much: the model is not exact. */
#define MARGIN 0.95
/* An estimate may be in vain if it costs no more than this share of the dense
 * time: nothing may get more than 2 % slower. */
#define IN_VAIN 0.012

double pf_cost_dense(const pf_work *work) {
  return TILE * (double)work->tiles + (double)work->blocks;
}

double pf_cost_sparse(const pf_work *work) {
  return (TILE + SPARSE_TILE) * (double)work->tiles +
         SPARSE_BLOCK * (double)work->blocks +
         COLUMN_TILE * (double)work->column_tiles;
}

double pf_cost_estimate_sums(const pf_call *call, int64_t rows, int64_t keys) {
  const double blocks = (double)pf_ceil_div(keys, call->bk);
  const double groups = (double)pf_ceil_div(rows, call->bq);
  const double each =
      call->variant->score ? ESTIMATE_BLOCK : ESTIMATE_BLOCK_PORTABLE;
  return FIXED + blocks * (groups * each + SELECT_BLOCK);
}

double pf_cost_estimate_blocks(const pf_call *call, int64_t keys) {
  const double blocks = (double)pf_ceil_div(keys, call->bk);
  const double tiles = (double)call->tiles;
  return FIXED + POOL_BLOCK * (blocks + tiles) + POOLED_PAIR * blocks * tiles;
}

/* Blocks that groups of block_q strided or sampled rows are scored against: the
 * rows of `stride` tiles (or of all, if there are fewer) share every key that
 * the last of them sees. */
static double grouped_pairs(const prefill_head_plan *plan,
                            const pf_work *dense) {
  if (!dense->tiles)
    return 0;
  const double mean = (double)dense->blocks / (double)dense->tiles;
  const double side = (double)pf_min(plan->stride, dense->tiles);
  return (double)pf_ceil_div(dense->tiles, plan->stride) *
         (mean + (side - 1) / 2);
}

/* How much slower than by VNNI products of bytes are. */
static double without_vnni(const pf_call *call) {
  return call->hot->isa >= PREFILL_ISA_X86_64_V4 && pf_cpu_vnni()
             ? 1.0
             : QUANTIZED_WITHOUT_VNNI;
}

double pf_cost_estimate_strided(const pf_call *call,
                                const prefill_head_plan *plan,
                                const pf_work *dense) {
  return FIXED +
         without_vnni(call) * STRIDED_PAIR * grouped_pairs(plan, dense) +
         STRIDED_TILE * (double)dense->tiles;
}

double pf_cost_estimate_sampled(const prefill_head_plan *plan,
                                const pf_work *dense) {
  return FIXED + SAMPLED_PAIR * grouped_pairs(plan, dense) +
         SAMPLED_TILE * (double)dense->tiles;
}

double pf_cost_estimate_quantized(const pf_call *call,
                                  const prefill_head_plan *plan,
                                  const pf_work *dense) {
  const double pair = plan->top_p > 0 ? QUANTIZED_MASS_PAIR : QUANTIZED_PAIR;
  const double pairs = (double)dense->blocks / (double)pf_max(1, plan->stride);
  return FIXED + QUANTIZED_TILE * (double)dense->tiles +
         without_vnni(call) * pair * pairs;
}

double pf_cost_estimate_compressed(const pf_work *dense) {
  return FIXED + COMPRESSED_PAIR * (double)dense->blocks +
         COMPRESSED_TILE * (double)dense->tiles;
}

pf_work pf_predict_work(const pf_call *call, const prefill_head_plan *plan,
                        const pf_work *dense, int64_t keys, bool worst) {
  const int64_t tiles = dense->tiles, blocks = pf_ceil_div(keys, call->bk);
  const int64_t own = call->bq / call->bk + 1;
  /* A tile sees this many blocks on average. */
  const double mean = tiles ? (double)dense->blocks / (double)tiles : 0;
  pf_work work = {.tiles = tiles};
  double per_tile = 0, columns = 0;
  switch (plan->pattern) {
  case PREFILL_PATTERN_A_SHAPE:
  case PREFILL_PATTERN_TRI_SHAPE:
  case PREFILL_PATTERN_STRIDED:
    per_tile = (double)(pf_ceil_div(plan->init, call->bk) +
                        pf_ceil_div(plan->local, call->bk) + own);
    break;
  case PREFILL_PATTERN_Q_BOUNDARY:
  case PREFILL_PATTERN_2D_BOUNDARY: /* of the modality that keeps most */
  case PREFILL_PATTERN_VERTICAL_SLASH:
    if (plan->density > 0) {
      per_tile = (double)(pf_max(own + 2, 1) + 1);
      if (plan->density * mean > per_tile)
        per_tile = plan->density * mean;
    } else {
      /* Slashes come in runs: measured on attention of real models, 18 to 25 of
       * them share a block after merging. */
      const int64_t scattered = pf_max(0, plan->slash - PF_FORCED_DIAGONALS);
      per_tile = (double)(own + pf_ceil_div(PF_FORCED_DIAGONALS, call->bk));
      per_tile += worst ? 2.0 * (double)scattered : (double)scattered / 16;
      columns = (double)pf_min(keys, pf_max(plan->vertical, PF_FORCED_SINKS));
      /* On average half of the columns lie below a row; some are in kept
       * blocks. */
      columns *= worst ? 1.0 : 0.5;
    }
    break;
  case PREFILL_PATTERN_BLOCK_SPARSE:
    per_tile = plan->top_p > 0     ? worst ? mean : TOP_P_DENSITY * mean
               : plan->density > 0 ? plan->density * mean
                                   : plan->top_k;
    per_tile += (double)own;
    break;
  case PREFILL_PATTERN_XATTENTION:
  case PREFILL_PATTERN_SAMPLED:
  case PREFILL_PATTERN_FLEXPREFILL:
  case PREFILL_PATTERN_SALE:
    /* Measured on attention of real models; it may be all. */
    per_tile = worst ? mean : TOP_P_DENSITY * mean + (double)own;
    /* FlexPrefill: so many columns' blocks and so many distances in any case.
     */
    if (2.0 * (double)pf_ceil_div(plan->min_budget, call->bk) > per_tile)
      per_tile = 2.0 * (double)pf_ceil_div(plan->min_budget, call->bk);
    break;
  case PREFILL_PATTERN_GRID: {
    /* Each kind of line has one of `stride` keys, in whole blocks of views of
     * keys / stride rows. What a stride is chosen for is no more than half. */
    const double lines =
        (plan->slash != 0) + (plan->vertical != 0) + (plan->horizontal != 0);
    const double part =
        plan->stride > 0
            ? lines / (double)pf_max(1, pf_min(plan->stride, blocks))
        : worst ? 0.5
                : TOP_P_DENSITY;
    per_tile = part * mean + (double)own;
    break;
  }
  case PREFILL_PATTERN_INFLLM_V2:
    per_tile = (double)pf_max(plan->top_k,
                              pf_ceil_div(plan->init, call->bk) +
                                  pf_ceil_div(plan->local, call->bk) + own);
    break;
  default:
    return *dense;
  }
  if (per_tile > (double)blocks)
    per_tile = (double)blocks;
  /* Causal: the first tiles see fewer blocks than the budget. With n blocks at
   * the end of the prompt, a constant budget of k keeps k (2n - k) / n^2. */
  double kept = per_tile;
  if (mean > 0 && per_tile < (double)blocks && !(plan->density > 0)) {
    double share = per_tile / (double)blocks;
    kept = mean * share * (2 - share);
    if (call->s < keys / 2) /* a chunk: all of its tiles see much */
      kept = per_tile;
  }
  if (plan->pattern == PREFILL_PATTERN_STRIDED) /* of all that a tile sees */
    kept += mean / (double)plan->stride;
  if (kept > mean)
    kept = mean;
  work.blocks = (int64_t)(kept * (double)tiles);
  work.column_tiles =
      (int64_t)(columns / (double)call->bk * (double)tiles + 0.5);
  if (columns > 0 && work.column_tiles < tiles)
    work.column_tiles = tiles;
  return work;
}

double pf_cost_estimate(const pf_call *call, const prefill_head_plan *plan,
                        const pf_work *dense, int64_t keys, bool *bounded) {
  const int64_t last = pf_min(call->s, pf_max(plan->last, 1));
  double estimate = 0;
  *bounded = true;
  switch (plan->pattern) {
  case PREFILL_PATTERN_VERTICAL_SLASH:
    estimate = pf_cost_estimate_sums(call, last, keys);
    *bounded = plan->density > 0;
    break;
  case PREFILL_PATTERN_BLOCK_SPARSE:
    estimate = pf_cost_estimate_blocks(call, keys);
    *bounded = plan->top_p > 0;
    break;
  case PREFILL_PATTERN_XATTENTION: /* how much is kept is never known before */
    estimate = pf_cost_estimate_strided(call, plan, dense);
    break;
  case PREFILL_PATTERN_SAMPLED:
    estimate = pf_cost_estimate_sampled(plan, dense);
    break;
  case PREFILL_PATTERN_FLEXPREFILL:
    estimate = pf_cost_estimate_sums(call, last, keys) +
               pf_cost_estimate_blocks(call, keys) - FIXED;
    break;
  case PREFILL_PATTERN_SALE:
    estimate = pf_cost_estimate_quantized(call, plan, dense);
    break;
  case PREFILL_PATTERN_Q_BOUNDARY: /* depends on where modalities begin */
  case PREFILL_PATTERN_2D_BOUNDARY:
    estimate =
        (double)call->modalities * pf_cost_estimate_sums(call, last, keys);
    if (plan->pattern == PREFILL_PATTERN_2D_BOUNDARY) /* of every pair */
      estimate += (double)(call->modalities * (call->modalities - 1)) *
                  SELECT_BLOCK * (double)pf_ceil_div(keys, call->bk);
    break;
  case PREFILL_PATTERN_GRID:
    estimate = pf_cost_estimate_sums(call, last, keys);
    if (!plan->stride)
      estimate +=
          GRID_STRIDES + GRID_BLOCK * (double)pf_ceil_div(keys, call->bk);
    break;
  case PREFILL_PATTERN_INFLLM_V2:
    estimate = pf_cost_estimate_compressed(dense);
    break;
  default:
    estimate = FIXED / 2;
  }
  if (plan->similarity > 0)
    estimate +=
        GUARD_BLOCK * (double)(pf_ceil_div(keys, call->bk) + dense->tiles);
  return estimate;
}

bool pf_worth_estimating(const pf_call *call, const prefill_head_plan *plan,
                         const pf_work *dense, int64_t keys) {
  const double full = pf_cost_dense(dense);
  bool bounded;
  const double estimate = pf_cost_estimate(call, plan, dense, keys, &bounded);
  const pf_work likely = pf_predict_work(call, plan, dense, keys, false);
  if (estimate + pf_cost_sparse(&likely) > MARGIN * full)
    return false;
  if (bounded || estimate <= IN_VAIN * full)
    return true;
  const pf_work worst = pf_predict_work(call, plan, dense, keys, true);
  return estimate + pf_cost_sparse(&worst) <= MARGIN * full;
}

bool pf_worth_running(const pf_work *dense, const pf_work *sparse) {
  return pf_cost_sparse(sparse) <= pf_cost_dense(dense);
}
