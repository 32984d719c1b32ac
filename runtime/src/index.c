/*===- index.c - What a sparse head visits, see index.h -----------*- C -*-===*/
#include "index.h"
#include <string.h>

static int64_t gcd(int64_t a, int64_t b) {
  while (b) {
    int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

pf_grid pf_grid_of(const pf_call *call, int64_t b) {
  return (pf_grid){.bq = call->bq,
                   .bk = call->bk,
                   .offset = call->batch[b].offset,
                   .tiles = call->tiles,
                   .blocks = call->blocks};
}

int64_t pf_phases(const pf_grid *grid) {
  return grid->bk / gcd(grid->bq, grid->bk);
}

int64_t pf_phase_of(const pf_grid *grid, int64_t tile) {
  return tile % pf_phases(grid);
}

int64_t pf_top_block(const pf_grid *grid, int64_t tile) {
  return pf_floor_div(grid->offset + (tile + 1) * grid->bq - 1, grid->bk);
}

int64_t pf_max_distance(const pf_grid *grid) {
  /* Down to block 0, and down to a tile's own first row. */
  return pf_max(pf_top_block(grid, grid->tiles - 1), grid->bq / grid->bk + 1);
}

int64_t pf_own_distance(const pf_grid *grid, int64_t tile) {
  return pf_top_block(grid, tile) -
         pf_floor_div(grid->offset + tile * grid->bq, grid->bk);
}

/*===-- storage ----------------------------------------------------------===*/

/* Takes count elements of the given size from *at, 8-byte aligned. */
static void *take(char **at, int64_t count, int64_t size) {
  void *part = *at;
  *at += pf_round_up(count * size, 8);
  return part;
}

static void lay_out_relative(pf_head_index *index, const pf_grid *grid,
                             int64_t columns, char **at) {
  const int64_t phases = pf_phases(grid);
  index->distance_begin = take(at, phases + 1, sizeof(int64_t));
  index->column_begin = take(at, grid->blocks + 1, sizeof(int32_t));
  index->column = take(at, columns, sizeof(int32_t));
  index->distance =
      take(at, phases * (pf_max_distance(grid) + 1), sizeof(uint16_t));
  index->vertical = take(at, grid->blocks, sizeof(uint16_t));
}

static void lay_out_blocks(pf_head_index *index, const pf_grid *grid,
                           int64_t ids, char **at) {
  index->row_begin = take(at, grid->tiles + 1, sizeof(int64_t));
  index->id = take(at, ids, sizeof(uint16_t));
}

int64_t pf_relative_bytes(const pf_grid *grid, int64_t columns) {
  return (pf_phases(grid) + 1) * 8 + (grid->blocks + 1) * 4 + columns * 4 +
         pf_phases(grid) * (pf_max_distance(grid) + 1) * 2 + grid->blocks * 2 +
         5 * 8;
}

int64_t pf_blocks_bytes(const pf_grid *grid, int64_t ids) {
  return (grid->tiles + 1) * 8 + ids * 2 + 2 * 8;
}

void pf_relative_init(pf_head_index *index, const pf_grid *grid,
                      int64_t columns, void *storage) {
  char *at = storage;
  *index = (pf_head_index){.mode = PF_HEAD_RELATIVE, .dense_tile = grid->tiles};
  lay_out_relative(index, grid, columns, &at);
  memset(index->distance_begin, 0, (size_t)(pf_phases(grid) + 1) * 8);
  memset(index->column_begin, 0, (size_t)(grid->blocks + 1) * 4);
}

void pf_blocks_init(pf_head_index *index, const pf_grid *grid, int64_t ids,
                    void *storage) {
  char *at = storage;
  *index = (pf_head_index){.mode = PF_HEAD_BLOCKS, .dense_tile = grid->tiles};
  lay_out_blocks(index, grid, ids, &at);
  index->row_begin[0] = 0;
}

/*===-- building ---------------------------------------------------------===*/

static void set_bit(uint64_t *bits, int64_t i) {
  bits[i / 64] |= (uint64_t)1 << (i % 64);
}

/* Appends the ascending ids of set bits [0, count) to out; returns how many. */
static int64_t list_bits(const uint64_t *bits, int64_t count, uint16_t *out) {
  int64_t n = 0;
  for (int64_t word = 0; word * 64 < count; ++word)
    for (uint64_t rest = bits[word]; rest; rest &= rest - 1) {
      int64_t i = word * 64 + __builtin_ctzll(rest);
      if (i < count)
        out[n++] = (uint16_t)i;
    }
  return n;
}

int64_t pf_next_bit(const uint64_t *bits, int64_t from, int64_t count,
                    bool value) {
  while (from < count) {
    uint64_t word = bits[from / 64];
    word = (value ? word : ~word) >> (from % 64);
    if (word)
      return pf_min(count, from + __builtin_ctzll(word));
    from = (from / 64 + 1) * 64;
  }
  return count;
}

void pf_relative_from_diagonals(pf_head_index *index, const pf_grid *grid,
                                const uint64_t *diagonals, int64_t count,
                                int64_t stride, uint64_t *distances) {
  const int64_t limit = pf_max_distance(grid) + 1;
  int64_t total = 0;
  for (int64_t phase = 0; phase < pf_phases(grid); ++phase) {
    memset(distances, 0, (size_t)(limit / 64 + 1) * 8);
    const int64_t first = grid->offset + phase * grid->bq;
    const int64_t last = first + grid->bq - 1;
    const int64_t top = pf_top_block(grid, phase);
    for (int64_t t = 0; t <= pf_own_distance(grid, phase); ++t)
      set_bit(distances, t);
    /* A run of diagonals [begin, end) touches a run of distances. */
    int64_t begin = pf_next_bit(diagonals, 0, count, true);
    while (begin < count) {
      int64_t end = pf_next_bit(diagonals, begin, count, false);
      int64_t near = top - pf_floor_div(last - begin, grid->bk);
      int64_t far = top - pf_floor_div(first - (end - 1), grid->bk);
      for (int64_t t = near; t <= far && t < limit; ++t)
        set_bit(distances, t);
      begin = pf_next_bit(diagonals, end, count, true);
    }
    for (int64_t t = 0; stride > 0 && t < limit; t += stride)
      set_bit(distances, t);
    index->distance_begin[phase] = total;
    total += list_bits(distances, limit, index->distance + total);
  }
  index->distance_begin[pf_phases(grid)] = total;
}

void pf_relative_from_distances(pf_head_index *index, const pf_grid *grid,
                                const uint64_t *chosen, int64_t count) {
  const int64_t limit = pf_max_distance(grid) + 1;
  int64_t total = 0;
  for (int64_t phase = 0; phase < pf_phases(grid); ++phase) {
    index->distance_begin[phase] = total;
    const int64_t own = pf_own_distance(grid, phase);
    for (int64_t t = 0; t < limit; ++t)
      if (t <= own || (t < count && (chosen[t / 64] >> (t % 64) & 1)))
        index->distance[total++] = (uint16_t)t;
  }
  index->distance_begin[pf_phases(grid)] = total;
}

void pf_relative_set_columns(pf_head_index *index, const pf_grid *grid,
                             const int32_t *keys, int64_t count,
                             int64_t promote, int64_t init) {
  index->verticals = index->columns = 0;
  const int64_t always = pf_ceil_div(init, grid->bk);
  int64_t next = 0; /* of keys */
  for (int64_t block = 0; block < grid->blocks; ++block) {
    index->column_begin[block] = (int32_t)index->columns;
    const int64_t begin = next, end_key = (block + 1) * grid->bk;
    while (next < count && keys[next] < end_key)
      ++next;
    if (block < always || next - begin >= promote) {
      index->vertical[index->verticals++] = (uint16_t)block;
      continue;
    }
    for (int64_t i = begin; i < next; ++i)
      index->column[index->columns++] = keys[i];
  }
  index->column_begin[grid->blocks] = (int32_t)index->columns;
}

/*===-- reading ----------------------------------------------------------===*/

void pf_index_row(const pf_head_index *index, const pf_grid *grid, int64_t tile,
                  int64_t begin, int64_t end, uint64_t *kept) {
  if (index->mode == PF_HEAD_DENSE || tile >= index->dense_tile) {
    for (int64_t block = begin; block < end; ++block)
      set_bit(kept, block);
    return;
  }
  if (index->mode == PF_HEAD_BLOCKS) {
    for (int64_t i = index->row_begin[tile]; i < index->row_begin[tile + 1];
         ++i)
      if (index->id[i] >= begin && index->id[i] < end)
        set_bit(kept, index->id[i]);
    return;
  }
  const int64_t top = pf_top_block(grid, tile);
  const int64_t phase = pf_phase_of(grid, tile);
  for (int64_t i = index->distance_begin[phase];
       i < index->distance_begin[phase + 1]; ++i) {
    int64_t block = top - index->distance[i];
    if (block < begin)
      break;
    if (block < end)
      set_bit(kept, block);
  }
  for (int64_t i = 0; i < index->verticals && index->vertical[i] < end; ++i)
    if (index->vertical[i] >= begin)
      set_bit(kept, index->vertical[i]);
}

int64_t pf_index_columns(const pf_head_index *index, const pf_grid *grid,
                         int64_t begin, int64_t end, const uint64_t *kept,
                         int32_t *out, int64_t *first) {
  *first = 0;
  if (begin >= end)
    return 0;
  const int32_t *of_block = index->column_begin;
  int64_t low = of_block[begin], high = of_block[end];
  /* Leading and trailing columns in kept blocks need no memory at all. */
  while (begin < end && (kept[begin / 64] >> (begin % 64) & 1))
    low = of_block[++begin];
  while (end > begin && (kept[(end - 1) / 64] >> ((end - 1) % 64) & 1))
    high = of_block[--end];
  if (low >= high)
    return 0;
  *first = low / grid->bk * grid->bk;
  const int64_t base = *first;
  for (int64_t i = base; i < low; ++i)
    out[i - base] = INT32_MAX;
  memcpy(out + (low - base), index->column + low, (size_t)(high - low) * 4);
  for (int64_t block = begin; block < end; ++block)
    if (kept[block / 64] >> (block % 64) & 1)
      for (int64_t i = of_block[block]; i < of_block[block + 1]; ++i)
        out[i - base] = INT32_MAX;
  int64_t count = high - base;
  while (count && out[count - 1] == INT32_MAX)
    --count;
  /* Dead tiles at the front. */
  int64_t lead = 0;
  while (lead < count && out[lead] == INT32_MAX)
    ++lead;
  lead = lead / grid->bk * grid->bk;
  if (lead && lead < count)
    memmove(out, out + lead, (size_t)(count - lead) * 4);
  *first += lead;
  count -= lead;
  for (int64_t i = count; i % grid->bk; ++i)
    out[i] = INT32_MAX;
  return count;
}
