/*===- estimate.c - Which heads of a call are sparse --------------*- C -*-===*\
|*
|* One item of work is one head: its pattern's estimator (estimate.h) fills its
|* index, and what the index visits is counted; a head for which that does not
|* pay runs dense. Then the columns of all heads are gathered, when their number
|* is known.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include "views.h"
#include <string.h>

/* Facts of a batch entry that do not depend on the head. */
typedef struct batch_work {
  pf_work dense;
  int64_t keys; /* last_key */
  bool usable;  /* plain causal self-attention with a non-negative offset */
} batch_work;

/* What the workers of the estimate share. */
typedef struct estimation {
  int64_t *heads; /* b * hq + h of those to estimate */
  int64_t count;
  batch_work *batch;
  char *storage;          /* of the indices */
  int64_t storage_bytes;  /* per head */
  int64_t column_room;    /* columns that fit a head's storage */
  int64_t most_distances; /* of any batch entry */
} estimation;

/* Blocks and column tiles of all tiles of a head, exactly. */
static pf_work count_work(const pf_call *call, int64_t b,
                          const pf_head_index *index, uint64_t *kept,
                          int32_t *columns) {
  const pf_grid grid = pf_grid_of(call, b);
  const uint8_t *state = call->batch[b].state;
  pf_work work = {0};
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    const pf_span span = pf_visible_span(call, b, tile);
    if (span.begin == span.end)
      continue;
    ++work.tiles;
    memset(kept, 0, (size_t)pf_words(call->blocks) * 8);
    pf_index_row(index, &grid, tile, span.begin, span.end, kept);
    for (int64_t block = span.begin; block < span.end; ++block)
      work.blocks += pf_get_bit(kept, block) &&
                     !(state && state[block] == PF_BLOCK_HIDDEN);
    if (index->mode == PF_HEAD_RELATIVE && index->columns &&
        tile < index->dense_tile) {
      int64_t first;
      work.column_tiles +=
          pf_ceil_div(pf_index_columns(index, &grid, span.begin, span.end, kept,
                                       columns, &first),
                      call->bk);
    }
  }
  return work;
}

/*===-- one head ---------------------------------------------------------===*/

/* NULL: dense, or unknown to this runtime. */
static const pf_pattern *pattern_of(const prefill_head_plan *plan) {
  switch (plan->pattern) {
  case PREFILL_PATTERN_A_SHAPE:
  case PREFILL_PATTERN_TRI_SHAPE:
  case PREFILL_PATTERN_STRIDED:
    return &pf_pattern_static;
  case PREFILL_PATTERN_VERTICAL_SLASH:
    return &pf_pattern_vertical_slash;
  case PREFILL_PATTERN_BLOCK_SPARSE:
    return &pf_pattern_block_sparse;
  case PREFILL_PATTERN_XATTENTION:
    return &pf_pattern_xattention;
  case PREFILL_PATTERN_SAMPLED:
    return &pf_pattern_sampled;
  case PREFILL_PATTERN_FLEXPREFILL:
    return &pf_pattern_flexprefill;
  case PREFILL_PATTERN_SALE:
    return &pf_pattern_sale;
  case PREFILL_PATTERN_INFLLM_V2:
    return &pf_pattern_infllm;
  case PREFILL_PATTERN_GRID:
    return &pf_pattern_grid;
  case PREFILL_PATTERN_Q_BOUNDARY:
  case PREFILL_PATTERN_2D_BOUNDARY:
    return &pf_pattern_boundary;
  default:
    return NULL;
  }
}

int64_t pf_all_ids(const pf_call *call, const pf_grid *grid,
                   const prefill_head_plan *plan, const pf_work *dense) {
  (void)call, (void)grid, (void)plan;
  return dense->blocks;
}

static const prefill_head_plan *plan_of(const pf_call *call, int64_t head) {
  return &call->desc->plan->heads[head % call->hq];
}

/* A worker's memory; base may be any address to learn the size. */
typedef struct worker_memory {
  uint64_t *chosen, *distances, *kept;
  int32_t *keys;
  char *guard, *scratch;
} worker_memory;

