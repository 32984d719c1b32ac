/*===- rows.c - The lists of every tile of query rows -------------*- C -*-===*\
|*
|* A warp a tile: which blocks it visits (a bitmap), how many, where its lists
|* begin, and the lists. Columns in visited blocks are left out, so that no key
is
|* visited twice.
|*
\*===----------------------------------------------------------------------===*/
#include "device.h"

typedef struct tile_rows {
  int b, h;
  int64_t head, tile, row;
  span s;
  uint32_t *kept;
  int64_t words;
} tile_rows;

/* False for warps without a tile. */
INLINE bool tile_of(const args *x, tile_rows *r) {
  r->b = block_z();
  r->h = block_y();
  r->head = (int64_t)r->b * x->heads + r->h;
  r->tile = (int64_t)block_x() * WARPS + warp();
  if (r->tile >= x->tiles)
    return false;
  r->row = r->head * x->tiles + r->tile;
  r->s = span_of(x, r->b, r->tile);
  r->kept = x->kept + r->row * x->words;
  r->words = ceil_div(r->s.end, 32);
  return true;
}
/* The head's columns in a block; none if the block is kept. */
INLINE int columns_of(const args *x, const tile_rows *r, int64_t block,
                      uint32_t bits, const int32_t **from) {
  const int32_t *begin = x->column_begin + r->head * (x->blocks + 1) + block;
  if (block < r->s.begin || block >= r->s.end || bits >> (block % 32) & 1)
    return 0;
  *from = x->columns + r->head * x->column_room + begin[0];
  return begin[1] - begin[0];
}
INLINE bool has_columns(const args *x, const tile_rows *r) {
  return x->head_mode[r->head] == PREFILL_CUDA_HEAD_RELATIVE &&
         r->tile < x->dense_tile[r->head];
}

/* Grid: tiles / 8, heads, batch. */
KERNEL prefill_index_rows(args x) {
  tile_rows r;
  if (!tile_of(&x, &r))
    return;
  const int mode = r.tile >= x.dense_tile[r.head] ? PREFILL_CUDA_HEAD_DENSE
                                                  : x.head_mode[r.head];
  const int64_t top = top_block(&x, r.b, r.tile);
  const uint32_t *distance =
      x.distance +
      (r.head * x.phases + r.tile % x.phases) * (int64_t)x.distances;
  const uint32_t *vertical = x.vertical + r.head * x.words;
  int blocks = 0, columns = 0;
  for (int64_t word = 0; word < r.words; ++word) {
    const int64_t block = word * 32 + lane();
    bool keep = block >= r.s.begin && block < r.s.end &&
                state_of(&x, r.b, block) != HIDDEN;
    if (keep && mode == PREFILL_CUDA_HEAD_RELATIVE)
      keep = (top >= block && get_bit(distance, top - block)) ||
             get_bit(vertical, block);
    else if (keep && mode == PREFILL_CUDA_HEAD_BLOCKS)
      keep = get_bit(r.kept, block);
    const uint32_t bits = ballot(keep);
    if (lane() == 0)
      r.kept[word] = bits;
    blocks += __builtin_popcount(bits);
    const int32_t *from;
    if (mode == PREFILL_CUDA_HEAD_RELATIVE)
      columns += columns_of(&x, &r, block, bits, &from);
  }
  columns = (int)warp_sum(columns);
  if (lane() == 0) {
    x.row_blocks[r.row] = blocks;
    x.row_columns[r.row] = (int32_t)(ceil_div(columns, x.block_k) * x.block_k);
  }
}

/* Sums of counts before each row, held below room. */
INLINE void scan_counts(const int32_t *count, int64_t n, int64_t room,
                        int32_t *begin, uint32_t *status, uint32_t flag) {
  const int64_t run = ceil_div(n, THREADS);
  const int64_t first = least(n, thread() * run), last = least(n, first + run);
  int64_t sum = 0, all;
  for (int64_t i = first; i < last; ++i)
    sum += count[i];
  sum = block_scan(sum, &all);
  for (int64_t i = first; i < last; ++i) {
    begin[i] = (int32_t)least(sum, room);
    sum += count[i];
  }
  if (thread() == 0) {
    begin[n] = (int32_t)least(all, room);
    if (all > room)
      __atomic_fetch_or(status, flag, __ATOMIC_RELAXED);
  }
}

