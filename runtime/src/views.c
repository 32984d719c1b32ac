/*===- views.c - Tiles of rows that do not lie side by side, see views.h --===*/
#include "views.h"
#include "estimate.h"
#include <string.h>

pf_strip_keys pf_take_strip_keys(const pf_call *call, char **at) {
  pf_strip_keys keys = {0};
  keys.blocks = pf_take(at, call->blocks, sizeof(uint32_t));
  keys.mask = pf_take(at, call->blocks * call->bk, 1);
  keys.positions = pf_take(at, call->t + call->bk, sizeof(int32_t));
  keys.kept = pf_take(at, pf_words(call->blocks), sizeof(uint64_t));
  return keys;
}

int64_t pf_strip_keys_bytes(const pf_call *call) {
  static char anchor[1];
  char *at = anchor;
  pf_take_strip_keys(call, &at);
  return at - anchor;
}

static int64_t bitmap_bytes(const pf_call *call) {
  return call->modalities * call->modalities * pf_words(call->t) * 8;
}

int64_t pf_boundary_bytes(const pf_call *call) {
  return bitmap_bytes(call) + pf_round_up((call->modalities + 1) * 4, 8) +
         call->modalities * call->t * 4;
}

void pf_boundary_init(pf_head_index *index, const pf_call *call,
                      void *storage) {
  char *at = storage;
  *index = (pf_head_index){.mode = PF_HEAD_VIEWS, .dense_tile = call->tiles};
  index->diagonals = storage;
  at += bitmap_bytes(call);
  memset(storage, 0, (size_t)(at - (char *)storage));
  index->column_first = (int32_t *)at;
  at += pf_round_up((call->modalities + 1) * 4, 8);
  index->column = (int32_t *)at;
}

/*===-- strips -----------------------------------------------------------===*/

/* Rows before the dense tiles, and how many of them begin a view. */
static int64_t rows_of(const pf_head_index *index, const pf_call *call) {
  return pf_min(call->s, index->dense_tile * call->bq);
}
static int64_t views_of(const pf_head_index *index, const pf_call *call) {
  return pf_min(index->stride, rows_of(index, call));
}

int64_t pf_strip_count(const pf_head_index *index, const pf_call *call,
                       int64_t b) {
  if (index->diagonals)
    return call->batch[b].strips;
  const int64_t rows = pf_ceil_div(rows_of(index, call), index->stride);
  return views_of(index, call) * pf_ceil_div(rows, call->bq);
}

/* The longest first: from the last tiles to the first, the dense line before
 * the others. */
pf_strip pf_strip_of(const pf_head_index *index, const pf_call *call, int64_t b,
                     int64_t number) {
  const int64_t offset = call->batch[b].offset, step = index->stride;
  if (index->diagonals) {
    const pf_batch *batch = &call->batch[b];
    const int64_t *strip = batch->strip + 2 * (batch->strips - 1 - number);
    return (pf_strip){.row = strip[0],
                      .step = 1,
                      .rows = strip[1],
                      .position = offset + strip[0]};
  }
  const int64_t rows = rows_of(index, call), views = views_of(index, call);
  const int64_t tiles = pf_strip_count(index, call, b) / views;
  const int64_t line =
      ((index->phase - offset) % step + step) % step; /* its first row */
  const int64_t view = (number + (line < views ? line : 0)) % views;
  const int64_t tile = tiles - 1 - number / views;
  const int64_t all = pf_ceil_div(rows - view, step);
  pf_strip strip = {.row = view + tile * call->bq * step, .step = step};
  strip.rows = pf_max(0, pf_min(call->bq, all - tile * call->bq));
  strip.position = offset + strip.row;
  return strip;
}

/* Lists blocks [begin, end) of the view that hold visible keys, those first
 * that need no test: below seen_by_all, and below kv_len. mask: of the view, or
 * NULL; kept: bitmap of the blocks to list, or NULL: all. */
