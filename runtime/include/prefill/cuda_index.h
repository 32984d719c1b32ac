/*===- cuda_index.h - What a CUDA launch visits, found on the device -*- C -*-===*\
|*
|* Kernels that score, select and build the lists of a `lists` attention kernel
|* (cuda_abi.h) from Q and K, without the host: every launch below follows the
|* one before it in a stream, grids depend on capacities only, nothing is
|* allocated, so that the sequence may be captured in a CUDA graph. All have one
|* parameter, prefill_cuda_index by value, and blocks of
|* PREFILL_CUDA_INDEX_THREADS threads, but for the two sums kernels, whose block
|* and dynamic shared memory their reports say.
|*
|*   kernel                         grid (x, y, z)              needed for
|*   prefill_index_prepare          batch                       all
|*   <sums rows>                    sums_chunks, heads, batch   vertical-slash, flexprefill
|*   prefill_index_sums             heads, batch                the same
|*   <sums columns>                 sums_chunks, heads, batch   the same
|*   prefill_index_select_lines     2, heads, batch             vertical-slash
|*   prefill_index_relative         heads, batch                all
|*   prefill_index_pool_keys        blocks, KV heads, batch     block-sparse, flexprefill
|*   prefill_index_pool_scores      tiles / 16, heads, batch    the same
|*   prefill_index_flex             heads, batch                flexprefill
|*   prefill_index_flex_lines       2, heads, batch             flexprefill
|*   prefill_index_select_blocks    tiles, heads, batch         block-sparse, flexprefill
|*   prefill_index_mean_keys        means / 16, KV heads, batch infllm-v2
|*   prefill_index_infllm           PREFILL_CUDA_BYTE_SLOTS     infllm-v2
|*   prefill_index_select_top       tiles, heads, batch         infllm-v2
|*   prefill_index_sum_blocks       blocks, KV heads, batch     sale, xattention, values
|*   prefill_index_center_keys      KV heads, batch             sale, xattention
|*   prefill_index_quantize_keys    blocks, KV heads, batch     the same
|*   prefill_index_sale             PREFILL_CUDA_BYTE_SLOTS     sale
|*   prefill_index_xattention       PREFILL_CUDA_BYTE_SLOTS     xattention
|*   prefill_index_sampled          PREFILL_CUDA_BYTE_SLOTS     sampled
|*   prefill_index_select_mass      tiles, heads, batch         sale, xattention, sampled
|*   prefill_index_rows             tiles / 8, heads, batch     all
|*   prefill_index_scan             1                           all
|*   prefill_index_fill             tiles / 8, heads, batch     all
|*   prefill_index_pack             column_room / block_k,      (none: see below)
|*                                  heads, batch
|*
|* Quotients are rounded up; prefill_cuda_index_launches lists them. Then the attention kernel reads block_begin, ...,
|* col_pos. A head whose plan has another pattern than these, or a similarity guard,
|* visits everything.
|*
|* What is chosen is what the CPU's runtime chooses from the same numbers
|* (runtime/src/estimate_relative.c, estimate_blocks.c, estimate_flex.c, select.c),
|* ties included;
|* for infllm-v2 (estimate_compressed.c), sale (estimate_quantized.c), xattention
|* (estimate_strided.c) and sampled (estimate_sampled.c) up to roundings, as
|* docs/Warp.md says.
|* Attention is causal; a bias, segments and rotary embedding inside the kernel
|* do not occur on GPUs.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_CUDA_INDEX_H
#define PREFILL_CUDA_INDEX_H

#include "prefill/kernel_abi.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PREFILL_CUDA_INDEX_ABI 2
#define PREFILL_CUDA_INDEX_THREADS 256

/* The sums kernels take the last PREFILL_CUDA_SUMS_ROWS query rows at most (a
 * plan's `last` beyond it counts as this), keys in tiles of
 * PREFILL_CUDA_SUMS_KEYS, PREFILL_CUDA_SUMS_CHUNK tiles a thread block. */
#define PREFILL_CUDA_SUMS_ROWS 64
#define PREFILL_CUDA_SUMS_KEYS 64
#define PREFILL_CUDA_SUMS_CHUNK 8

/* Tiles a thread block of prefill_index_pool_scores scores. */
#define PREFILL_CUDA_POOL_TILES 16

