/*===- estimate.c - What each sparse head visits ------------------*- C -*-===*\
|*
|* One item of work is one head. The patterns:
|*
|*   a-shape, tri-shape   no estimate (MInference, arXiv 2407.02490; the last
|*                        rows of tri-shape: TriangleMix,
sparse-patterns.md 1.5).
|*   vertical-slash       softmax of the last rows' scores over all visible
|*                        keys; its column sums choose single keys, its diagonal
|*                        sums choose diagonals (MInference, Algorithm 2).
|*   block-sparse         products of mean-pooled queries and keys, the best
|*                        blocks per tile of rows (MInference, Algorithm 3).
|*
|* Budgets: in MInference's token counts, or as a share of the blocks that dense
|* attention visits. For vertical-slash the share is spent on whatever explains
|* most of the last rows' attention per block of work: distances or columns.
|* A tile's own blocks are always visited.
|*
|* Everything is float32 and deterministic; heads share nothing.
|*
\*===----------------------------------------------------------------------===*/
#include "sparse.h"
#include <string.h>

/* Keys scored at a time: with 64 queries the scores take 64 KB. */
enum { CHUNK = 256 };
/* Scores of a whole row group are kept when they take no more than this;
 * beyond, they are computed twice. */
enum { RESIDENT_BYTES = 8 << 20 };
/* Stands for minus infinity where differences are taken. */
#define HIDDEN (-1e30f)

static void *take(char **at, int64_t count, int64_t size) {
  void *part = *at;
  *at += pf_round_up(count * size, 64);
  return part;
}
static bool get_bit(const uint64_t *bits, int64_t i) {
  return bits[i / 64] >> (i % 64) & 1;
}
static int64_t words(int64_t bits) { return bits / 64 + 1; }

static pf_grid grid_of(const pf_call *call, int64_t b) {
  return (pf_grid){.bq = call->bq,
                   .bk = call->bk,
                   .offset = call->batch[b].offset,
                   .tiles = call->tiles,
                   .blocks = call->blocks};
}

/*===-- column and diagonal sums -----------------------------------------===*/

typedef struct sums_memory {
  float *column, *diagonal_base, *scores, *q;
  float *most, *sum, *inverse, *factor, *fresh;
  char *rotated;
  float *rotary;
  void *workspace;
} sums_memory;

static bool scores_resident(const pf_call *call) {
  return call->t * call->bq * (int64_t)sizeof(float) <= RESIDENT_BYTES;
}

static sums_memory lay_out_sums(const pf_call *call, char *base,
                                int64_t *bytes) {
  sums_memory m;
  char *at = base;
  const int64_t lanes = call->bq, f = sizeof(float);
  m.column = take(&at, call->t, f);
  /* Rows past the end and keys in the future write below 0 and past t. */
  m.diagonal_base = take(&at, call->t + 2 * lanes, f);
  m.scores = take(&at, (scores_resident(call) ? call->t : CHUNK) * lanes, f);
  m.q = take(&at, call->d * lanes, f);
  m.most = take(&at, lanes, f);
  m.sum = take(&at, lanes, f);
  m.inverse = take(&at, lanes, f);
  m.factor = take(&at, lanes, f);
  m.fresh = take(&at, lanes, f);
  m.rotated = take(&at, call->rotary ? lanes * call->d : 0, call->element);
  m.rotary =
      take(&at, call->rotary ? 2 * (call->d + call->rotary_width) : 0, f);
  m.workspace = take(&at, (int64_t)call->variant->workspace_bytes, 1);
  *bytes = at - base;
  return m;
}

int64_t pf_estimate_bytes(const pf_call *call, int64_t last) {
  (void)last;
  static char anchor[1];
  int64_t bytes;
  lay_out_sums(call, anchor, &bytes);
  return bytes;
}

/* A group of up to bq query rows. */
typedef struct group {
  const pf_call *call;
  const pf_batch *batch;
  int64_t rows, position; /* of the first row */
  const char *q, *k;
  int64_t q_stride;
  bool softcap;
} group;