/* Grid: 1. */
KERNEL prefill_index_scan(args x) {
  const int64_t rows = (int64_t)x.batch * x.heads * x.tiles;
  scan_counts(x.row_blocks, rows, least(x.block_room, INT32_MAX), x.block_begin,
              x.status, PREFILL_CUDA_BLOCKS_FULL);
  /* Whole tiles of columns only. */
  scan_counts(x.row_columns, rows,
              least(x.col_room, INT32_MAX) / x.block_k * x.block_k, x.col_begin,
              x.status, PREFILL_CUDA_COLUMNS_FULL);
}

/* Grid: tiles / 8, heads, batch. Blocks that need no mask first, each part
 * ascending; then the columns, ascending, and INT32_MAX up to a multiple of
 * block_k. */
KERNEL prefill_index_fill(args x) {
  tile_rows r;
  if (!tile_of(&x, &r))
    return;
  int64_t at = x.block_begin[r.row];
  const int64_t end = x.block_begin[r.row + 1];
  int64_t full = 0;
  for (int part = 0; part < 2; ++part) {
    for (int64_t word = 0; word < r.words; ++word) {
      const int64_t block = word * 32 + lane();
      const bool whole = block >= r.s.full_begin && block < r.s.full_end &&
                         block < r.s.end && state_of(&x, r.b, block) == ALL;
      const bool here = get_bit(r.kept, block) && whole == (part == 0);
      const uint32_t bits = ballot(here);
      const int64_t to = at + __builtin_popcount(bits & ((1u << lane()) - 1));
      if (here && to < end)
        x.block_ids[to] = (int32_t)block;
      at += __builtin_popcount(bits);
    }
    if (part == 0)
      full = least(at, end) - x.block_begin[r.row];
  }
  if (lane() == 0)
    x.full_count[r.row] = (int32_t)full;
  if (!has_columns(&x, &r))
    return;
  at = x.col_begin[r.row];
  const int64_t col_end = x.col_begin[r.row + 1];
  for (int64_t word = 0; word < r.words; ++word) {
    const int64_t block = word * 32 + lane();
    const int32_t *from = 0;
    const int count = columns_of(&x, &r, block, r.kept[word], &from);
    const int64_t until = warp_scan(count);
    for (int i = 0; i < count; ++i)
      if (at + until - count + i < col_end)
        x.col_pos[at + until - count + i] = from[i];
    at += shuffle_l(until, 31);
  }
  for (int64_t i = at + lane(); i < col_end; i += 32)
    x.col_pos[i] = INT32_MAX;
}

/* Grid: column_room / block_k, heads, batch. Rows of K and V at the head's
 * columns side by side, 16 bytes a thread; zeros up to a multiple of block_k.
 */
KERNEL prefill_index_pack(args x) {
  const int h = block_y(), b = block_z();
  const int64_t head = (int64_t)b * x.heads + h;
  if (!x.packed_k || x.head_mode[head] != PREFILL_CUDA_HEAD_RELATIVE)
    return;
  const int64_t count = x.column_begin[head * (x.blocks + 1) + x.blocks];
  const int64_t first = (int64_t)block_x() * x.block_k;
  if (first >= count)
    return;
  typedef uint32_t piece __attribute__((ext_vector_type(4)));
  for (int which = 0; which < 2; ++which) {
    const int64_t size = which ? x.v_head_dim : x.head_dim, pieces = size / 8;
    const int64_t stride = which ? x.v_row : x.k_row;
    const uint16_t *from =
        which ? (const uint16_t *)x.v + b * x.v_batch + h / x.group * x.v_head
              : (const uint16_t *)x.k + b * x.k_batch + h / x.group * x.k_head;
    uint16_t *to = (uint16_t *)(which ? x.packed_v : x.packed_k) +
                   head * x.column_room * size;
    for (int64_t i = thread(); i < x.block_k * pieces; i += THREADS) {
      const int64_t column = first + i / pieces, at = i % pieces * 8;
      piece value = 0;
      if (column < count)
        value =
            *(const piece *)(from +
                             x.columns[head * x.column_room + column] * stride +
                             at);
      *(piece *)(to + column * size + at) = value;
    }
  }
}
