/*===- attention.c - One call of a kernel -------------------------*- C -*-===*\
|*
|* Checks, prepares, and runs the tile function on every tile of query rows. An
|* item of work is one tile of one head. Order: KV heads one after the other
|* (their K and V stay in cache), within one the tiles from the last (under a
|* causal mask the longest) to the first, the heads of the group side by side:
|* every list of items ends with short ones, which balances threads.
|*
|* An item's result depends on nothing but its inputs, never on the thread or on
|* what ran before: 1 and N threads give the same bits.
|*
\*===----------------------------------------------------------------------===*/
#include "cuda.h"
#include "index.h"
#include "views.h"
#include <string.h>

/* One worker's memory, cut into parts. */
typedef struct tile_memory {
  uint32_t *blocks;     /* [blocks] */
  uint64_t *kept;       /* bitmap over blocks */
  int32_t *columns;     /* positions of columns */
  float *lse;           /* [bq] */
  float *row;           /* [e] */
  uint8_t *bias_state;  /* [blocks] */
  float *bias;          /* [bq][bias_width] */
  char *q;              /* rotated rows, [bq][d] */
  float *rotary;        /* scratch of pf_rotate_queries */
  char *exact;          /* scratch of pf_exact_rows */
  char *unmasked;       /* scratch of pf_unmask_rows */
  void *tile_workspace; /* the tile function's own */
  int64_t bytes;
} tile_memory;

/* The bias can be read in place: float32 with adjacent or broadcast keys. */
static bool bias_in_place(const pf_call *call) {
  return call->bias.dtype == PREFILL_F32 && call->bias.stride[3] <= 1;
}
/* Biases may be finite and yet below all that tile functions tell from -inf.
 * (With MASKED_MEAN all hidden scores are one finite number, whatever hides
 * them: that row is the mean of all values.) */
static bool bias_needs_care(const pf_call *call) {
  return call->bias.data && call->bias.dtype != PF_BOOL8 &&
         call->desc->masked_row != PREFILL_MASKED_MEAN;
}
static int64_t bias_width(const pf_call *call) {
  return call->blocks * call->bk;
}

/* Cuts the memory at base, which may be NULL to learn the size. */
static tile_memory lay_out(const pf_call *call, void *base) {
  tile_memory m;
  uintptr_t at = (uintptr_t)base;
#define PART(field, count)                                                     \
  m.field = (void *)at;                                                        \
  at += (uintptr_t)pf_round_up((int64_t)sizeof(*m.field) * (count), 64)
  PART(blocks, call->blocks);
  PART(kept, call->blocks / 64 + 1);
  PART(columns, call->index ? pf_round_up(call->most_columns, call->bk) : 0);
  PART(lse, call->bq);
  PART(row, call->e);
  const bool convert = call->bias.data && !bias_in_place(call);
  PART(bias_state, convert ? call->blocks : 0);
  PART(bias, convert ? call->bq * bias_width(call) : 0);
  PART(q, call->rotary ? call->bq * call->d * call->element : 0);
  PART(rotary, call->rotary ? 2 * (call->d + call->rotary_width) : 0);
  PART(exact, bias_needs_care(call) ? pf_exact_bytes(call) : 0);
  PART(unmasked, pf_unmasked_bytes(call));
#undef PART
  m.tile_workspace = (void *)at;
  at += (uintptr_t)pf_round_up((int64_t)call->variant->workspace_bytes, 64);
  m.bytes = (int64_t)(at - (uintptr_t)base);
  return m;
}

/* Converts the bias of a tile for the keys of its span, and for bool masks
 * tells which blocks are all visible or all hidden. */