/* Scores against keys [begin, end) into out; what a row may not see becomes
 * HIDDEN. Key-major, bq lanes. */
static void masked_scores(const group *g, const sums_memory *m, int64_t begin,
                          int64_t end, float *out) {
  const pf_call *call = g->call;
  const int64_t lanes = call->bq;
  if (call->variant->score) {
    const prefill_score_args args = {.q = g->q,
                                     .k = g->k,
                                     .q_stride = g->q_stride,
                                     .k_stride = call->k.row,
                                     .rows = g->rows,
                                     .key_begin = begin,
                                     .key_end = end,
                                     .scale = call->scale,
                                     .out = out,
                                     .workspace = m->workspace};
    call->variant->score(&args);
  } else {
    call->hot->score(out, m->q, lanes, call->d,
                     g->k + begin * call->k.row * call->element, call->k.row,
                     end - begin, call->desc->dtype);
  }
  if (g->softcap)
    call->hot->softcap(out, call->desc->softcap, (end - begin) * lanes);
  const uint8_t *mask = g->batch->key_mask;
  if (mask)
    for (int64_t j = begin; j < end; ++j)
      if (!mask[j])
        for (int64_t i = 0; i < lanes; ++i)
          out[(j - begin) * lanes + i] = HIDDEN;
  /* Causal: key j is hidden from rows at positions below j. */
  for (int64_t j = pf_max(begin, g->position + 1); j < end; ++j)
    for (int64_t i = 0; i < pf_min(lanes, j - g->position); ++i)
      out[(j - begin) * lanes + i] = HIDDEN;
  /* Window: key j is hidden from rows past j + window_left. */
  if (call->window)
    for (int64_t j = begin; j < end; ++j) {
      int64_t from = j + call->window_left - g->position + 1;
      if (from >= lanes)
        break;
      for (int64_t i = pf_max(from, 0); i < lanes; ++i)
        out[(j - begin) * lanes + i] = HIDDEN;
    }
}

static void add_group(const group *g, const sums_memory *m) {
  const pf_call *call = g->call;
  const pf_hot *hot = call->hot;
  const int64_t lanes = call->bq;
  const bool resident = scores_resident(call);
  const int64_t last = g->position + g->rows - 1;
  int64_t begin = g->batch->first_key;
  if (call->window)
    begin = pf_max(begin, g->position - call->window_left);
  const int64_t end = pf_min(g->batch->last_key, last + 1);
  if (!call->variant->score) {
    /* Transposed and scaled, lanes past the end 0. */
    float *row = m->scores; /* free so far; at least CHUNK * lanes floats */
    memset(m->q, 0, (size_t)(call->d * lanes) * sizeof(float));
    for (int64_t i = 0; i < g->rows; ++i)
      for (int64_t c = 0; c < call->d; c += CHUNK) {
        int64_t count = pf_min(CHUNK, call->d - c);
        hot->to_float(row, g->q + (i * g->q_stride + c) * call->element, 1,
                      count, call->desc->dtype);
        for (int64_t x = 0; x < count; ++x)
          m->q[(c + x) * lanes + i] = row[x] * call->scale;
      }
  }
  for (int64_t i = 0; i < lanes; ++i) {
    m->most[i] = HIDDEN;
    m->sum[i] = 0;
  }
  /* Row maxima and sums of exponentials, chunk by chunk. */
  for (int64_t j = begin; j < end; j += CHUNK) {
    const int64_t n = pf_min(CHUNK, end - j);
    float *scores = m->scores + (resident ? (j - begin) * lanes : 0);
    masked_scores(g, m, j, j + n, scores);
    memcpy(m->fresh, m->most, (size_t)lanes * sizeof(float));
    hot->row_max(m->fresh, scores, lanes, n);
    memset(m->factor, 0, (size_t)lanes * sizeof(float));
    hot->exp_sum(m->factor, m->most, m->fresh, lanes, 1);
    for (int64_t i = 0; i < lanes; ++i)
      m->sum[i] *= m->factor[i];
    memcpy(m->most, m->fresh, (size_t)lanes * sizeof(float));
    hot->exp_sum(m->sum, scores, m->most, lanes, n);
  }
  for (int64_t i = 0; i < lanes; ++i)
    m->inverse[i] =
        i < g->rows && m->most[i] > HIDDEN ? 1.0f / m->sum[i] : 0.0f;
  for (int64_t j = begin; j < end; j += CHUNK) {
    const int64_t n = pf_min(CHUNK, end - j);
    float *scores = m->scores + (resident ? (j - begin) * lanes : 0);
    if (!resident)
      masked_scores(g, m, j, j + n, scores);
    hot->sums(m->column + j, m->diagonal_base + lanes + (g->position - j),
              scores, m->most, m->inverse, lanes, n);
  }
}