static void list_blocks(const pf_call *call, int64_t begin, int64_t end,
                        int64_t seen_by_all, const uint8_t *mask,
                        const uint64_t *kept, pf_strip_keys *keys) {
  const int64_t bk = call->bk;
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t block = begin; block < end; ++block) {
      if (kept && !pf_get_bit(kept, block))
        continue;
      const int64_t from = block * bk, to = pf_min(from + bk, keys->kv_len);
      int64_t visible = to - from;
      if (mask) {
        visible = 0;
        for (int64_t c = from; c < to; ++c)
          visible += mask[c] != 0;
      }
      const bool full = visible == bk && from + bk <= seen_by_all;
      if (visible > 0 && full == (pass == 0))
        keys->blocks[keys->block_count++] = (uint32_t)block;
    }
    if (pass == 0)
      keys->full_count = keys->block_count;
  }
}

static void pad_positions(const pf_call *call, pf_strip_keys *keys) {
  while (keys->column_count &&
         keys->positions[keys->column_count - 1] == INT32_MAX)
    --keys->column_count;
  for (int64_t i = keys->column_count; i % call->bk; ++i)
    keys->positions[i] = INT32_MAX;
}

/* A strip of the rows that see everything. All blocks before the first row are
 * listed as they lie; for them `position` need only be large enough. */
static void list_line(const pf_call *call, const pf_batch *batch,
                      const pf_strip *strip, pf_strip_keys *keys) {
  const int64_t bk = call->bk, first = strip->position;
  const int64_t last = first + (strip->rows - 1) * strip->step;
  keys->step = 1;
  keys->kv_len = batch->kv_len;
  keys->position = last;
  const int64_t whole =
      pf_min((first + 1) / bk, pf_ceil_div(batch->kv_len, bk));
  list_blocks(call, 0, whole, batch->kv_len, batch->key_mask, NULL, keys);
  keys->gather = whole * bk;
  const int64_t end = pf_min(last + 1, batch->kv_len);
  for (int64_t j = keys->gather; j < end; ++j) {
    const bool hidden = batch->key_mask && !batch->key_mask[j];
    const int64_t past = pf_max(0, j - first);
    keys->positions[keys->column_count++] =
        hidden ? INT32_MAX : (int32_t)(last + pf_ceil_div(past, strip->step));
  }
  pad_positions(call, keys);
}

/* A strip of any other rows. */
static void list_view(const pf_head_index *index, const pf_call *call,
                      const pf_batch *batch, const pf_strip *strip,
                      pf_strip_keys *keys) {
  const int64_t step = strip->step, bk = call->bk;
  const int64_t phase = strip->position % step;
  keys->first = phase;
  keys->step = step;
  keys->position = strip->position / step;
  keys->kv_len =
      batch->kv_len > phase ? pf_ceil_div(batch->kv_len - phase, step) : 0;
  const int64_t end = pf_min(keys->kv_len, keys->position + strip->rows);
  /* Without the slash a strip visits the blocks of its own rows. */
  const int64_t begin = index->slash ? 0 : keys->position / bk;
  if (batch->key_mask)
    for (int64_t c = begin * bk; c < pf_min(keys->kv_len, pf_round_up(end, bk));
         ++c)
      keys->mask[c] = batch->key_mask[phase + c * step];
  list_blocks(call, begin, pf_ceil_div(end, bk), keys->position + 1,
              batch->key_mask ? keys->mask : NULL, NULL, keys);
  const int64_t last = strip->position + (strip->rows - 1) * step;
  int64_t n = 0;
  for (; n < index->columns && index->column[n] <= last; ++n) {
    const uint32_t j = (uint32_t)index->column[n], c = j / (uint32_t)step;
    const int64_t other = j - c * (uint32_t)step;
    keys->positions[n] = (int32_t)(c + (other > phase));
    if (other == phase && c >= begin * bk) /* in a block */
      keys->positions[n] = INT32_MAX;
  }
  keys->column_count = n;
  keys->gather = -1;
  pad_positions(call, keys);
}