/* Does a guard go with the plan? Only lists of blocks have room for what it
 * keeps. */
static bool has_guard(const prefill_head_plan *plan) {
  const pf_pattern *pattern = pattern_of(plan);
  return pattern && pattern->ids && plan->similarity > 0;
}

static bool any_guard(const pf_call *call) {
  for (int64_t h = 0; h < call->hq; ++h)
    if (has_guard(&call->desc->plan->heads[h]))
      return true;
  return false;
}

static worker_memory lay_out(const pf_call *call, char *base) {
  const int64_t bits = call->estimation->most_distances + call->t;
  worker_memory m;
  char *at = base;
  m.chosen = pf_take(&at, pf_words(bits), sizeof(uint64_t));
  m.distances = pf_take(&at, pf_words(bits), sizeof(uint64_t));
  m.kept = pf_take(&at, pf_words(bits), sizeof(uint64_t));
  m.keys = pf_take(&at, call->t + call->bk, sizeof(int32_t));
  m.guard = pf_take(&at, any_guard(call) ? pf_guard_bytes(call) : 0, 1);
  m.scratch = at;
  return m;
}

/* Bytes of it, for any pattern. */
static int64_t worker_bytes(const pf_call *call) {
  static char anchor[1];
  const prefill_plan *plan = call->desc->plan;
  int64_t most = 0;
  for (int64_t h = 0; h < call->hq; ++h) {
    const prefill_head_plan *head = &plan->heads[h];
    const pf_pattern *pattern = pattern_of(head);
    if (pattern && pattern->scratch &&
        (!pattern->fits || pattern->fits(call, head)))
      most = pf_max(
          most, pattern->scratch(call, head, call->estimation->most_distances));
  }
  return lay_out(call, anchor).scratch - anchor + most;
}

static void estimate_body(pf_call *call, void *worker, int64_t item) {
  const estimation *e = call->estimation;
  const int64_t head = e->heads[item], b = head / call->hq;
  const worker_memory m = lay_out(call, worker);
  pf_estimate estimate = {.call = call,
                          .b = b,
                          .h = head % call->hq,
                          .batch = &call->batch[b],
                          .plan = plan_of(call, head),
                          .dense = &e->batch[b].dense,
                          .grid = pf_grid_of(call, b),
                          .index = &call->index[head],
                          .storage = e->storage + item * e->storage_bytes,
                          .columns = e->column_room,
                          .chosen = m.chosen,
                          .distances = m.distances,
                          .keys = m.keys,
                          .scratch = m.scratch};
  if (has_guard(estimate.plan))
    estimate.guard =
        pf_guard_of(call, b, estimate.h, estimate.plan->similarity, m.guard);
  pattern_of(estimate.plan)->estimate(&estimate);
  if (call->desc->plan->dense_below >= 0)
    return;
  pf_work sparse;
  if (estimate.index->mode == PF_HEAD_VIEWS) {
    char *at = m.scratch; /* the estimate is done with it */
    pf_strip_keys keys = pf_take_strip_keys(call, &at);
    sparse = pf_views_work(estimate.index, call, b, &keys);
  } else {
    sparse = count_work(call, b, estimate.index, m.kept, m.keys);
  }
  if (!pf_worth_running(estimate.dense, &sparse))
    estimate.index->mode = PF_HEAD_DENSE;
}

/* The head whose index head h of the call has: itself, or an earlier one of its
 * KV head. */
static int64_t leader_of(const pf_call *call, int64_t h) {
  const prefill_head_plan *plans = call->desc->plan->heads;
  const pf_pattern *pattern = pattern_of(&plans[h]);
  if (!pattern || !pattern->per_kv_head)
    return h;
  int64_t leader = h - h % call->group;
  while (memcmp(&plans[leader], &plans[h], sizeof(plans[h])) != 0)
    ++leader;
  return leader;
}

/* Are single keys of a head gathered once for all of its rows? */
static bool has_columns(const pf_head_index *index) {
  return index->columns &&
         (index->mode == PF_HEAD_RELATIVE || index->mode == PF_HEAD_VIEWS);
}

