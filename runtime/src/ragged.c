/*===- ragged.c - Rows that do not follow one another -------------*- C -*-===*\
|*
|* Two inputs say where query rows stand: Q_POSITIONS (any rows of the prompt:
|* what row liveness leaves of a layer) and SEGMENT_STARTS (several prompts one
|* after the other: prepacking, arXiv:2404.09529). Both cut a call into pieces:
|* consecutive query rows at consecutive positions of one prompt, with the keys
|* of that prompt. A piece is an ordinary call on a part of Q, K, V and O, so
|* that tiles and estimates never see another prompt; it runs on all threads,
|* and the pieces one after the other.
|*
|* Positions and rows of rotary tables count through the whole pack; the graph
|* makes the tables from positions that restart in every prompt. With a KV cache
|* (cache.c) the keys of a prompt are those of earlier calls, too.
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <string.h>

static int64_t element_at(const DLTensor *tensor, int64_t index) {
  const char *data = (const char *)tensor->data + tensor->byte_offset;
  return ((const int64_t *)(const void *)data)[index];
}

/* Position of row i of batch entry b. */
static int64_t position_of(const pf_call *call, int64_t b, int64_t i) {
  const DLTensor *tensor = call->q_positions;
  if (!tensor)
    return i;
  const int32_t last = tensor->ndim - 1;
  const int64_t step = tensor->strides ? tensor->strides[last] : 1;
  if (!last || tensor->shape[0] == 1)
    b = 0;
  return element_at(
      tensor,
      b * (tensor->strides && last ? tensor->strides[0] : call->s) + i * step);
}

int64_t pf_segment_start(const pf_call *call, int64_t segment) {
  const DLTensor *tensor = call->segment_starts;
  return element_at(tensor,
                    segment * (tensor->strides ? tensor->strides[0] : 1));
}

static int64_t segment_count(const pf_call *call) {
  return call->segment_starts->shape[0] - 1;
}

/* The segment that holds key `position`, which one of them does. */
static int64_t segment_of(const pf_call *call, int64_t position) {
  int64_t low = 0, high = segment_count(call);
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (pf_segment_start(call, middle) <= position)
      low = middle;
    else
      high = middle;
  }
  return low;
}

static prefill_status check_starts(const pf_call *call) {
  const int64_t count = segment_count(call);
  int64_t last = 0;
  for (int64_t i = 0; i <= count; ++i) {
    const int64_t start = pf_segment_start(call, i);
    if (start < last || start > call->t || (i == 0 && start))
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "input SEGMENT_STARTS: expected ascending numbers from 0 "
                     "to %lld, got %lld at place %lld",
                     (long long)call->t, (long long)start, (long long)i);
    last = start;
  }
  if (last != call->t)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input SEGMENT_STARTS: expected to end at %lld, the number "
                   "of keys, got %lld",
                   (long long)call->t, (long long)last);
  return PREFILL_OK;
}

/* Every position, before anything is computed. */
static prefill_status check_positions(pf_call *call) {
  const DLTensor *tensor = call->q_positions;
  if (!tensor)
    return PREFILL_OK;
  const int64_t batches = tensor->ndim == 1 ? 1 : tensor->shape[0];
  int64_t low = -PF_MAX_LENGTH, high = PF_MAX_LENGTH;
  if (call->rotary || call->segment_starts)
    low = 0;
  if (call->rotary)
    high = call->rotary_rows;
  if (call->segment_starts)
    high = pf_min(high, call->t);
  for (int64_t b = 0; b < batches; ++b)
    for (int64_t i = 0; i < call->s; ++i) {
      const int64_t position = position_of(call, b, i);
      if (position < low || position >= high)
        return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                       "input Q_POSITIONS: expected positions from %lld to "
                       "%lld, got %lld for row %lld",
                       (long long)low, (long long)(high - 1),
                       (long long)position, (long long)i);
      call->may_mask_rows |= position + call->window_right < 0 &&
                             call->desc->masked_row != PREFILL_MASKED_ZERO;
    }
  return PREFILL_OK;
}

