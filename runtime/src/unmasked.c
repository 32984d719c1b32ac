/*===- unmasked.c - Rows without keys that see all of them --------*- C -*-===*\
|*
|* A mask of float16's least number, added in float32, leaves the scores: a row
|* that sees no key is what it would be without a mask (PREFILL_MASKED_SCORES).
|* The tile function computes the tile of such a row once more, all keys
|* visible.
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <string.h>

typedef struct unmasked_memory {
  uint32_t *blocks; /* all of them */
  float *lse;       /* [bq] */
  char *o;          /* [bq][e] */
  int64_t bytes;
} unmasked_memory;

static unmasked_memory lay_out(const pf_call *call, void *base) {
  unmasked_memory m;
  uintptr_t at = (uintptr_t)base;
#define PART(field, count)                                                     \
  m.field = (void *)at;                                                        \
  at += (uintptr_t)pf_round_up((int64_t)sizeof(*m.field) * (count), 64)
  PART(blocks, call->blocks);
  PART(lse, call->bq);
  PART(o, call->bq * call->e * call->element);
#undef PART
  m.bytes = (int64_t)(at - (uintptr_t)base);
  return m;
}

int64_t pf_unmasked_bytes(const pf_call *call) {
  return pf_unmasks(call) ? lay_out(call, NULL).bytes : 0;
}

void pf_unmask_rows(const pf_call *call, int64_t b, int64_t h,
                    const prefill_tile_args *tile, void *memory) {
  bool any = false;
  for (int64_t i = 0; i < tile->rows; ++i)
    any |= tile->lse[i] == PF_MINUS_INF;
  if (!any)
    return;
  const unmasked_memory m = lay_out(call, memory);
  const int64_t kv_head = h / call->group;
  prefill_tile_args args = *tile;
  args.k = call->k.data +
           (b * call->k.batch + kv_head * call->k.head) * call->element;
  args.v = call->v.data +
           (b * call->v.batch + kv_head * call->v.head) * call->element;
  args.k_stride = call->k.row;
  args.v_stride = call->v.row;
  args.o = m.o;
  args.o_stride = call->e;
  args.lse = m.lse;
  /* Behind all keys. */
  args.position = args.kv_len = call->t;
  args.window_left = PF_UNBOUNDED;
  args.skip = PF_MINUS_INF;
  args.key_mask = call->ones;
  for (int64_t block = 0; block < call->blocks; ++block)
    m.blocks[block] = (uint32_t)block;
  args.blocks = m.blocks;
  args.block_count = call->blocks;
  args.full_count = call->t / call->bk;
  args.col_count = 0;
  call->variant->attention(&args);
  for (int64_t i = 0; i < tile->rows; ++i)
    if (tile->lse[i] == PF_MINUS_INF)
      memcpy((char *)tile->o + i * tile->o_stride * call->element,
             m.o + i * call->e * call->element,
             (size_t)(call->e * call->element));
}