pf_sums pf_estimate_sums(const pf_call *call, int64_t b, int64_t h,
                         int64_t last, void *memory) {
  int64_t bytes;
  const sums_memory m = lay_out_sums(call, memory, &bytes);
  const pf_batch *batch = &call->batch[b];
  memset(m.column, 0, (size_t)call->t * sizeof(float));
  memset(m.diagonal_base, 0, (size_t)(call->t + 2 * call->bq) * sizeof(float));
  /* Rows at or past last_key are padding. */
  const int64_t row_end =
      pf_max(0, pf_min(call->s, batch->last_key - batch->offset));
  const int64_t row_begin = pf_max(0, row_end - pf_max(last, 1));
  const char *q_head =
      call->q.data + (b * call->q.batch + h * call->q.head) * call->element;
  group g = {.call = call, .batch = batch};
  g.softcap =
      (call->desc->features & PREFILL_TILE_SOFTCAP) && call->desc->softcap > 0;
  g.k = call->k.data +
        (b * call->k.batch + h / call->group * call->k.head) * call->element;
  for (int64_t row = row_begin; row < row_end; row += call->bq) {
    g.rows = pf_min(call->bq, row_end - row);
    g.position = batch->offset + row;
    if (call->rotary) {
      pf_rotate_queries(call, b, h, row, g.rows, m.rotated, m.rotary);
      g.q = m.rotated;
      g.q_stride = call->d;
    } else {
      g.q = q_head + row * call->q.row * call->element;
      g.q_stride = call->q.row;
    }
    add_group(&g, &m);
  }
  return (pf_sums){.column = m.column,
                   .diagonal = m.diagonal_base + call->bq,
                   .first_position = batch->offset + row_begin,
                   .end_position = batch->offset + row_end};
}

/*===-- the sparse heads of a call ---------------------------------------===*/

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
  char *storage;         /* of the indices */
  int64_t storage_bytes; /* per head */
  int64_t column_room;   /* columns that fit a head's storage */
} estimation;