/* The longest piece of batch entry b that begins at `row`. */
static pf_piece piece_at(const pf_call *call, int64_t b, int64_t row) {
  pf_piece p = {.batch = b,
                .batches = 1,
                .row = row,
                .rows = 1,
                .position = position_of(call, b, row),
                .keys = call->t,
                .offset = position_of(call, b, row)};
  int64_t rest = call->s - row;
  if (call->segment_starts) {
    const int64_t segment = segment_of(call, p.position);
    const int64_t begin = pf_segment_start(call, segment);
    const int64_t end = pf_segment_start(call, segment + 1);
    p.key = p.table = begin;
    p.keys = end - begin;
    p.offset = p.position - begin;
    if (call->cache_slots) {
      const pf_slot slot = pf_slot_of(call, segment);
      p.key = slot.row;
      p.keys = slot.held + slot.added;
      p.offset += slot.held;
      p.table -= slot.held;
    }
    rest = pf_min(rest, end - p.position);
  }
  while (p.rows < rest &&
         position_of(call, b, row + p.rows) == p.position + p.rows)
    ++p.rows;
  return p;
}

static void advance(pf_rows *rows, int64_t batch, int64_t row, int64_t bytes) {
  if (rows->data)
    rows->data += (batch * rows->batch + row * rows->row) * bytes;
}

/* Adds what a piece visited to the sums that DENSITY is made of. */
static void add_visited(const pf_call *part, int64_t *sums) {
  for (int64_t i = 0; i < part->b * part->hq; ++i)
    for (int64_t tile = 0; tile < part->tiles; ++tile)
      for (int64_t what = 0; what < 2; ++what)
        sums[2 * i + what] +=
            part->visited[(i * part->tiles + tile) * 2 + what];
}

/* Adds the BLOCK_MAP of a piece to the call's, whose tiles of rows and blocks
 * of keys lie elsewhere: an entry is what any of it visited. */
static void add_map(const pf_call *call, const pf_piece *p,
                    const pf_call *part) {
  const pf_rows *from = &part->block_map, *to = &call->block_map;
  for (int64_t b = 0; b < part->b; ++b)
    for (int64_t h = 0; h < part->hq; ++h)
      for (int64_t i = 0; i < part->tiles; ++i)
        for (int64_t j = 0; j < part->blocks; ++j) {
          const uint8_t value =
              (uint8_t)from
                  ->data[b * from->batch + h * from->head + i * from->row + j];
          const int64_t row = p->row + i * call->bq,
                        key = p->key + j * call->bk;
          const int64_t rows_end = pf_min(row + call->bq, p->row + p->rows);
          const int64_t keys_end = pf_min(key + call->bk, p->key + p->keys);
          if (!value)
            continue;
          for (int64_t y = row / call->bq; y * call->bq < rows_end; ++y)
            for (int64_t x = key / call->bk; x * call->bk < keys_end; ++x) {
              char *entry = to->data + (p->batch + b) * to->batch +
                            h * to->head + y * to->row + x * call->map_block;
              if (value == 1 || !*entry)
                *entry = (char)value;
            }
        }
}

/* Memory for the BLOCK_MAP of a piece. */
static prefill_status make_map(pf_call *part) {
  part->block_map = (pf_rows){
      .data = pf_alloc(part, part->b * part->hq * part->tiles, part->blocks),
      .batch = part->hq * part->tiles * part->blocks,
      .head = part->tiles * part->blocks,
      .row = part->blocks};
  part->map_block = 1;
  return part->block_map.data ? PREFILL_OK : PREFILL_OUT_OF_MEMORY;
}

/* Nothing is visited yet. */
static void clear_map(const pf_call *call) {
  const pf_rows *map = &call->block_map;
  for (int64_t i = 0; i < call->b * call->hq * call->tiles; ++i)
    for (int64_t j = 0; j < call->blocks; ++j)
      map->data[i / call->tiles / call->hq * map->batch +
                i / call->tiles % call->hq * map->head +
                i % call->tiles * map->row + j * call->map_block] = 0;
}