/* Heads that are scored in bytes, or by rows: query rows that a thread block
 * scores at a time, and thread blocks, each with memory for such rows (two for each of an
 * H100's multiprocessors). */
#define PREFILL_CUDA_BYTE_ROWS 32
#define PREFILL_CUDA_BYTE_SLOTS 264

/* InfLLM v2: keys of a mean, and from one mean to the next; means that a thread
 * block makes. */
#define PREFILL_CUDA_MEAN_KEYS 32
#define PREFILL_CUDA_MEAN_STEP 16
#define PREFILL_CUDA_MEANS 16

/* What the heads of a plan need: bit p: some head has PREFILL_PATTERN p, and
 * those above. */
#define PREFILL_CUDA_NEEDS_BYTES (UINT32_C(1) << 29)  /* keys of 8 bits */
#define PREFILL_CUDA_NEEDS_NIBBLES (UINT32_C(1) << 30) /* of 4 bits */
#define PREFILL_CUDA_NEEDS_VALUES (UINT32_C(1) << 31) /* mean values */

/* Bits of *status. */
#define PREFILL_CUDA_BLOCKS_FULL 1  /* block_room was too small */
#define PREFILL_CUDA_COLUMNS_FULL 2 /* col_room was */

/* Of a FlexPrefill head. */
#define PREFILL_CUDA_AWARE 1  /* tiles choose by their pooled scores */
#define PREFILL_CUDA_BROKEN 2 /* a score of the last rows is no number */

/* How a head's rows are found. */
enum prefill_cuda_head_mode {
  PREFILL_CUDA_HEAD_DENSE = 0,
  PREFILL_CUDA_HEAD_RELATIVE = 1, /* distances, vertical blocks, columns */
  PREFILL_CUDA_HEAD_BLOCKS = 2    /* kept is filled by select_blocks */
};

/* Strides are in elements. q_len and kv_len are the same for all batch entries;
 * with kv_lengths, kv_len is the greatest that an entry may have. head numbers
 * query heads, x = b * heads + h, row = x * tiles + tile. Bitmaps are of 32-bit
 * words, bit i of word i / 32. */