/* Blocks and column tiles of all tiles of a head, exactly. */
static pf_work count_work(const pf_call *call, int64_t b,
                          const pf_head_index *index, uint64_t *kept,
                          int32_t *columns) {
  const pf_grid grid = grid_of(call, b);
  const uint8_t *state = call->batch[b].state;
  pf_work work = {0};
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    const int64_t row = tile * call->bq;
    const pf_span span =
        pf_visible_span(call, b, row, pf_min(call->bq, call->s - row));
    if (span.begin == span.end)
      continue;
    ++work.tiles;
    memset(kept, 0, (size_t)words(call->blocks) * 8);
    pf_index_row(index, &grid, tile, span.begin, span.end, kept);
    for (int64_t block = span.begin; block < span.end; ++block)
      work.blocks +=
          get_bit(kept, block) && !(state && state[block] == PF_BLOCK_HIDDEN);
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

/* A-shape and tri-shape: the first keys and the nearest, from parameters. */
static void build_static(const pf_call *call, int64_t b,
                         const prefill_head_plan *plan, pf_head_index *index,
                         void *storage, uint64_t *diagonals,
                         uint64_t *distances) {
  const pf_grid grid = grid_of(call, b);
  pf_relative_init(index, &grid, 0, storage);
  const int64_t local = pf_max(1, pf_min(plan->local, call->t));
  memset(diagonals, 0, (size_t)words(call->t) * 8);
  for (int64_t delta = 0; delta < local; ++delta)
    diagonals[delta / 64] |= (uint64_t)1 << (delta % 64);
  pf_relative_from_diagonals(index, &grid, diagonals, local, distances);
  /* The first keys that there are: left padding moves them. */
  const int64_t init =
      plan->init > 0 ? call->batch[b].first_key + plan->init : 0;
  pf_relative_set_columns(index, &grid, NULL, 0, INT64_MAX,
                          pf_min(init, call->t));
  if (plan->pattern == PREFILL_PATTERN_TRI_SHAPE && plan->last > 0)
    index->dense_tile = pf_max(0, call->s - plan->last) / call->bq;
}

/* Vertical-slash with MInference's token budgets. */
static void select_tokens(const pf_call *call, const pf_batch *batch,
                          const prefill_head_plan *plan, const pf_sums *sums,
                          pf_head_index *index, const pf_grid *grid,
                          uint64_t *chosen, uint64_t *distances,
                          int32_t *keys) {
  const int64_t n = batch->last_key;
  const int64_t vertical = pf_min(n, pf_max(plan->vertical, PF_FORCED_SINKS));
  const int64_t slash = pf_min(n, pf_max(plan->slash, 50));
  const int64_t sinks = pf_min(batch->first_key + PF_FORCED_SINKS, n);
  for (int64_t j = 0; j < n; ++j)
    if (j < batch->first_key || (batch->key_mask && !batch->key_mask[j]))
      sums->column[j] = PF_MINUS_INF;
    else if (j < sinks)
      sums->column[j] = __builtin_inff();
  for (int64_t delta = 0; delta < pf_min(PF_FORCED_DIAGONALS, n); ++delta)
    sums->diagonal[delta] = __builtin_inff();
  pf_select(sums->diagonal, NULL, n, (double)slash, chosen);
  pf_relative_from_diagonals(index, grid, chosen, n, distances);
  pf_select(sums->column, NULL, n, (double)vertical, chosen);
  int64_t count = 0;
  for (int64_t j = 0; j < n; ++j)
    if (get_bit(chosen, j))
      keys[count++] = (int32_t)j;
  pf_relative_set_columns(index, grid, keys, count, call->bk * 3 / 4, 0);
}

/* Share of the last rows' attention at every distance from a tile's top block,
 * if diagonals were as they are now in every row: distance t of a row x of a
 * tile is floor((delta + w) / bk) with w uniform over the tile's rows. prefix:
 * t + 1 doubles of scratch. */
static void distance_mass(const pf_grid *grid, const float *diagonal, int64_t n,
                          int64_t limit, double *prefix, float *mass) {
  prefix[0] = 0;
  for (int64_t delta = 0; delta < n; ++delta)
    prefix[delta + 1] = prefix[delta] + diagonal[delta];
  const int64_t phases = pf_phases(grid);
  for (int64_t t = 0; t < limit; ++t) {
    double sum = 0;
    for (int64_t phase = 0; phase < phases; ++phase) {
      const int64_t top_end = (pf_top_block(grid, phase) + 1) * grid->bk - 1;
      const int64_t first = grid->offset + phase * grid->bq;
      for (int64_t x = 0; x < grid->bq; ++x) {
        const int64_t w = top_end - first - x;
        const int64_t from = t * grid->bk - w, to = from + grid->bk;
        sum += prefix[pf_max(0, pf_min(to, n))] -
               prefix[pf_max(0, pf_min(from, n))];
      }
    }
    mass[t] = (float)(sum / (double)(phases * grid->bq));
  }
}

/* Vertical-slash with a share of the dense blocks. Candidates are distances and
 * columns; each has a worth (attention of the last rows) and a price (blocks
 * over the whole head), and the best worth per price is taken first. */
static void select_share(const pf_call *call, const pf_batch *batch,
                         const prefill_head_plan *plan, const pf_work *dense,
                         const pf_sums *sums, pf_head_index *index,
                         const pf_grid *grid, uint64_t *chosen,
                         uint64_t *distances, int32_t *keys, int64_t room,
                         char *scratch) {
  const int64_t n = batch->last_key;
  const int64_t limit = pf_min(pf_max_distance(grid) + 1, PF_MAX_INDEX_BLOCKS);
  char *at = scratch;
  float *value = take(&at, limit + n, sizeof(float));
  float *price = take(&at, limit + n, sizeof(float));
  double *prefix = take(&at, n + 1, sizeof(double));
  distance_mass(grid, sums->diagonal, n, limit, prefix, value);

  double budget = (double)plan->density * (double)dense->blocks;
  /* Distances that hold a tile's own positions, and the next one. */
  int64_t forced = 0;
  for (int64_t phase = 0; phase < pf_phases(grid); ++phase)
    forced = pf_max(forced, pf_own_distance(grid, phase) + 1);
  memset(distances, 0, (size_t)words(limit) * 8);
  for (int64_t t = 0; t < limit; ++t) {
    /* Tiles whose last position is in block t or later. */
    const int64_t above =
        pf_max(0, pf_ceil_div(t * grid->bk + 1 - grid->offset, grid->bq) - 1);
    const int64_t tiles = pf_max(0, grid->tiles - above);
    price[t] = (float)(tiles > 0 ? tiles : 1);
    if (t <= forced) {
      budget -= (double)price[t];
      distances[t / 64] |= (uint64_t)1 << (t % 64);
      value[t] = PF_MINUS_INF;
    } else {
      value[t] = value[t] > 0 ? value[t] / price[t] : PF_MINUS_INF;
    }
  }
  /* Columns. The keys nearest to the last rows say nothing about other rows;
   * and a late key is not made attractive by the few tiles behind it. */
  const int64_t sinks = pf_min(batch->first_key + PF_FORCED_SINKS, n);
  const int64_t recent = sums->first_position - PF_FORCED_DIAGONALS;
  const double least = (double)grid->tiles / 4;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t row = j - grid->offset; /* that has this key as its own */
    double tiles = (double)(grid->tiles - (row > 0 ? row / grid->bq : 0));
    tiles = tiles > least ? tiles : least;
    price[limit + j] = (float)(tiles / (double)grid->bk);
    const bool hidden =
        j < batch->first_key || (batch->key_mask && !batch->key_mask[j]);
    if (hidden || (j >= recent && j >= sinks))
      value[limit + j] = PF_MINUS_INF;
    else if (j < sinks)
      value[limit + j] = __builtin_inff();
    else
      value[limit + j] = sums->column[j] > 0
                             ? sums->column[j] / price[limit + j]
                             : PF_MINUS_INF;
  }
  pf_select(value, price, limit + n, budget > 0 ? budget : 0, chosen);
  for (int64_t t = 0; t < limit; ++t)
    if (get_bit(chosen, t))
      distances[t / 64] |= (uint64_t)1 << (t % 64);
  pf_relative_from_distances(index, grid, distances, limit);
  int64_t count = 0;
  for (int64_t j = 0; j < n && count < room; ++j)
    if (get_bit(chosen, limit + j) ||
        (j >= batch->first_key && j < sinks && value[limit + j] > 0))
      keys[count++] = (int32_t)j;
  pf_relative_set_columns(index, grid, keys, count, call->bk * 3 / 4, 0);
}