static void convert_bias(const pf_call *call, int64_t b, int64_t h, int64_t row,
                         int64_t rows, const pf_span *span,
                         const tile_memory *m) {
  const pf_bias *bias = &call->bias;
  const int64_t width = bias_width(call), step = bias->stride[3];
  const char *base = bias->data + (b * bias->stride[0] + h * bias->stride[1] +
                                   row * bias->stride[2]) *
                                      bias->bytes;
  const int64_t begin = span->begin * call->bk;
  const int64_t end = pf_min(span->end * call->bk, call->t);
  const int64_t distinct = bias->stride[2] ? rows : 1;
  if (bias->dtype == PF_BOOL8)
    for (int64_t block = span->begin; block < span->end; ++block) {
      const int64_t last = pf_min((block + 1) * call->bk, call->t);
      bool any = false, all = true;
      for (int64_t i = 0; i < distinct; ++i) {
        const uint8_t *bytes = (const uint8_t *)base + i * bias->stride[2];
        uint8_t some = 0, none = 0;
        for (int64_t j = block * call->bk; j < last; ++j) {
          some |= bytes[j * step];
          none |= bytes[j * step] == 0;
        }
        any |= some != 0;
        all &= none == 0;
      }
      m->bias_state[block] = all   ? PF_BLOCK_ALL
                             : any ? PF_BLOCK_SOME
                                   : PF_BLOCK_HIDDEN;
    }
  for (int64_t i = 0; i < distinct; ++i)
    call->hot->to_float(m->bias + i * width + begin,
                        base +
                            (i * bias->stride[2] + begin * step) * bias->bytes,
                        step, end - begin, bias->dtype);
}

/* The contract's values for a row that sees no key. */
void pf_write_masked_row(const pf_call *call, int64_t b, int64_t h, char *out,
                         float *row) {
  if (call->desc->masked_row == PREFILL_MASKED_MEAN) {
    const float *mean =
        call->value_mean + (b * call->hk + h / call->group) * call->e;
    call->hot->from_float(out, mean, call->e, call->desc->dtype);
    return;
  }
  for (int64_t c = 0; c < call->e; ++c)
    row[c] = __builtin_nanf("");
  call->hot->from_float(out, row, call->e, call->desc->dtype);
}

/* BLOCK_MAP of one tile. */
static void write_map(const pf_call *call, int64_t b, int64_t h, int64_t tile,
                      const uint32_t *blocks, int64_t count,
                      const int32_t *columns, int64_t column_count) {
  uint8_t *map = (uint8_t *)call->block_map.data + b * call->block_map.batch +
                 h * call->block_map.head + tile * call->block_map.row;
  for (int64_t i = 0; i < call->blocks; ++i)
    map[i * call->map_block] = 0;
  for (int64_t i = 0; i < column_count; ++i)
    if (columns[i] != INT32_MAX)
      map[columns[i] / call->bk * call->map_block] = 2;
  for (int64_t i = 0; i < count; ++i)
    map[blocks[i] * call->map_block] = 1;
}

/* Tiles of columns with any live one. */
static int64_t live_column_tiles(const pf_call *call, const int32_t *columns,
                                 int64_t count) {
  int64_t live = 0;
  for (int64_t begin = 0; begin < count; begin += call->bk) {
    bool any = false;
    for (int64_t i = begin; i < pf_min(begin + call->bk, count); ++i)
      any |= columns[i] != INT32_MAX;
    live += any;
  }
  return live;
}

/* What DENSITY is made of, of one tile. */
static void count_visits(const pf_call *call, int64_t b, int64_t h,
                         int64_t tile, const pf_span *span, int64_t visits) {
  if (!call->visited)
    return;
  int32_t *visited =
      call->visited + ((b * call->hq + h) * call->tiles + tile) * 2;
  visited[0] = (int32_t)visits;
  visited[1] = (int32_t)pf_count_visible(call, b, span);
}

float pf_skip_of(const pf_call *call, const pf_batch *batch, int64_t h) {
  const prefill_plan *plan = call->desc->plan;
  if (!plan || !(plan->heads[h].skip > 0) || call->s <= 1 ||
      batch->last_key < plan->dense_below)
    return PF_MINUS_INF;
  return (float)(pf_logarithm((double)plan->heads[h].skip) /
                 0.693147180559945309);
}

