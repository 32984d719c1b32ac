/*===- index.h - What a sparse head visits ------------------------*- C -*-===*\
|*
|* One index per (batch, query head), in one of four modes:
|*
|*   dense     every visible block;
|*   relative  a set of block distances, a set of blocks that all rows visit, a
|*             sorted list of single columns: vertical-slash, A-shape,
|*             tri-shape and strided, in a few KB a head however long the
prompt;
|*   blocks    a list of block ids per tile of query rows (CSR);
|*   views     rows and keys by position modulo a stride, or runs of rows of
|*             one modality, views.h: grid, q-boundary, 2d-boundary.
|*
|* Distances. Let tile i hold the rows at positions p0 = offset + i * bq up to
|* p0 + bq - 1, and let its top block be the one of its last position. Diagonal
|* delta (keys p - delta) touches, from the top block down, the distances
|*   top - floor((p0 + bq - 1 - delta) / bk) .. top - floor((p0 - delta) / bk),
|* which depend on p0 mod bk only: on the phase. With bq a multiple of bk and a
|* whole prompt there is one phase; chunks that do not begin at a block edge
|* have another; bq < bk gives bk / bq of them, one set each.
|*
|* Nothing here knows of masks: rows are clipped to what is visible when a
|* tile's list is made. All functions are pure.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_INDEX_H
#define PREFILL_RUNTIME_INDEX_H

#include "internal.h"

#ifdef __cplusplus
extern "C" {
#endif

enum pf_head_mode {
  PF_HEAD_DENSE = 0,
  PF_HEAD_RELATIVE = 1,
  PF_HEAD_BLOCKS = 2,
  PF_HEAD_VIEWS = 3
};

/* Block ids are 16 bits: longer prompts (4M keys in blocks of 64) run dense. */
#define PF_MAX_INDEX_BLOCKS 65535

typedef struct pf_head_index {
  int mode;
  /* Tiles at or past this one visit everything (tri-shape); tiles: none. */
  int64_t dense_tile;

  /* PF_HEAD_RELATIVE. Distances of phase f: distance[distance_begin[f] ..
   * distance_begin[f + 1]), ascending. */
  uint16_t *distance;
  int64_t *distance_begin;
  uint16_t *vertical; /* blocks that every row visits, ascending */
  int64_t verticals;
  int32_t *column; /* single keys, ascending, none in a vertical block */
  int64_t columns;
  int32_t *column_begin; /* [blocks + 1]: columns below each block's end */
  void *col_k, *col_v;   /* gathered, padded with zeros to a multiple of bk */

  /* PF_HEAD_BLOCKS: ids of tile i: id[row_begin[i] .. row_begin[i + 1]). */
  uint16_t *id;
  int64_t *row_begin;

  /* PF_HEAD_VIEWS: a row sees the keys at distances that are multiples of the
   * stride (slash; else those of its own tile), and the columns above. Rows of
   * `phase` see everything if there is a horizontal line. */
  int64_t stride, phase;
  bool slash, horizontal;
  /* The same mode for q-boundary and 2d-boundary, `diagonals` not NULL: strips
   * are runs of rows of one modality m, which see the columns column_first[m]
   * .. column_first[m + 1] and, of blocks with keys of modality n, those that
   * diagonals [m][n], a bitmap over distances, touch. */
  uint64_t *diagonals; /* [modalities][modalities][t / 64 + 1] */
  int32_t *column_first;
} pf_head_index;

/* Tiles and blocks of one head. */
typedef struct pf_grid {
  int64_t bq, bk;
  int64_t offset; /* key position of row 0; may be negative */
  int64_t tiles, blocks;
} pf_grid;

pf_grid pf_grid_of(const pf_call *call, int64_t b);

/* The number of phases, and the phase of a tile. */
int64_t pf_phases(const pf_grid *grid);
int64_t pf_phase_of(const pf_grid *grid, int64_t tile);
/* The block of the last position of a whole tile. */
int64_t pf_top_block(const pf_grid *grid, int64_t tile);
/* Distance from a tile's top block to the block of its first position. */
int64_t pf_own_distance(const pf_grid *grid, int64_t tile);
/* The largest distance that any tile of the grid can use. */
int64_t pf_max_distance(const pf_grid *grid);

/* The first bit at or after `from` that equals `value`; count if none. */
int64_t pf_next_bit(const uint64_t *bits, int64_t from, int64_t count,
                    bool value);

/* Bytes of storage for a relative index with room for `columns` columns, and
 * for a block index with `ids` ids. */
int64_t pf_relative_bytes(const pf_grid *grid, int64_t columns);
int64_t pf_blocks_bytes(const pf_grid *grid, int64_t ids);

/* Lays out an empty relative index in storage. */
void pf_relative_init(pf_head_index *index, const pf_grid *grid,
                      int64_t columns, void *storage);
/* Lays out a block index in storage. */
void pf_blocks_init(pf_head_index *index, const pf_grid *grid, int64_t ids,
                    void *storage);

/* Fills the distances from diagonals: bit delta of `diagonals` (count bits),
 * and with stride > 0 all multiples of it. Distances that hold the tile's own
 * positions are always there. distances: bitmap scratch of
 * pf_max_distance(grid) + 1 bits. */
void pf_relative_from_diagonals(pf_head_index *index, const pf_grid *grid,
                                const uint64_t *diagonals, int64_t count,
                                int64_t stride, uint64_t *distances);
/* The same from a set of block distances: distance t of `chosen` stands for the
 * diagonals [t * bk, (t + 1) * bk) seen from the tile's last row; own positions
 * are added. */
void pf_relative_from_distances(pf_head_index *index, const pf_grid *grid,
                                const uint64_t *chosen, int64_t count);
/* Fills vertical blocks and columns from ascending keys. A block that holds
 * `promote` or more of them becomes a vertical block: past that its columns
 * cost more than all of it. init: keys below it become vertical blocks. */
void pf_relative_set_columns(pf_head_index *index, const pf_grid *grid,
                             const int32_t *keys, int64_t count,
                             int64_t promote, int64_t init);

/* Sets in kept the blocks that a tile visits, clipped to [begin, end) (the
 * tile's visible blocks); the bits of [0, blocks) must be clear. */
void pf_index_row(const pf_head_index *index, const pf_grid *grid, int64_t tile,
                  int64_t begin, int64_t end, uint64_t *kept);

/* Positions of the gathered columns for a tile: those in kept blocks or outside
 * of [begin, end) become INT32_MAX. Writes *first (a multiple of bk: tiles of
 * dead columns before it are left out) and returns the number of columns from
 * there on that have to be visited; out[0 ..] are the positions from *first on,
 * padded with INT32_MAX to a multiple of bk. */
int64_t pf_index_columns(const pf_head_index *index, const pf_grid *grid,
                         int64_t begin, int64_t end, const uint64_t *kept,
                         int32_t *out, int64_t *first);

#ifdef __cplusplus
}
#endif
#endif