/* Sets the blocks that diagonals touch, seen from a strip, of those in [0, end)
 * that hold keys of modality `kind`. */
static void keep_diagonals(const pf_call *call, const pf_batch *batch,
                           const uint64_t *diagonals, int64_t kind,
                           const pf_strip *strip, int64_t end, uint64_t *kept) {
  const int64_t first = strip->position, last = first + strip->rows - 1;
  int64_t from = pf_next_bit(diagonals, 0, call->t, true);
  while (from < call->t) {
    const int64_t to = pf_next_bit(diagonals, from, call->t, false);
    const int64_t low = pf_floor_div(first - (to - 1), call->bk);
    const int64_t high = pf_floor_div(last - from, call->bk);
    for (int64_t block = pf_max(low, 0); block <= pf_min(high, end - 1);
         ++block)
      if (batch->block_modalities[block] >> kind & 1)
        pf_set_bit(kept, block);
    from = pf_next_bit(diagonals, to, call->t, true);
  }
}

/* A strip of rows of one modality. */
static void list_run(const pf_head_index *index, const pf_call *call,
                     const pf_batch *batch, const pf_strip *strip,
                     pf_strip_keys *keys) {
  const int64_t bk = call->bk, words = pf_words(call->t);
  const int64_t first = strip->position, last = first + strip->rows - 1;
  const int64_t kind = batch->modality[pf_min(first, call->t - 1)];
  keys->step = 1;
  keys->kv_len = batch->kv_len;
  keys->position = first;
  const int64_t end = pf_ceil_div(pf_min(batch->kv_len, last + 1), bk);
  const int64_t low = call->window ? pf_max(0, first - call->window_left) : 0;
  memset(keys->kept, 0, (size_t)pf_words(call->blocks) * 8);
  for (int64_t block = first / bk; block < end; ++block)
    pf_set_bit(keys->kept, block);
  for (int64_t of_key = 0; of_key < call->modalities; ++of_key)
    keep_diagonals(call, batch,
                   index->diagonals +
                       (kind * call->modalities + of_key) * words,
                   of_key, strip, end, keys->kept);
  /* Within a window no block needs no test: few are left anyhow. */
  list_blocks(call, low / bk, end, call->window ? 0 : first + 1,
              batch->key_mask, keys->kept, keys);
  const int32_t *column = index->column + index->column_first[kind];
  const int64_t count =
      index->column_first[kind + 1] - index->column_first[kind];
  int64_t n = 0;
  for (; n < count && column[n] <= last; ++n)
    keys->positions[n] =
        column[n] < low || pf_get_bit(keys->kept, column[n] / bk) ? INT32_MAX
                                                                  : column[n];
  keys->column_count = n;
  keys->first_column = index->column_first[kind];
  keys->gather = -1;
  pad_positions(call, keys);
}

void pf_list_strip(const pf_head_index *index, const pf_call *call, int64_t b,
                   const pf_strip *strip, pf_strip_keys *keys) {
  const pf_batch *batch = &call->batch[b];
  keys->first = keys->first_column = 0;
  keys->block_count = keys->full_count = keys->column_count = 0;
  if (index->diagonals)
    list_run(index, call, batch, strip, keys);
  else if (index->horizontal && strip->position % index->stride == index->phase)
    list_line(call, batch, strip, keys);
  else
    list_view(index, call, batch, strip, keys);
}

static int64_t live_tiles(const pf_call *call, const pf_strip_keys *keys) {
  int64_t live = 0;
  for (int64_t from = 0; from < keys->column_count; from += call->bk) {
    bool any = false;
    for (int64_t i = from; i < pf_min(from + call->bk, keys->column_count); ++i)
      any |= keys->positions[i] != INT32_MAX;
    live += any;
  }
  return live;
}