typedef struct prefill_cuda_index {
  /* The host fills these. */
  const void *q, *k, *v; /* as in prefill_cuda_attention; v: for packing */
  int64_t q_batch, q_head, q_row;
  int64_t k_batch, k_head, k_row;
  int64_t v_batch, v_head, v_row;
  int64_t position;    /* key position of query row 0 */
  int64_t window_left; /* INT64_MAX/4: unbounded */
  int32_t q_len, kv_len, batch;
  int32_t heads, group; /* query heads; query heads a KV head */
  int32_t head_dim, v_head_dim;
  int32_t dtype;            /* PREFILL_F16 or PREFILL_BF16 */
  int32_t block_q, block_k; /* of the attention kernel */
  float scale, softcap;     /* softcap 0: none */
  int32_t dense_below; /* batch entries with fewer keys visit everything; the
                          host has resolved a plan's -1 */
  const int32_t *kv_lengths; /* [batch] or NULL */
  const int64_t *positions;  /* [batch] or NULL */
  const uint8_t *key_mask;   /* [batch][key_mask_batch], nonzero: visible; NULL */
  int64_t key_mask_batch;
  const prefill_head_plan *plans; /* [heads], on the device */
  /* Elements that block_ids, col_pos and a head's columns have room for. Blocks
   * whose columns do not fit column_room are visited whole. What does not fit
   * the other two is left out, and said in *status: a host that sees it there
   * has to discard the result. prefill_cuda_index_rooms gives numbers of these
   * that suffice whatever is chosen. */
  int64_t block_room, col_room, column_room;

  /* prefill_cuda_index_layout fills what follows. */
  int32_t tiles, blocks, words; /* ceil(q_len / block_q), ceil(kv_len / block_k),
                                   words of a bitmap of blocks */
  int32_t key_words;            /* words of a bitmap of keys or diagonals */
  int32_t phases, distances;    /* bitmaps of distances a head, words of one */
  int32_t sums_chunks, sums_tiles; /* of PREFILL_CUDA_SUMS_* */
  int32_t byte_width; /* bytes of a row in bytes, with padding */
  int32_t means;      /* prefill_cuda_means(kv_len) */

  /* Results: what prefill_cuda_attention has under the same names. */
  int32_t *block_begin, *full_count, *block_ids, *col_begin, *col_pos;
  uint32_t *status; /* [1], 0: all is well */

  /* Facts of a batch entry: first visible key, one past the last one, blocks
   * that dense attention visits, nonzero: sparse heads may be. */
  int32_t *facts;       /* [batch][4] */
  uint8_t *block_state; /* [batch][blocks]: 0 hidden, 1 some keys, 2 all */
  int32_t *head_mode;   /* [x] prefill_cuda_head_mode */
  int32_t *dense_tile;  /* [x] tiles from this one on visit everything */

  /* Vertical-slash. */
  float *row_most, *row_sum;     /* [x][chunk][ROWS]: of a chunk's keys, base 2 */
  float *most, *inverse;         /* [x][ROWS]: of all; inverse 0: no such row */
  float *column;                 /* [x][kv_len]: column sums */
  float *diagonal;               /* [x][tile of keys][2 * ROWS]: sum of elements
                                    with row - key in tile = index - KEYS + 1 */
  float *line_value;             /* [x][limit + kv_len], density only */
  double *line_prefix;           /* [x][kv_len + 1], density only */
  uint32_t *chosen_keys, *chosen_diagonals; /* [x][key_words] */

  /* Relative heads; of FlexPrefill's, what all tiles keep (of the first phase). */
  uint32_t *distance;    /* [x][phases][distances] */
  uint32_t *vertical;    /* [x][words] */
  int32_t *columns;      /* [x][column_room] ascending */
  int32_t *column_begin; /* [x][blocks + 1] */

  /* FlexPrefill. */
  int32_t *aware;       /* [x] PREFILL_CUDA_AWARE, PREFILL_CUDA_BROKEN */
  float *flex_share;    /* [x][blocks] column sums */
  float *flex_pooled;   /* [x][blocks] of the last rows' mean */
  float *flex_distance; /* [x][distances * 32] diagonal sums */

  /* Block-sparse heads and FlexPrefill's. */
  float *key_mean;    /* [batch][KV heads][head_dim][blocks] */
  float *block_score; /* [row][blocks]; of other heads: masses, or scores */

  /* InfLLM v2; g = b * KV heads + KV head. */
  uint16_t *mean_high, *mean_low; /* [g][means][head_dim], a mean as their sum */
  uint8_t *mean_seen;             /* [g][means]: a key of it is visible */
  float *mean_column;             /* [slot][means]: sums of probabilities */

  /* Heads that are scored in bytes; g = b * KV heads + KV head. */
  float *key_sum;        /* [g][blocks][head_dim] of visible keys; NULL */
  float *key_center;     /* [g][head_dim] their mean */
  uint8_t *key_bytes[2]; /* [g][blocks * block_k][byte_width], of 8 and 4 bits;
                            NULL: no head asks for it */
  float *key_scale[2];   /* [g][blocks]; NaN: a key is not finite */
  float *value_mean;     /* [g][blocks][v_head_dim] of visible ones; NULL */
  float *value_square;   /* [g][blocks] their squared lengths */
  float *share;          /* [slot][blocks][BYTE_ROWS][2] */

  /* All heads. */
  uint32_t *kept;                   /* [row][words] */
  int32_t *row_blocks, *row_columns; /* [row] */

  /* prefill_index_pack gathers a head's columns, padded with zero rows to a
   * multiple of block_k: for attention kernels that want them adjacent. The host
   * fills these; NULL: the launch does nothing. */
  void *packed_k, *packed_v; /* [x][column_room][head_dim], [v_head_dim] */
} prefill_cuda_index;

static inline int64_t prefill_cuda_ceil(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}

/* Means of InfLLM v2 that lie wholly in so many keys. */
static inline int64_t prefill_cuda_means(int64_t keys) {
  return keys < PREFILL_CUDA_MEAN_KEYS
             ? 0
             : (keys - PREFILL_CUDA_MEAN_KEYS) / PREFILL_CUDA_MEAN_STEP + 1;
}

/* column_room for `columns` single keys of a head, and block_room and col_room
 * that suffice for any choice with it, from the fields that the host fills.
 * A plan with `vertical` chooses as many at most, and 30. */
