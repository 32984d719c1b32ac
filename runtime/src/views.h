/*===- views.h - Tiles of rows that do not lie side by side -------*- C -*-===*\
|*
|* A head in mode PF_HEAD_VIEWS (index.h) has its rows taken by position modulo
|* `stride`. Rows of one phase, and the keys of the same phase, are strided
|* views of Q and of K and V; in units of the stride, row r of the view sees key
|* c of it iff c <= r, so that tile functions need not know. A `strip` is up to
|* bq such rows: one call of the tile function.
|*
|* Keys of other phases are single columns with positions in those units: key
|* j = phase' + stride * c comes before row phase + stride * r iff
|* c + (phase' > phase) <= r. Rows that see everything (a horizontal line) visit
|* whole blocks of K as it lies, and the keys between their positions as
columns.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_VIEWS_H
#define PREFILL_RUNTIME_VIEWS_H

#include "sparse.h"

#ifdef __cplusplus
extern "C" {
#endif

/* With modalities (index.h) a strip is a run of adjacent rows of one kind, and
 * the keys are K's as they lie. */

/* Rows row, row + step, ... of a head; `rows` of them, or 0: none. */
typedef struct pf_strip {
  int64_t row, step, rows;
  int64_t position; /* key position of the first */
} pf_strip;

/* What a strip visits, and the memory for it. */
typedef struct pf_strip_keys {
  uint32_t *blocks;   /* [blocks]: full ones first, of the view */
  uint8_t *mask;      /* [blocks * bk]: key mask of the view */
  int32_t *positions; /* [t + bk]: of the columns, INT32_MAX: not visited */
  uint64_t *kept;     /* [blocks]: bitmap */

  int64_t first, step; /* key c of the view is key first + c * step */
  int64_t kv_len;      /* keys of the view */
  int64_t position;    /* of the strip's first row among them */
  int64_t block_count, full_count, column_count;
  /* Columns are the keys from this one on (not gathered yet); -1: those of the
   * index from first_column on. */
  int64_t gather, first_column;
} pf_strip_keys;

/* Bytes of that memory; pf_take_strip_keys cuts it from *at. */
int64_t pf_strip_keys_bytes(const pf_call *call);
pf_strip_keys pf_take_strip_keys(const pf_call *call, char **at);

/* Storage of an index of modalities, and laying out an empty one. */
int64_t pf_boundary_bytes(const pf_call *call);
void pf_boundary_init(pf_head_index *index, const pf_call *call, void *storage);

/* modality.c: fills call->modalities and, per batch entry, what is known of
 * them. tensor: MODALITY, checked, or NULL. */
prefill_status pf_prepare_modalities(pf_call *call, pf_batch *batch,
                                     const DLTensor *tensor);

/* Number of strips of a head, some of them perhaps empty, and one of them. */
int64_t pf_strip_count(const pf_head_index *index, const pf_call *call,
                       int64_t b);
pf_strip pf_strip_of(const pf_head_index *index, const pf_call *call, int64_t b,
                     int64_t number);
/* Fills what a strip visits. */
void pf_list_strip(const pf_head_index *index, const pf_call *call, int64_t b,
                   const pf_strip *strip, pf_strip_keys *keys);

/* Work of all strips and of the dense tiles after them. keys: scratch. */
pf_work pf_views_work(const pf_head_index *index, const pf_call *call,
                      int64_t b, pf_strip_keys *keys);

/* Runs the strips of all heads of that mode, and fills their BLOCK_MAP. */
prefill_status pf_run_strips(pf_call *call);

/* Adds what these heads' strips visit to call->visited, at their first tile. */
prefill_status pf_count_strips(pf_call *call);

/* attention.c: what a row without any visible key gives, for masked_row other
 * than ZERO. row: [e] of scratch. */
void pf_write_masked_row(const pf_call *call, int64_t b, int64_t h, char *out,
                         float *row);

#ifdef __cplusplus
}
#endif
#endif