/* Gathers the columns of one head, padded with zeros to a multiple of bk. */
static void gather_body(pf_call *call, void *worker, int64_t item) {
  (void)worker;
  const estimation *e = call->estimation;
  const int64_t head = e->heads[item], b = head / call->hq;
  const int64_t kv_head = head % call->hq / call->group;
  pf_head_index *index = &call->index[head];
  if (!has_columns(index))
    return;
  const int64_t k_bytes = call->d * call->element;
  const int64_t v_bytes = call->e * call->element;
  const char *k = call->k.data +
                  (b * call->k.batch + kv_head * call->k.head) * call->element;
  const char *v = call->v.data +
                  (b * call->v.batch + kv_head * call->v.head) * call->element;
  char *k_out = index->col_k, *v_out = index->col_v;
  for (int64_t i = 0; i < index->columns; ++i) {
    const int64_t j = index->column[i];
    memcpy(k_out + i * k_bytes, k + j * call->k.row * call->element,
           (size_t)k_bytes);
    memcpy(v_out + i * v_bytes, v + j * call->v.row * call->element,
           (size_t)v_bytes);
  }
  const int64_t padding =
      pf_round_up(index->columns, call->bk) - index->columns;
  memset(k_out + index->columns * k_bytes, 0, (size_t)(padding * k_bytes));
  memset(v_out + index->columns * v_bytes, 0, (size_t)(padding * v_bytes));
}

/*===-- the call ---------------------------------------------------------===*/

/* Dense work of a batch entry by its masks of positions. */
static batch_work measure_batch(const pf_call *call, int64_t b) {
  const pf_batch *batch = &call->batch[b];
  const pf_grid grid = pf_grid_of(call, b);
  batch_work work = {.keys = batch->last_key};
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    const pf_span span = pf_visible_span(call, b, tile);
    if (span.begin == span.end)
      continue;
    ++work.dense.tiles;
    work.dense.blocks += pf_count_visible(call, b, &span);
  }
  work.usable = batch->offset >= 0 && batch->offset < batch->last_key &&
                pf_max_distance(&grid) < PF_MAX_INDEX_BLOCKS;
  return work;
}

/* Does the plan ask for a sparse head here, and is it worth while? */
static bool wants_sparse(const pf_call *call, const prefill_head_plan *plan,
                         const batch_work *work) {
  const int32_t dense_below = call->desc->plan->dense_below;
  const pf_pattern *pattern = pattern_of(plan);
  if (!work->usable || !pattern ||
      (pattern->fits && !pattern->fits(call, plan)))
    return false;
  if (plan->density >= 1)
    return false;
  if (dense_below >= 0)
    return work->keys >= dense_below;
  return pf_worth_estimating(call, plan, &work->dense, work->keys);
}

/* Calls every `prepare` of the patterns in use once, with the heads of all
 * patterns that have it. */
static prefill_status prepare_patterns(pf_call *call, const estimation *e) {
  int64_t *heads = pf_alloc(call, e->count, sizeof(int64_t));
  if (!heads)
    return PREFILL_OUT_OF_MEMORY;
  for (int64_t first = 0; first < e->count; ++first) {
    const pf_pattern *pattern = pattern_of(plan_of(call, e->heads[first]));
    if (!pattern->prepare)
      continue;
    bool done = false;
    int64_t count = 0;
    for (int64_t i = 0; i < e->count; ++i)
      if (pattern_of(plan_of(call, e->heads[i]))->prepare == pattern->prepare) {
        done |= i < first;
        heads[count++] = e->heads[i];
      }
    if (done)
      continue;
    const prefill_status status = pattern->prepare(call, heads, count);
    if (status)
      return status;
  }
  return PREFILL_OK;
}