static int64_t share_bytes(const pf_call *call, const pf_grid *grid) {
  const int64_t n = pf_max_distance(grid) + 1 + call->t;
  return 2 * pf_round_up(n * 4, 64) + pf_round_up((call->t + 1) * 8, 64);
}

/*===-- block-sparse -----------------------------------------------------===*/

/* Lanes of pooled queries that are scored together. */
enum { POOL_LANES = 64 };

static int64_t pooled_bytes(const pf_call *call) {
  const int64_t f = sizeof(float);
  return pf_round_up(call->blocks * call->d * f, 64) +
         pf_round_up(POOL_LANES * call->d * f, 64) +
         pf_round_up(call->blocks * POOL_LANES * f, 64) +
         pf_round_up(call->blocks * f, 64) + pf_round_up(call->d * f, 64) +
         pf_round_up(call->rotary ? call->bq * call->d * call->element : 0,
                     64) +
         pf_round_up(call->rotary ? 2 * (call->d + call->rotary_width) * f : 0,
                     64);
}

/* Blocks per tile that spend `share` of the dense blocks: the greatest k with
 * sum of min(k, visible) <= share * sum of visible, at least 1. Early tiles,
 * which see few blocks, keep them all. */
static int64_t blocks_for_share(const pf_call *call, int64_t b, double share,
                                double dense_blocks) {
  int64_t low = 1, high = pf_max(1, call->blocks);
  while (low < high) {
    const int64_t k = (low + high + 1) / 2;
    double sum = 0;
    for (int64_t tile = 0; tile < call->tiles; ++tile) {
      const int64_t row = tile * call->bq;
      const pf_span span =
          pf_visible_span(call, b, row, pf_min(call->bq, call->s - row));
      sum += (double)pf_min(k, span.end - span.begin);
    }
    if (sum <= share * dense_blocks)
      low = k;
    else
      high = k - 1;
  }
  return low;
}