static inline void prefill_cuda_index_rooms(prefill_cuda_index *x,
                                            int64_t columns) {
  const int64_t tiles = prefill_cuda_ceil(x->q_len, x->block_q);
  const int64_t blocks = prefill_cuda_ceil(x->kv_len, x->block_k);
  const int64_t rows = tiles * x->heads * x->batch;
  columns = columns < x->kv_len ? columns : x->kv_len;
  x->column_room = prefill_cuda_ceil(columns, x->block_k) * x->block_k;
  x->col_room = rows * x->column_room;
  x->block_room = rows * blocks;
  /* Plain causal attention of prompts that end with their keys: the triangle.
   * A batch entry with fewer keys has its rows at lower positions. */
  if (x->position == (int64_t)x->kv_len - x->q_len && !x->positions) {
    int64_t ids = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      int64_t last = x->position + (tile + 1) * x->block_q;
      last = last < x->kv_len ? last : x->kv_len;
      ids += last > 0 ? prefill_cuda_ceil(last, x->block_k) : 0;
    }
    x->block_room = ids * x->heads * x->batch;
  }
}

/* Can the head be sparse on a GPU? Else it visits everything. */
static inline int prefill_cuda_index_knows(const prefill_head_plan *plan) {
  if (plan->similarity > 0)
    return 0;
  switch (plan->pattern) {
  case PREFILL_PATTERN_A_SHAPE:
  case PREFILL_PATTERN_TRI_SHAPE:
  case PREFILL_PATTERN_STRIDED:
  case PREFILL_PATTERN_VERTICAL_SLASH:
  case PREFILL_PATTERN_BLOCK_SPARSE:
  case PREFILL_PATTERN_XATTENTION:
  case PREFILL_PATTERN_FLEXPREFILL:
  case PREFILL_PATTERN_INFLLM_V2:
  case PREFILL_PATTERN_SAMPLED:
  case PREFILL_PATTERN_SALE:
    return 1;
  default:
    return 0;
  }
}

/* What the heads that can be need: PREFILL_CUDA_NEEDS_*, and patterns as bits. */
static inline uint32_t prefill_cuda_index_needs(const prefill_head_plan *plans,
                                                int32_t count) {
  uint32_t needs = 0;
  for (int32_t h = 0; h < count; ++h) {
    const prefill_head_plan *plan = &plans[h];
    if (!prefill_cuda_index_knows(plan))
      continue;
    needs |= UINT32_C(1) << plan->pattern;
    if (plan->pattern == PREFILL_PATTERN_SALE ||
        plan->pattern == PREFILL_PATTERN_XATTENTION)
      needs |= plan->bits == 4 ? PREFILL_CUDA_NEEDS_NIBBLES
                               : PREFILL_CUDA_NEEDS_BYTES;
    if ((plan->pattern == PREFILL_PATTERN_SAMPLED ||
         plan->pattern == PREFILL_PATTERN_SALE) &&
        plan->top_p > 0 && plan->values)
      needs |= PREFILL_CUDA_NEEDS_VALUES;
  }
  return needs;
}

/* Patterns whose heads want sums of the last rows, and means. */
#define PREFILL_CUDA_SUMMED                                                    \
  (UINT32_C(1) << PREFILL_PATTERN_VERTICAL_SLASH |                             \
   UINT32_C(1) << PREFILL_PATTERN_FLEXPREFILL)
#define PREFILL_CUDA_POOLED                                                    \
  (UINT32_C(1) << PREFILL_PATTERN_BLOCK_SPARSE |                               \
   UINT32_C(1) << PREFILL_PATTERN_FLEXPREFILL)

/* Points the fields after `column_room` into memory, 256-byte aligned, and
 * returns the bytes it needs; memory NULL: only that. patterns: as
 * prefill_cuda_index_needs says. The memory holds no values before the first launch
 * and none that have to last after the attention kernel; captured graphs keep it.
 * (128K keys, 32 heads, tiles of 128 x 64: 8 MiB of bitmaps, 128 MiB of block ids
 * at worst, 128 KiB a single column of a head; vertical-slash and flexprefill
 * 130 MiB more, block-sparse and flexprefill 256 MiB and the mean keys; sale and
 * xattention the same 256 MiB, 132 MiB of shares and the keys in bytes, padded to
 * 64 a row.) */