prefill_status pf_build_index(pf_call *call) {
  const prefill_plan *plan = call->desc->plan;
  if (!plan || call->s <= 1 || !call->t || call->blocks >= PF_MAX_INDEX_BLOCKS)
    return PREFILL_OK;
  if (!call->causal || call->window_right != 0 ||
      call->desc->features & (PREFILL_TILE_BIAS | PREFILL_TILE_SEGMENTS))
    return PREFILL_OK;
  const int64_t heads = call->b * call->hq;
  estimation e = {0};
  if (!(e.batch = pf_alloc(call, call->b, sizeof(batch_work))) ||
      !(e.heads = pf_alloc(call, heads, sizeof(int64_t))))
    return PREFILL_OUT_OF_MEMORY;
  for (int64_t b = 0; b < call->b; ++b) {
    e.batch[b] = measure_batch(call, b);
    const pf_grid grid = pf_grid_of(call, b);
    e.most_distances = pf_max(e.most_distances, pf_max_distance(&grid) + 1);
    for (int64_t h = 0; h < call->hq; ++h) {
      const prefill_head_plan *head = &plan->heads[h];
      if (leader_of(call, h) != h || !wants_sparse(call, head, &e.batch[b]))
        continue;
      e.heads[e.count++] = b * call->hq + h;
      const pf_pattern *pattern = pattern_of(head);
      int64_t bytes;
      if (pattern->bytes) {
        bytes = pattern->bytes(call, head);
      } else if (pattern->ids) {
        bytes = pf_blocks_bytes(
            &grid, pattern->ids(call, &grid, head, &e.batch[b].dense));
      } else {
        const int64_t columns =
            pattern->columns ? pattern->columns(call, head) : 0;
        e.column_room = pf_max(e.column_room, columns);
        bytes = pf_relative_bytes(&grid, columns);
      }
      e.storage_bytes = pf_max(e.storage_bytes, pf_round_up(bytes, 64));
    }
  }
  if (!e.count)
    return PREFILL_OK;
  /* Every head's storage has room for the longest column list. */
  for (int64_t b = 0; b < call->b; ++b) {
    const pf_grid grid = pf_grid_of(call, b);
    e.storage_bytes =
        pf_max(e.storage_bytes,
               pf_round_up(pf_relative_bytes(&grid, e.column_room), 64));
  }
  call->index = pf_alloc(call, heads, sizeof(pf_head_index));
  e.storage = call->index ? pf_alloc(call, e.count, e.storage_bytes) : NULL;
  if (!e.storage)
    return PREFILL_OUT_OF_MEMORY;
  memset(call->index, 0, (size_t)heads * sizeof(pf_head_index));
  call->estimation = &e;
  const double work = (double)e.count * (double)call->t * (double)call->d *
                      2.0 * (double)call->bq;
  prefill_status status = prepare_patterns(call, &e);
  if (!status)
    status =
        pf_parallel(call, e.count, work, worker_bytes(call), estimate_body);
  if (status)
    return status;

  for (int64_t b = 0; b < call->b; ++b)
    for (int64_t h = 0; h < call->hq; ++h)
      call->index[b * call->hq + h] =
          call->index[b * call->hq + leader_of(call, h)];

  /* Now the numbers of columns are known. */
  int64_t rows = 0;
  for (int64_t i = 0; i < e.count; ++i) {
    const pf_head_index *index = &call->index[e.heads[i]];
    if (has_columns(index)) {
      rows += pf_round_up(index->columns, call->bk);
      call->most_columns = pf_max(call->most_columns, index->columns);
    }
  }
  if (!rows)
    return PREFILL_OK;
  const int64_t row_bytes = (call->d + call->e) * call->element;
  char *gathered = pf_alloc(call, rows, row_bytes);
  if (!gathered)
    return PREFILL_OUT_OF_MEMORY;
  for (int64_t i = 0; i < e.count; ++i) {
    pf_head_index *index = &call->index[e.heads[i]];
    if (!has_columns(index))
      continue;
    const int64_t n = pf_round_up(index->columns, call->bk);
    index->col_k = gathered;
    index->col_v = gathered + n * call->d * call->element;
    gathered += n * row_bytes;
  }
  status = pf_parallel(call, e.count, (double)rows * (double)row_bytes, 0,
                       gather_body);
  call->estimation = NULL;
  return status;
}