static void build_blocks(const pf_call *call, int64_t b, int64_t h,
                         const prefill_head_plan *plan, const pf_work *dense,
                         pf_head_index *index, int64_t id_room, void *storage,
                         uint64_t *chosen, char *scratch) {
  const pf_grid grid = grid_of(call, b);
  const pf_batch *batch = &call->batch[b];
  const pf_hot *hot = call->hot;
  const int64_t d = call->d, f = sizeof(float);
  const int dtype = call->desc->dtype;
  pf_blocks_init(index, &grid, id_room, storage);
  const int64_t per_row = plan->density > 0
                              ? blocks_for_share(call, b, (double)plan->density,
                                                 (double)dense->blocks)
                              : pf_max(1, plan->top_k);
  char *at = scratch;
  float *k_mean = take(&at, call->blocks * d, f);
  float *q_mean = take(&at, POOL_LANES * d, f);
  float *scores = take(&at, call->blocks * POOL_LANES, f);
  float *row_scores = take(&at, call->blocks, f);
  float *mean = take(&at, d, f);
  char *rotated = take(&at, call->rotary ? call->bq * d : 0, call->element);
  float *rotary = take(&at, call->rotary ? 2 * (d + call->rotary_width) : 0, f);

  const char *k =
      call->k.data +
      (b * call->k.batch + h / call->group * call->k.head) * call->element;
  for (int64_t block = 0; block < call->blocks; ++block) {
    float *out = k_mean + block * d;
    int64_t count = 0;
    memset(out, 0, (size_t)d * sizeof(float));
    const int64_t end = pf_min((block + 1) * call->bk, batch->kv_len);
    for (int64_t j = block * call->bk; j < end; ++j)
      if (!batch->key_mask || batch->key_mask[j]) {
        hot->accumulate(out, k + j * call->k.row * call->element, d, dtype);
        ++count;
      }
    const float inverse = count ? 1.0f / (float)count : 0.0f;
    for (int64_t c = 0; c < d; ++c)
      out[c] *= inverse;
  }
  int64_t total = 0;
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    if (tile % POOL_LANES == 0) {
      memset(q_mean, 0, (size_t)(POOL_LANES * d) * sizeof(float));
      for (int64_t lane = 0; lane < POOL_LANES; ++lane) {
        const int64_t row = (tile + lane) * call->bq;
        if (row >= call->s)
          break;
        const int64_t rows = pf_min(call->bq, call->s - row);
        const char *q = call->q.data + (b * call->q.batch + h * call->q.head +
                                        row * call->q.row) *
                                           call->element;
        int64_t stride = call->q.row;
        if (call->rotary) {
          pf_rotate_queries(call, b, h, row, rows, rotated, rotary);
          q = rotated;
          stride = d;
        }
        memset(mean, 0, (size_t)d * sizeof(float));
        for (int64_t i = 0; i < rows; ++i)
          hot->accumulate(mean, q + i * stride * call->element, d, dtype);
        /* The sign of the scale matters for the order, its size does not. */
        const float factor = (call->scale < 0 ? -1.0f : 1.0f) / (float)rows;
        for (int64_t c = 0; c < d; ++c)
          q_mean[c * POOL_LANES + lane] = mean[c] * factor;
      }
      hot->score(scores, q_mean, POOL_LANES, d, k_mean, d, call->blocks,
                 PREFILL_F32);
    }
    const int64_t row = tile * call->bq;
    const pf_span span =
        pf_visible_span(call, b, row, pf_min(call->bq, call->s - row));
    const int64_t own =
        pf_floor_div(batch->offset + row, call->bk); /* first own block */
    const int64_t n = span.end - span.begin;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t block = span.begin + i;
      if (batch->state && batch->state[block] == PF_BLOCK_HIDDEN)
        row_scores[i] = PF_MINUS_INF;
      else if (block >= own)
        row_scores[i] = __builtin_inff();
      else
        row_scores[i] = scores[block * POOL_LANES + tile % POOL_LANES];
    }
    const int64_t forced = pf_max(0, span.end - pf_max(own, span.begin));
    pf_select(row_scores, NULL, n, (double)pf_max(per_row, forced), chosen);
    for (int64_t i = 0; i < n && total < id_room; ++i)
      if (get_bit(chosen, i))
        index->id[total++] = (uint16_t)(span.begin + i);
    index->row_begin[tile + 1] = total;
  }
}

