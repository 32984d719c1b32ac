/*===- contexts.c - Two softmaxes of one row ----------------------*- C -*-===*\
|*
|* Adaptive parallel encoding (APE, arXiv:2502.05431): contexts that were
|* encoded independently of one another, each behind the same prefix, lie side
|* by side in the cache. A query row sees all of them by one softmax, with
|* scores divided by the temperature T, and the prefix and the rows of its own
|* segment by another; the two are merged by their log-sum-exps,
|*
|*   o = w_c o_c + w_o o_o,  (w_c, w_o) = softmax(S T l_c, l_o),
|*
|* which for T = S = 1 is one softmax over all keys. Each of the two is an
|* ordinary piece (ragged.c) on a part of the cache.
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <string.h>

/* Rows [row, row + count) of the cache are a segment's contexts. */
typedef struct context_slot {
  int64_t row, count;
} context_slot;

static context_slot slot_of(const pf_call *call, int64_t segment) {
  const DLTensor *tensor = call->context_slots;
  const int64_t at = segment * pf_stride_of(tensor, 0);
  return (context_slot){.row = pf_read_int(tensor, at),
                        .count =
                            pf_read_int(tensor, at + pf_stride_of(tensor, 1))};
}

prefill_status pf_check_contexts(pf_call *call) {
  const int64_t count = call->segment_starts->shape[0] - 1;
  for (int64_t i = 0; i < count; ++i) {
    const context_slot slot = slot_of(call, i);
    const prefill_status status =
        pf_check_cache_rows(call, "CONTEXT_SLOTS", i, slot.row, slot.count);
    if (status)
      return status;
    for (int64_t j = 0; slot.count && j < count; ++j) {
      /* CACHE_SLOTS is looked at later: sums of its numbers may overflow. */
      const pf_slot other = pf_slot_of(call, j);
      int64_t end;
      if (!__builtin_add_overflow(other.row, other.held, &end) &&
          !__builtin_add_overflow(end, other.added, &end) && slot.row < end &&
          other.row < slot.row + slot.count)
        return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                       "input CONTEXT_SLOTS: the contexts of segment %lld are "
                       "rows that segment %lld writes or holds",
                       (long long)i, (long long)j);
    }
  }
  return PREFILL_OK;
}

/* w[i] = exp(x[i] - most[i]), exactly 0 for x[i] = -inf; total[i] += w[i]. The
 * loop over vectors does not know infinities. */
static void weigh(const pf_hot *hot, float *x, const float *most, float *total,
                  int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float weight = 1.0f, sum = 0.0f;
    if (x[i] == PF_MINUS_INF)
      weight = 0.0f;
    else
      hot->rescale(&sum, &weight, &x[i], &most[i], 1);
    x[i] = weight;
    total[i] += weight;
  }
}

void pf_merge_lse(const pf_hot *hot, const pf_rows *o, float *lse,
                  const pf_rows *other, float *other_lse, float factor,
                  int64_t n, int64_t width, int dtype, float *scratch) {
  const int64_t bytes = dtype == PREFILL_F32 ? 4 : 2;
  float *mine = scratch, *theirs = scratch + width;
  float *most = theirs + width, *total = most + n;
  for (int64_t i = 0; i < n; ++i) {
    other_lse[i] *= factor;
    most[i] = lse[i] > other_lse[i] ? lse[i] : other_lse[i];
    total[i] = 0.0f;
  }
  weigh(hot, lse, most, total, n);
  weigh(hot, other_lse, most, total, n);
  for (int64_t i = 0; i < n; ++i) {
    /* Weight 0: 0 times what is no number would be no number. */
    if (other_lse[i] == 0.0f)
      continue;
    char *row = o->data + i * o->row * bytes;
    const char *from = other->data + i * other->row * bytes;
    const float w = lse[i] / total[i], v = other_lse[i] / total[i];
    hot->to_float(mine, row, 1, width, dtype);
    hot->to_float(theirs, from, 1, width, dtype);
    for (int64_t c = 0; c < width; ++c)
      mine[c] = w == 0.0f ? theirs[c] : w * mine[c] + v * theirs[c];
    hot->from_float(row, mine, width, dtype);
  }
}

prefill_status pf_run_with_contexts(const pf_call *call, const pf_piece *own,
                                    int64_t segment, pf_run_fn run,
                                    int64_t *sums) {
  const context_slot slot = slot_of(call, segment);
  if (!slot.count)
    return pf_run_piece(call, own, run, sums);
  /* Memory of this piece alone: there may be many. */
  pf_call memory = *call;
  memory.owned_count = 0;
  const int64_t rows = own->rows, heads = call->hq, width = call->e;
  const pf_rows o = {.data =
                         pf_alloc(&memory, heads * rows, width * call->element),
                     .head = rows * width,
                     .row = width};
  float *lse = pf_alloc(&memory, 2 * heads * rows, (int64_t)sizeof(float));
  float *scratch =
      pf_alloc(&memory, 2 * (width + rows), (int64_t)sizeof(float));
  prefill_status status = PREFILL_OUT_OF_MEMORY;
  if (o.data && lse && scratch) {
    pf_rows lses[2] = {{.data = (char *)lse, .head = rows, .row = 1}};
    lses[1] = lses[0];
    lses[1].data += heads * rows * (int64_t)sizeof(float);
    pf_piece mine = *own, theirs = *own;
    mine.lse = &lses[0];
    theirs.lse = &lses[1];
    theirs.o = &o;
    theirs.key = slot.row;
    theirs.keys = slot.count;
    /* Past the last key: all are visible. The rows' entries of the rotary
     * tables stay what they are. */
    theirs.offset = slot.count;
    theirs.table = own->table + own->offset - slot.count;
    theirs.scale = call->scale / call->desc->context_temperature;
    status = pf_run_piece(call, &mine, run, sums);
    if (!status)
      status = pf_run_piece(call, &theirs, run, sums);
    const float factor =
        call->desc->context_scale * call->desc->context_temperature;
    for (int64_t h = 0; !status && h < heads; ++h) {
      pf_rows to = call->o, from = o;
      to.data += (own->batch * to.batch + h * to.head + own->row * to.row) *
                 call->element;
      from.data += h * from.head * call->element;
      pf_merge_lse(call->hot, &to, lse + h * rows, &from,
                   lse + (heads + h) * rows, factor, rows, width,
                   call->desc->dtype, scratch);
    }
  }
  pf_release_all(&memory);
  return status;
}