prefill_status pf_run_piece(const pf_call *call, const pf_piece *p,
                            pf_run_fn run, int64_t *sums) {
  pf_call part = *call;
  part.owned_count = 0;
  part.q_positions = part.segment_starts = NULL;
  if (p->scale != 0)
    part.scale = p->scale;
  part.modalities = 0; /* what is known of them is of the rows of the call */
  part.b = p->batches;
  part.s = p->rows;
  part.t = p->keys;
  part.tiles = pf_ceil_div(part.s, part.bq);
  part.blocks = pf_ceil_div(part.t, part.bk);
  advance(&part.q, p->batch, p->row, call->element);
  if (p->o)
    part.o = *p->o;
  else
    advance(&part.o, p->batch, p->row, call->element);
  advance(&part.k, p->batch, p->key, call->element);
  advance(&part.v, p->batch, p->key, call->element);
  if (p->lse)
    part.lse = *p->lse;
  else
    advance(&part.lse, p->batch, p->row, (int64_t)sizeof(float));
  /* The score is of the last row: of a segment, or with positions of all. */
  if (call->q_positions && p->row + p->rows < call->s)
    part.token_score.data = NULL;
  if (part.token_score.data)
    part.token_score.data +=
        (p->batch * part.token_score.batch + p->key * part.token_score.row) *
        (int64_t)sizeof(float);
  const int64_t table_bytes = call->rotary_dtype == PREFILL_F32 ? 4 : 2;
  advance(&part.cosine, p->batch, 0, table_bytes);
  advance(&part.sine, p->batch, 0, table_bytes);
  part.table_row = p->table;
  if (part.bias.data)
    part.bias.data +=
        (p->batch * part.bias.stride[0] + p->row * part.bias.stride[2]) *
        part.bias.bytes;
  pf_batch *batch = pf_alloc(&part, part.b, sizeof(pf_batch));
  if (!batch)
    return PREFILL_OUT_OF_MEMORY;
  for (int64_t b = 0; b < part.b; ++b) {
    batch[b] = call->batch[p->batch + b];
    batch[b].offset = p->offset;
    if (call->segment_starts)
      batch[b].kv_len = batch[b].last_key = part.t;
    if (batch[b].q_segment)
      batch[b].q_segment += p->row;
  }
  part.batch = batch;
  /* An estimate for one tile of rows would look at the keys as often as dense
   * attention does. */
  prefill_attention_desc dense = *call->desc;
  dense.plan = NULL;
  if (part.tiles == 1 && part.s < part.t)
    part.desc = &dense;
  prefill_status status = call->block_map.data ? make_map(&part) : PREFILL_OK;
  if (!status)
    status = run(&part);
  if (!status && call->block_map.data)
    add_map(call, p, &part);
  if (!status && sums)
    add_visited(&part, sums + p->batch * call->hq * 2);
  pf_release_all(&part);
  return status;
}

static prefill_status run_pieces(pf_call *call, pf_run_fn run, int64_t *sums) {
  const DLTensor *positions = call->q_positions;
  const bool same =
      !positions || positions->ndim == 1 || positions->shape[0] == 1;
  const int64_t batches = same ? call->b : 1;
  for (int64_t b = 0; b < call->b; b += batches)
    for (int64_t row = 0; row < call->s;) {
      pf_piece p = piece_at(call, b, row);
      p.batches = batches;
      prefill_status status =
          call->context_slots
              ? pf_run_with_contexts(call, &p, segment_of(call, p.position),
                                     run, sums)
              : pf_run_piece(call, &p, run, sums);
      if (status)
        return status;
      row += p.rows;
    }
  return PREFILL_OK;
}

prefill_status pf_run_ragged(pf_call *call, pf_run_fn run) {
  prefill_status status;
  if ((call->segment_starts && (status = check_starts(call))) ||
      (status = check_positions(call)) ||
      (call->context_slots && (status = pf_check_contexts(call))))
    return status;
  if (call->rotary && (status = pf_rotate_keys(call)))
    return status;
  call->keys_rotated = true;
  if (call->cache_slots && (status = pf_append_to_cache(call)))
    return status;
  int64_t *sums = NULL;
  if (call->density.data) {
    const int64_t count = call->b * call->hq * 2;
    if (!(sums = pf_alloc(call, count, sizeof(int64_t))))
      return PREFILL_OUT_OF_MEMORY;
    memset(sums, 0, (size_t)count * sizeof(int64_t));
  }
  if (call->block_map.data)
    clear_map(call);
  if ((status = run_pieces(call, run, sums)))
    return status;
  if (call->kept_rows)
    pf_keep_in_cache(call);
  for (int64_t i = 0; sums && i < call->b * call->hq; ++i)
    ((float *)call->density.data)[i / call->hq * call->density.batch +
                                  i % call->hq * call->density.head] =
        sums[2 * i + 1] ? (float)((double)sums[2 * i] / (double)sums[2 * i + 1])
                        : 1.0f;
  return PREFILL_OK;
}