static inline int64_t prefill_cuda_index_layout(prefill_cuda_index *x,
                                                uint32_t patterns,
                                                void *memory) {
  char *base = (char *)memory;
  int64_t at = 0;
  int64_t a = x->block_q, b = x->block_k;
  while (b) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  const int64_t heads = (int64_t)x->heads * x->batch;
  x->tiles = (int32_t)prefill_cuda_ceil(x->q_len, x->block_q);
  x->blocks = (int32_t)prefill_cuda_ceil(x->kv_len, x->block_k);
  x->words = (int32_t)prefill_cuda_ceil(x->blocks, 32);
  x->key_words = x->kv_len / 32 + 1;
  x->phases = (int32_t)(x->block_k / a);
  /* Tiles may reach past the last key, and a tile's own blocks below its top. */
  const int64_t limit = x->blocks + 2 * (x->block_q / x->block_k + 2);
  x->distances = (int32_t)prefill_cuda_ceil(limit, 32);
  x->sums_tiles =
      (int32_t)prefill_cuda_ceil(x->kv_len, PREFILL_CUDA_SUMS_KEYS);
  x->sums_chunks =
      (int32_t)prefill_cuda_ceil(x->sums_tiles, PREFILL_CUDA_SUMS_CHUNK);
  const int64_t rows = heads * x->tiles, lanes = PREFILL_CUDA_SUMS_ROWS;
  const int64_t summed = patterns & PREFILL_CUDA_SUMMED ? heads : 0;
  const int64_t flexed =
      patterns >> PREFILL_PATTERN_FLEXPREFILL & 1 ? heads : 0;
  const int64_t pooled = (patterns & PREFILL_CUDA_POOLED) != 0;
  const int64_t compressed = patterns >> PREFILL_PATTERN_INFLLM_V2 & 1;
  const int64_t forms[2] = {(patterns & PREFILL_CUDA_NEEDS_BYTES) != 0,
                            (patterns & PREFILL_CUDA_NEEDS_NIBBLES) != 0};
  const int64_t valued = (patterns & PREFILL_CUDA_NEEDS_VALUES) != 0;
  const int64_t in_bytes = forms[0] || forms[1];
  const int64_t sampled = patterns >> PREFILL_PATTERN_SAMPLED & 1;
  const int64_t kv_heads = (int64_t)x->batch * (x->heads / x->group);
  const int64_t kv_blocks = kv_heads * x->blocks;
  x->byte_width = (int32_t)prefill_cuda_ceil(x->head_dim, 64) * 64;
  x->means = (int32_t)prefill_cuda_means(x->kv_len);
#define PREFILL_TAKE(field, type, count)                                       \
  do {                                                                         \
    x->field = (type *)(base ? base + at : base);                              \
    at = prefill_cuda_ceil(at + (int64_t)(count) * (int64_t)sizeof(type), 256) \
         * 256;                                                                \
  } while (0)
  PREFILL_TAKE(block_begin, int32_t, rows + 1);
  PREFILL_TAKE(full_count, int32_t, rows);
  PREFILL_TAKE(block_ids, int32_t, x->block_room + 1);
  PREFILL_TAKE(col_begin, int32_t, rows + 1);
  PREFILL_TAKE(col_pos, int32_t, x->col_room + 1);
  PREFILL_TAKE(status, uint32_t, 1);
  PREFILL_TAKE(facts, int32_t, x->batch * 4);
  PREFILL_TAKE(block_state, uint8_t, (int64_t)x->batch * x->blocks);
  PREFILL_TAKE(head_mode, int32_t, heads);
  PREFILL_TAKE(dense_tile, int32_t, heads);
  PREFILL_TAKE(row_most, float, summed * x->sums_chunks * lanes);
  PREFILL_TAKE(row_sum, float, summed * x->sums_chunks * lanes);
  PREFILL_TAKE(most, float, summed * lanes);
  PREFILL_TAKE(inverse, float, summed * lanes);
  PREFILL_TAKE(column, float, summed * x->kv_len);
  PREFILL_TAKE(diagonal, float, summed * x->sums_tiles * 2 * lanes);
  PREFILL_TAKE(line_value, float, summed * (x->distances * 32 + x->kv_len));
  PREFILL_TAKE(line_prefix, double, summed * ((int64_t)x->kv_len + 1));
  PREFILL_TAKE(chosen_keys, uint32_t,
               summed * (x->key_words + x->distances + 1));
  PREFILL_TAKE(chosen_diagonals, uint32_t, summed * x->key_words);
  PREFILL_TAKE(distance, uint32_t, heads * x->phases * x->distances);
  PREFILL_TAKE(vertical, uint32_t, heads * x->words);
  PREFILL_TAKE(columns, int32_t, heads * x->column_room + 1);
  PREFILL_TAKE(column_begin, int32_t, heads * ((int64_t)x->blocks + 1));
  PREFILL_TAKE(aware, int32_t, summed);
  PREFILL_TAKE(flex_share, float, flexed * x->blocks);
  PREFILL_TAKE(flex_pooled, float, flexed * x->blocks);
  PREFILL_TAKE(flex_distance, float, flexed * x->distances * 32);
  PREFILL_TAKE(key_mean, float,
               pooled * x->batch * (x->heads / x->group) * x->head_dim *
                   x->blocks);
  PREFILL_TAKE(block_score, float,
               (pooled | in_bytes | compressed | sampled) * rows * x->blocks);
  PREFILL_TAKE(mean_high, uint16_t,
               compressed * kv_heads * x->means * x->head_dim);
  PREFILL_TAKE(mean_low, uint16_t,
               compressed * kv_heads * x->means * x->head_dim);
  PREFILL_TAKE(mean_seen, uint8_t, compressed * kv_heads * x->means);
  PREFILL_TAKE(mean_column, float,
               compressed * PREFILL_CUDA_BYTE_SLOTS * x->means);
  PREFILL_TAKE(key_sum, float, in_bytes * kv_blocks * x->head_dim);
  if (!in_bytes)
    x->key_sum = 0;
  PREFILL_TAKE(key_center, float, in_bytes * kv_heads * x->head_dim);
  for (int form = 0; form < 2; ++form) {
    PREFILL_TAKE(key_bytes[form], uint8_t,
                 forms[form] * kv_blocks * x->block_k * x->byte_width);
    PREFILL_TAKE(key_scale[form], float, forms[form] * kv_blocks);
    if (!forms[form])
      x->key_bytes[form] = 0;
  }
  PREFILL_TAKE(value_mean, float, valued * kv_blocks * x->v_head_dim);
  PREFILL_TAKE(value_square, float, valued * kv_blocks);
  if (!valued)
    x->value_mean = 0;
  PREFILL_TAKE(share, float,
               (in_bytes | sampled) * PREFILL_CUDA_BYTE_SLOTS * x->blocks *
                   PREFILL_CUDA_BYTE_ROWS * 2);
  PREFILL_TAKE(kept, uint32_t, rows * x->words);
  PREFILL_TAKE(row_blocks, int32_t, rows);
  PREFILL_TAKE(row_columns, int32_t, rows);
#undef PREFILL_TAKE
  return at;
}