pf_work pf_views_work(const pf_head_index *index, const pf_call *call,
                      int64_t b, pf_strip_keys *keys) {
  pf_work work = {0};
  const int64_t strips = pf_strip_count(index, call, b);
  for (int64_t i = 0; i < strips; ++i) {
    const pf_strip strip = pf_strip_of(index, call, b, i);
    if (!strip.rows)
      continue;
    pf_list_strip(index, call, b, &strip, keys);
    ++work.tiles;
    work.blocks += keys->block_count;
    work.column_tiles += live_tiles(call, keys);
  }
  for (int64_t tile = index->dense_tile; tile < call->tiles; ++tile) {
    const pf_span span = pf_visible_span(call, b, tile);
    ++work.tiles;
    work.blocks += pf_count_visible(call, b, &span);
  }
  return work;
}

/*===-- running ----------------------------------------------------------===*/

/* One worker's memory. */
typedef struct strip_memory {
  pf_strip_keys keys;
  float *lse, *row, *rotary;
  char *q, *col_k, *col_v, *unmasked;
  void *tile_workspace;
} strip_memory;

/* base may be any address to learn the size. */
static strip_memory lay_out(const pf_call *call, char *base, int64_t *bytes) {
  char *at = base;
  strip_memory m = {.keys = pf_take_strip_keys(call, &at)};
  m.lse = pf_take(&at, call->bq, sizeof(float));
  m.row = pf_take(&at, call->e, sizeof(float));
  m.q = pf_take(&at, call->rotary ? call->bq * call->d : 0, call->element);
  m.rotary = pf_take(&at, call->rotary ? 2 * (call->d + call->rotary_width) : 0,
                     sizeof(float));
  m.col_k = pf_take(&at, call->most_gathered * call->d, call->element);
  m.col_v = pf_take(&at, call->most_gathered * call->e, call->element);
  m.unmasked = pf_take(&at, pf_unmasked_bytes(call), 1);
  m.tile_workspace = pf_take(&at, (int64_t)call->variant->workspace_bytes, 1);
  *bytes = at - base;
  return m;
}

/* Copies the columns that are a range of keys; hidden ones become zeros. */
static void gather(const pf_call *call, const char *source, int64_t stride,
                   int64_t width, const pf_strip_keys *keys, char *out) {
  const int64_t bytes = width * call->element;
  const int64_t padded = pf_round_up(keys->column_count, call->bk);
  for (int64_t i = 0; i < padded; ++i)
    if (keys->positions[i] == INT32_MAX)
      memset(out + i * bytes, 0, (size_t)bytes);
    else
      memcpy(out + i * bytes,
             source + (keys->gather + i) * stride * call->element,
             (size_t)bytes);
}