static void tile_body(pf_call *call, void *worker, int64_t item) {
  const prefill_attention_desc *desc = call->desc;
  const tile_memory m = lay_out(call, worker);
  const int64_t in_group = item % call->group;
  const int64_t tile = call->tiles - 1 - item / call->group % call->tiles;
  const int64_t kv = item / call->group / call->tiles; /* batch and KV head */
  const int64_t b = kv / call->hk, kv_head = kv % call->hk;
  const int64_t h = kv_head * call->group + in_group;
  const int64_t row = tile * call->bq;
  const int64_t rows = pf_min(call->bq, call->s - row);
  const pf_batch *batch = &call->batch[b];
  const pf_span span = pf_visible_span(call, b, tile);
  const pf_head_index *index =
      call->index ? &call->index[b * call->hq + h] : NULL;
  if (index && index->mode == PF_HEAD_VIEWS && tile < index->dense_tile) {
    count_visits(call, b, h, tile, &span, 0); /* pf_run_strips did these */
    return;
  }

  prefill_tile_args args = {0};
  args.rows = rows;
  args.position = span.position;
  args.kv_len = batch->kv_len;
  args.window_left = call->window_left;
  args.window_right = call->window_right;
  args.scale = call->scale;
  args.softcap = desc->softcap;
  args.sink = call->sinks ? call->sinks[h] : PF_MINUS_INF;
  args.skip = pf_skip_of(call, batch, h);
  args.k = call->k.data +
           (b * call->k.batch + kv_head * call->k.head) * call->element;
  args.v = call->v.data +
           (b * call->v.batch + kv_head * call->v.head) * call->element;
  args.k_stride = call->k.row;
  args.v_stride = call->v.row;
  char *o = call->o.data +
            (b * call->o.batch + h * call->o.head + row * call->o.row) *
                call->element;
  args.o = o;
  args.o_stride = call->o.row;
  args.workspace = m.tile_workspace;

  /* Bias. */
  static const float no_bias = 0;
  const uint8_t *bias_state = NULL;
  if (call->bias.data && bias_in_place(call)) {
    args.bias = (const float *)call->bias.data + b * call->bias.stride[0] +
                h * call->bias.stride[1] + row * call->bias.stride[2];
    args.bias_row_stride = call->bias.stride[2];
    args.bias_key_stride = call->bias.stride[3];
  } else if (call->bias.data) {
    convert_bias(call, b, h, row, rows, &span, &m);
    args.bias = m.bias;
    args.bias_row_stride = call->bias.stride[2] ? bias_width(call) : 0;
    args.bias_key_stride = 1;
    if (call->bias.dtype == PF_BOOL8)
      bias_state = m.bias_state;
  } else {
    args.bias = &no_bias;
  }

  /* Blocks and columns. */
  const uint64_t *kept = NULL;
  if (index && index->mode != PF_HEAD_DENSE && tile < index->dense_tile) {
    const pf_grid grid = pf_grid_of(call, b);
    memset(m.kept, 0, (size_t)(call->blocks / 64 + 1) * 8);
    pf_index_row(index, &grid, tile, span.begin, span.end, m.kept);
    kept = m.kept;
    if (index->mode == PF_HEAD_RELATIVE && index->columns) {
      int64_t first;
      args.col_count = pf_index_columns(index, &grid, span.begin, span.end,
                                        kept, m.columns, &first);
      args.col_pos = m.columns;
      args.col_k = (const char *)index->col_k + first * call->d * call->element;
      args.col_v = (const char *)index->col_v + first * call->e * call->element;
    }
  }
  args.block_count = pf_list_blocks(call, b, row, rows, &span, kept, bias_state,
                                    m.blocks, &args.full_count);
  args.blocks = m.blocks;
  args.key_mask = batch->key_mask ? batch->key_mask : call->ones;
  args.q_segment = batch->q_segment ? batch->q_segment + row : call->zeros;
  args.k_segment = batch->k_segment ? batch->k_segment : call->zeros;

  /* LSE: into the output where it is compact. */
  float *lse_out = NULL;
  if (call->lse.data)
    lse_out = (float *)call->lse.data + b * call->lse.batch +
              h * call->lse.head + row * call->lse.row;
  if (lse_out && (call->lse.row == 1 || rows == 1))
    args.lse = lse_out;
  else if (lse_out || call->may_mask_rows || bias_needs_care(call))
    args.lse = m.lse;

  const bool any = args.block_count || args.col_count;
  if (any || pf_unmasks(call)) {
    if (call->rotary) {
      pf_rotate_queries(call, b, h, row, rows, m.q, m.rotary);
      args.q = m.q;
      args.q_stride = call->d;
    } else {
      args.q = call->q.data +
               (b * call->q.batch + h * call->q.head + row * call->q.row) *
                   call->element;
      args.q_stride = call->q.row;
    }
  }
  if (any) {
    call->variant->attention(&args);
    if (bias_needs_care(call))
      pf_exact_rows(call, &args, m.exact);
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      memset(o + i * call->o.row * call->element, 0,
             (size_t)(call->e * call->element));
      if (args.lse)
        args.lse[i] = args.sink;
    }
  }
  if (pf_unmasks(call))
    pf_unmask_rows(call, b, h, &args, m.unmasked);
  else if (call->may_mask_rows)
    for (int64_t i = 0; i < rows; ++i)
      if (args.lse[i] == PF_MINUS_INF)
        pf_write_masked_row(call, b, h, o + i * call->o.row * call->element,
                            m.row);
  if (lse_out && args.lse != lse_out)
    for (int64_t i = 0; i < rows; ++i)
      lse_out[i * call->lse.row] = args.lse[i];

  if (call->block_map.data)
    write_map(call, b, h, tile, m.blocks, args.block_count, args.col_pos,
              args.col_count);
  count_visits(call, b, h, tile, &span,
               args.block_count +
                   live_column_tiles(call, args.col_pos, args.col_count));
}