/* One launch of the sequence. */
typedef struct prefill_cuda_index_launch {
  const char *kernel; /* its name; NULL: the sums kernel `sums` */
  int sums;           /* 0: rows, 1: columns (lines) */
  uint32_t grid[3];
} prefill_cuda_index_launch;
#define PREFILL_CUDA_INDEX_LAUNCHES 24

/* Writes the launches that heads of these patterns need, in order, and returns
 * how many. x is laid out for them. */
static inline int
prefill_cuda_index_launches(const prefill_cuda_index *x, uint32_t patterns,
                            prefill_cuda_index_launch *out) {
  const uint32_t heads = (uint32_t)x->heads, batch = (uint32_t)x->batch;
  const uint32_t tiles = (uint32_t)x->tiles;
  int n = 0;
#define PREFILL_LAUNCH(name, which, gx, gy, gz)                                \
  do {                                                                         \
    out[n].kernel = name;                                                      \
    out[n].sums = which;                                                       \
    out[n].grid[0] = gx;                                                       \
    out[n].grid[1] = gy;                                                       \
    out[n++].grid[2] = gz;                                                     \
  } while (0)
  PREFILL_LAUNCH("prefill_index_prepare", 0, batch, 1, 1);
  if (patterns & PREFILL_CUDA_SUMMED) {
    const uint32_t chunks = (uint32_t)x->sums_chunks;
    PREFILL_LAUNCH(0, 0, chunks, heads, batch);
    PREFILL_LAUNCH("prefill_index_sums", 0, heads, batch, 1);
    PREFILL_LAUNCH(0, 1, chunks, heads, batch);
    if (patterns >> PREFILL_PATTERN_VERTICAL_SLASH & 1)
      PREFILL_LAUNCH("prefill_index_select_lines", 0, 2, heads, batch);
  }
  PREFILL_LAUNCH("prefill_index_relative", 0, heads, batch, 1);
  if (patterns & PREFILL_CUDA_POOLED) {
    PREFILL_LAUNCH("prefill_index_pool_keys", 0, (uint32_t)x->blocks,
                   heads / (uint32_t)x->group, batch);
    PREFILL_LAUNCH("prefill_index_pool_scores", 0,
                   (tiles + PREFILL_CUDA_POOL_TILES - 1) /
                       PREFILL_CUDA_POOL_TILES,
                   heads, batch);
    if (patterns >> PREFILL_PATTERN_FLEXPREFILL & 1) {
      PREFILL_LAUNCH("prefill_index_flex", 0, heads, batch, 1);
      PREFILL_LAUNCH("prefill_index_flex_lines", 0, 2, heads, batch);
    }
    PREFILL_LAUNCH("prefill_index_select_blocks", 0, tiles, heads, batch);
  }
  if (patterns >> PREFILL_PATTERN_INFLLM_V2 & 1) {
    const uint32_t means = (uint32_t)x->means;
    PREFILL_LAUNCH("prefill_index_mean_keys", 0,
                   means < PREFILL_CUDA_MEANS
                       ? 1
                       : (means + PREFILL_CUDA_MEANS - 1) / PREFILL_CUDA_MEANS,
                   heads / (uint32_t)x->group, batch);
    PREFILL_LAUNCH("prefill_index_infllm", 0, PREFILL_CUDA_BYTE_SLOTS, 1, 1);
    PREFILL_LAUNCH("prefill_index_select_top", 0, tiles, heads, batch);
  }
  const uint32_t in_bytes =
      patterns & (PREFILL_CUDA_NEEDS_BYTES | PREFILL_CUDA_NEEDS_NIBBLES);
  const uint32_t sampled = patterns >> PREFILL_PATTERN_SAMPLED & 1;
  const uint32_t kv_heads = heads / (uint32_t)x->group;
  if (in_bytes || patterns & PREFILL_CUDA_NEEDS_VALUES)
    PREFILL_LAUNCH("prefill_index_sum_blocks", 0, (uint32_t)x->blocks, kv_heads,
                   batch);
  if (in_bytes) {
    PREFILL_LAUNCH("prefill_index_center_keys", 0, kv_heads, batch, 1);
    PREFILL_LAUNCH("prefill_index_quantize_keys", 0, (uint32_t)x->blocks,
                   kv_heads, batch);
  }
  if (patterns >> PREFILL_PATTERN_SALE & 1)
    PREFILL_LAUNCH("prefill_index_sale", 0, PREFILL_CUDA_BYTE_SLOTS, 1, 1);
  if (patterns >> PREFILL_PATTERN_XATTENTION & 1)
    PREFILL_LAUNCH("prefill_index_xattention", 0, PREFILL_CUDA_BYTE_SLOTS, 1,
                   1);
  if (sampled)
    PREFILL_LAUNCH("prefill_index_sampled", 0, PREFILL_CUDA_BYTE_SLOTS, 1, 1);
  if (in_bytes || sampled)
    PREFILL_LAUNCH("prefill_index_select_mass", 0, tiles, heads, batch);
  PREFILL_LAUNCH("prefill_index_rows", 0, (tiles + 7) / 8, heads, batch);
  PREFILL_LAUNCH("prefill_index_scan", 0, 1, 1, 1);
  PREFILL_LAUNCH("prefill_index_fill", 0, (tiles + 7) / 8, heads, batch);
#undef PREFILL_LAUNCH
  return n;
}

#ifdef __cplusplus
}
#endif
#endif