static void strip_body(pf_call *call, void *worker, int64_t item) {
  int64_t bytes;
  strip_memory m = lay_out(call, worker, &bytes);
  int64_t head = 0; /* the last one that begins at or before the item */
  for (int64_t end = call->b * call->hq; end - head > 1;) {
    const int64_t middle = head + (end - head) / 2;
    if (call->first_strip[middle] <= item)
      head = middle;
    else
      end = middle;
  }
  const int64_t b = head / call->hq, h = head % call->hq;
  const pf_head_index *index = &call->index[head];
  const pf_strip strip =
      pf_strip_of(index, call, b, item - call->first_strip[head]);
  if (!strip.rows)
    return;
  pf_strip_keys *keys = &m.keys;
  pf_list_strip(index, call, b, &strip, keys);
  const pf_batch *batch = &call->batch[b];
  const int64_t kv_head = h / call->group;
  const char *k = call->k.data +
                  (b * call->k.batch + kv_head * call->k.head) * call->element;
  const char *v = call->v.data +
                  (b * call->v.batch + kv_head * call->v.head) * call->element;
  char *o = call->o.data +
            (b * call->o.batch + h * call->o.head + strip.row * call->o.row) *
                call->element;
  static const float no_bias = 0;
  prefill_tile_args args = {
      .k = k + keys->first * call->k.row * call->element,
      .v = v + keys->first * call->v.row * call->element,
      .o = o,
      .q_stride = call->q.row * strip.step,
      .k_stride = call->k.row * keys->step,
      .v_stride = call->v.row * keys->step,
      .o_stride = call->o.row * strip.step,
      .rows = strip.rows,
      .position = keys->position,
      .kv_len = keys->kv_len,
      .window_left = call->window_left,
      .window_right = call->window_right,
      .scale = call->scale,
      .softcap = call->desc->softcap,
      .sink = call->sinks ? call->sinks[h] : PF_MINUS_INF,
      .skip = pf_skip_of(call, batch, h),
      .blocks = keys->blocks,
      .block_count = keys->block_count,
      .full_count = keys->full_count,
      .col_k = (const char *)index->col_k +
               keys->first_column * call->d * call->element,
      .col_v = (const char *)index->col_v +
               keys->first_column * call->e * call->element,
      .col_pos = keys->positions,
      .col_count = keys->column_count,
      .key_mask = !batch->key_mask  ? call->ones
                  : keys->step == 1 ? batch->key_mask
                                    : keys->mask,
      .bias = &no_bias,
      .q_segment = call->zeros,
      .k_segment = call->zeros,
      .workspace = m.tile_workspace};
  if (keys->gather >= 0) {
    gather(call, k, call->k.row, call->d, keys, m.col_k);
    gather(call, v, call->v.row, call->e, keys, m.col_v);
    args.col_k = m.col_k;
    args.col_v = m.col_v;
  }
  float *lse_out = NULL;
  if (call->lse.data)
    lse_out = (float *)call->lse.data + b * call->lse.batch +
              h * call->lse.head + strip.row * call->lse.row;
  if (lse_out || call->may_mask_rows)
    args.lse = m.lse;
  const int64_t o_bytes = args.o_stride * call->element;
  const bool any = args.block_count || args.col_count;
  if (any || pf_unmasks(call)) {
    if (call->rotary) {
      for (int64_t i = 0; i < strip.rows; ++i)
        pf_rotate_queries(call, b, h, strip.row + i * strip.step, 1,
                          m.q + i * call->d * call->element, m.rotary);
      args.q = m.q;
      args.q_stride = call->d;
    } else {
      args.q = call->q.data + (b * call->q.batch + h * call->q.head +
                               strip.row * call->q.row) *
                                  call->element;
    }
  }
  if (any) {
    call->variant->attention(&args);
  } else {
    for (int64_t i = 0; i < strip.rows; ++i) {
      memset(o + i * o_bytes, 0, (size_t)(call->e * call->element));
      if (args.lse)
        args.lse[i] = args.sink;
    }
  }
  if (pf_unmasks(call))
    pf_unmask_rows(call, b, h, &args, m.unmasked);
  else if (call->may_mask_rows)
    for (int64_t i = 0; i < strip.rows; ++i)
      if (args.lse[i] == PF_MINUS_INF)
        pf_write_masked_row(call, b, h, o + i * o_bytes, m.row);
  if (lse_out)
    for (int64_t i = 0; i < strip.rows; ++i)
      lse_out[i * call->lse.row * strip.step] = args.lse[i];
}

/* BLOCK_MAP of one head: 2 where a row of a tile visits a key of a block, 1
 * where rows of one modality visit a block. */