/* Ids that a block index of a head may need. */
static int64_t id_room(const pf_call *call, const pf_grid *grid,
                       const prefill_head_plan *plan, const pf_work *dense) {
  const int64_t own = call->bq / call->bk + 2;
  int64_t per_row = pf_min(pf_max(plan->top_k, own), grid->blocks);
  if (plan->density > 0) {
    const double share = (double)plan->density * (double)dense->blocks;
    return pf_min((int64_t)share, dense->blocks) + (own + 1) * grid->tiles;
  }
  return per_row * grid->tiles;
}

/*===-- one head ---------------------------------------------------------===*/

static const prefill_head_plan *plan_of(const pf_call *call, int64_t head) {
  return &call->desc->plan->heads[head % call->hq];
}

/* Bytes of scratch of a worker, for any pattern. */
static int64_t worker_bytes(const pf_call *call) {
  const pf_grid grid = grid_of(call, 0);
  int64_t limit = 0;
  for (int64_t b = 0; b < call->b; ++b) {
    const pf_grid other = grid_of(call, b);
    limit = pf_max(limit, pf_max_distance(&other) + 1);
  }
  const int64_t bits = pf_round_up(words(limit + call->t) * 8, 64);
  const int64_t own =
      pf_max(pf_estimate_bytes(call, 0) + share_bytes(call, &grid) + limit * 8,
             pooled_bytes(call));
  return 3 * bits + pf_round_up(call->t * 4 + call->bk * 4, 64) + own;
}