/* DENSITY: visited by visible blocks; 1 where nothing is visible. */
static void write_density(const pf_call *call) {
  for (int64_t b = 0; b < call->b; ++b)
    for (int64_t h = 0; h < call->hq; ++h) {
      int64_t visited = 0, visible = 0;
      const int32_t *of_tile =
          call->visited + (b * call->hq + h) * call->tiles * 2;
      for (int64_t i = 0; i < call->tiles; ++i) {
        visited += of_tile[2 * i];
        visible += of_tile[2 * i + 1];
      }
      ((float *)call->density
           .data)[b * call->density.batch + h * call->density.head] =
          visible ? (float)((double)visited / (double)visible) : 1.0f;
    }
}

static prefill_status run(pf_call *call) {
  prefill_status status;
  if (call->rotary && !call->keys_rotated && (status = pf_rotate_keys(call)))
    return status;
  if (call->token_score.data && (status = pf_score_tokens(call)))
    return status;
  if ((status = pf_prepare_value_mean(call)))
    return status;
  if ((status = pf_build_index(call)) || (status = pf_run_strips(call)))
    return status;
  const int64_t items = call->b * call->hq * call->tiles;
  if (call->density.data) {
    call->visited = pf_alloc(call, items, 2 * (int64_t)sizeof(int32_t));
    if (!call->visited)
      return PREFILL_OUT_OF_MEMORY;
  }
  const double work = 2.0 * (double)(call->d + call->e) *
                      (double)(call->b * call->hq) * (double)call->s *
                      (double)call->t;
  if ((status = pf_parallel(call, items, work, lay_out(call, NULL).bytes,
                            tile_body)))
    return status;
  if (call->density.data) {
    if ((status = pf_count_strips(call)))
      return status;
    write_density(call);
  }
  return PREFILL_OK;
}

prefill_status prefill_attention(const prefill_attention_desc *desc,
                                 prefill_context *context,
                                 const DLTensor *const *inputs,
                                 size_t input_count, DLTensor *const *outputs,
                                 size_t output_count) {
  /* Zero is a zeroed context; smaller sizes have no message to write to. */
  if (!context ||
      (context->struct_size && context->struct_size < PF_LEAST_CONTEXT))
    return PREFILL_INVALID_ARGUMENT;
  context->message[0] = '\0';
  if (!desc)
    return pf_fail_context(context, PREFILL_INVALID_ARGUMENT,
                           "expected a kernel description, got null");
  pf_call call = {.desc = desc, .context = context};
  prefill_status status =
      pf_check(&call, inputs, input_count, outputs, output_count);
  if (!status && call.cuda)
    status = pf_cuda_run(&call, inputs, input_count);
  else if (!status && call.b > 0)
    status = call.q_positions || call.segment_starts ? pf_run_ragged(&call, run)
                                                     : run(&call);
  pf_release_all(&call);
  return status;
}