static void write_map(pf_call *call, void *worker, int64_t head) {
  const pf_head_index *index = &call->index[head];
  if (index->mode != PF_HEAD_VIEWS)
    return;
  int64_t bytes;
  pf_strip_keys keys = lay_out(call, worker, &bytes).keys;
  const int64_t b = head / call->hq, h = head % call->hq;
  uint8_t *map = (uint8_t *)call->block_map.data + b * call->block_map.batch +
                 h * call->block_map.head;
  for (int64_t tile = 0; tile < index->dense_tile; ++tile)
    for (int64_t block = 0; block < call->blocks; ++block)
      map[tile * call->block_map.row + block * call->map_block] = 0;
  const int64_t strips = pf_strip_count(index, call, b);
  for (int64_t n = 0; n < strips; ++n) {
    const pf_strip strip = pf_strip_of(index, call, b, n);
    if (!strip.rows)
      continue;
    pf_list_strip(index, call, b, &strip, &keys);
    const uint8_t whole = index->diagonals ? 1 : 2;
    for (int64_t i = 0; i < strip.rows; ++i) {
      const int64_t row = strip.row + i * strip.step;
      uint8_t *out = map + row / call->bq * call->block_map.row;
      const int64_t own = strip.position + i * strip.step;
      for (int64_t x = 0; x < keys.block_count; ++x)
        for (int64_t c = 0; c < call->bk; ++c) {
          const int64_t view = keys.blocks[x] * call->bk + c;
          const int64_t j = keys.first + view * keys.step;
          if (view < keys.kv_len && j <= own)
            out[j / call->bk * call->map_block] = whole;
        }
      for (int64_t x = 0; x < keys.column_count; ++x) {
        const int64_t j = keys.gather >= 0
                              ? keys.gather + x
                              : index->column[keys.first_column + x];
        uint8_t *mark = out + j / call->bk * call->map_block;
        if (keys.positions[x] != INT32_MAX && j <= own && !*mark)
          *mark = 2;
      }
    }
  }
}

prefill_status pf_run_strips(pf_call *call) {
  if (!call->index)
    return PREFILL_OK;
  const int64_t heads = call->b * call->hq;
  int64_t strips = 0, most = 0;
  for (int64_t head = 0; head < heads; ++head) {
    const pf_head_index *index = &call->index[head];
    if (index->mode != PF_HEAD_VIEWS)
      continue;
    strips += pf_strip_count(index, call, head / call->hq);
    if (index->horizontal) /* between the first and the last row of a strip */
      most = pf_max(most, (call->bq - 1) * index->stride + call->bk);
  }
  if (!strips)
    return PREFILL_OK;
  int64_t *first = pf_alloc(call, heads, sizeof(int64_t));
  if (!first)
    return PREFILL_OUT_OF_MEMORY;
  strips = 0;
  for (int64_t head = 0; head < heads; ++head) {
    first[head] = strips;
    if (call->index[head].mode == PF_HEAD_VIEWS)
      strips += pf_strip_count(&call->index[head], call, head / call->hq);
  }
  call->first_strip = first;
  call->most_gathered = pf_round_up(pf_min(most, call->t), call->bk);
  int64_t bytes;
  static char anchor[1];
  lay_out(call, anchor, &bytes);
  const double work = 2.0 * (double)(call->d + call->e) * (double)call->bq *
                      (double)call->bq * (double)strips;
  const prefill_status status =
      pf_parallel(call, strips, work, bytes, strip_body);
  if (status || !call->block_map.data)
    return status;
  return pf_parallel(call, heads, work, bytes, write_map);
}

prefill_status pf_count_strips(pf_call *call) {
  char *memory = pf_alloc(call, pf_strip_keys_bytes(call), 1);
  if (!memory)
    return PREFILL_OUT_OF_MEMORY;
  pf_strip_keys keys = pf_take_strip_keys(call, &memory);
  for (int64_t head = 0; call->index && head < call->b * call->hq; ++head) {
    const pf_head_index *index = &call->index[head];
    if (index->mode != PF_HEAD_VIEWS)
      continue;
    const pf_work work = pf_views_work(index, call, head / call->hq, &keys);
    int64_t visits = work.blocks + work.column_tiles;
    int32_t *visited = call->visited + head * call->tiles * 2;
    for (int64_t tile = index->dense_tile; tile < call->tiles; ++tile)
      visits -= visited[2 * tile]; /* counted there */
    visited[0] = (int32_t)visits;
  }
  return PREFILL_OK;
}