static void estimate_body(pf_call *call, void *worker, int64_t item) {
  const estimation *e = call->estimation;
  const int64_t head = e->heads[item], b = head / call->hq, h = head % call->hq;
  const prefill_head_plan *plan = plan_of(call, head);
  const batch_work *work = &e->batch[b];
  const pf_batch *batch = &call->batch[b];
  const pf_grid grid = grid_of(call, b);
  pf_head_index *index = &call->index[head];
  char *storage = e->storage + item * e->storage_bytes;

  const int64_t limit = pf_max_distance(&grid) + 1;
  char *at = worker;
  uint64_t *chosen = take(&at, words(limit + call->t), 8);
  uint64_t *distances = take(&at, words(limit + call->t), 8);
  uint64_t *kept = take(&at, words(limit + call->t), 8);
  int32_t *keys = take(&at, call->t + call->bk, 4);

  switch (plan->pattern) {
  case PREFILL_PATTERN_A_SHAPE:
  case PREFILL_PATTERN_TRI_SHAPE:
    build_static(call, b, plan, index, storage, chosen, distances);
    break;
  case PREFILL_PATTERN_VERTICAL_SLASH: {
    const pf_sums sums = pf_estimate_sums(call, b, h, plan->last, at);
    pf_relative_init(index, &grid, e->column_room, storage);
    if (plan->density > 0)
      select_share(call, batch, plan, &work->dense, &sums, index, &grid, chosen,
                   distances, keys, e->column_room,
                   at + pf_estimate_bytes(call, 0));
    else
      select_tokens(call, batch, plan, &sums, index, &grid, chosen, distances,
                    keys);
    break;
  }
  default:
    build_blocks(call, b, h, plan, &work->dense, index,
                 id_room(call, &grid, plan, &work->dense), storage, chosen, at);
    break;
  }
  if (call->desc->plan->dense_below >= 0)
    return;
  const pf_work sparse = count_work(call, b, index, kept, keys);
  if (!pf_worth_running(&work->dense, &sparse))
    index->mode = PF_HEAD_DENSE;
}

/* Gathers the columns of one head, padded with zeros to a multiple of bk. */
static void gather_body(pf_call *call, void *worker, int64_t item) {
  (void)worker;
  const estimation *e = call->estimation;
  const int64_t head = e->heads[item], b = head / call->hq;
  const int64_t kv_head = head % call->hq / call->group;
  pf_head_index *index = &call->index[head];
  if (index->mode != PF_HEAD_RELATIVE || !index->columns)
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
  const pf_grid grid = grid_of(call, b);
  batch_work work = {.keys = batch->last_key};
  for (int64_t tile = 0; tile < call->tiles; ++tile) {
    const int64_t row = tile * call->bq;
    const pf_span span =
        pf_visible_span(call, b, row, pf_min(call->bq, call->s - row));
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
  if (!work->usable || plan->pattern <= PREFILL_PATTERN_DENSE ||
      plan->pattern > PREFILL_PATTERN_BLOCK_SPARSE)
    return false;
  if (plan->density >= 1)
    return false;
  if (dense_below >= 0)
    return work->keys >= dense_below;
  return pf_worth_estimating(call, plan, &work->dense, work->keys);
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
    const pf_grid grid = grid_of(call, b);
    for (int64_t h = 0; h < call->hq; ++h) {
      const prefill_head_plan *head = &plan->heads[h];
      if (!wants_sparse(call, head, &e.batch[b]))
        continue;
      e.heads[e.count++] = b * call->hq + h;
      int64_t bytes;
      if (head->pattern == PREFILL_PATTERN_BLOCK_SPARSE) {
        bytes = pf_blocks_bytes(&grid,
                                id_room(call, &grid, head, &e.batch[b].dense));
      } else {
        int64_t columns = 0;
        if (head->pattern == PREFILL_PATTERN_VERTICAL_SLASH)
          columns =
              head->density > 0
                  ? (int64_t)(4.0 * (double)head->density * (double)call->t) +
                        PF_FORCED_SINKS
                  : pf_max(head->vertical, PF_FORCED_SINKS);
        columns = pf_min(columns, call->t);
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
    const pf_grid grid = grid_of(call, b);
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
  prefill_status status =
      pf_parallel(call, e.count, work, worker_bytes(call), estimate_body);
  if (status)
    return status;

  /* Now the numbers of columns are known. */
  int64_t rows = 0;
  for (int64_t i = 0; i < e.count; ++i) {
    const pf_head_index *index = &call->index[e.heads[i]];
    if (index->mode == PF_HEAD_RELATIVE && index->columns) {
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
    if (index->mode != PF_HEAD_RELATIVE || !index->columns)
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
