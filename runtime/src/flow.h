/*===- flow.h - What flows through the rows of an image -----------*- C -*-===*\
|*
|* FlowCut's score of a row and its number of rows to leave out
|* (arXiv:2505.19536). One row's products with all others a head: no n x n
|* anything.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_FLOW_H
#define PREFILL_RUNTIME_FLOW_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* float32 [head][row][element] of one image; elements of a row adjacent. */
typedef struct pf_flow_rows {
  const float *data;
  int64_t head, row; /* strides in elements */
} pf_flow_rows;

/* What q and k are rotated by: the first `dim` elements of row i by row i of
 * cos and sin, [n][width] with width dim or dim / 2 (RoFormer,
 * arXiv:2104.09864).
 */
typedef struct pf_flow_rotary {
  const float *cos, *sin;
  int64_t width, dim; /* dim 0: no rotation */
  bool interleaved;   /* pairs are neighbours, not halves */
} pf_flow_rotary;

/* One image or prompt: n rows of `heads` heads of d elements; of k and v
 * kv_heads, each for heads / kv_heads of q's. */
typedef struct pf_flow {
  pf_flow_rows q, k, v;
  pf_flow_rotary rotary;
  int64_t n, heads, kv_heads, d;
  float scale, value_scale; /* of products with keys, and with values */
  int64_t anchor;           /* a row; -1: the mean of all */
  bool cls;                 /* row 0 is no patch */
  const uint8_t *columns;   /* [n]: rows that are read at all; NULL: all */
  const float *previous;    /* [n], the layer before's score; NULL: none */
} pf_flow;

/* With r the mean over the heads of the softmax of the anchor's scaled products
 * with all keys of `columns` and m of that with all values, each made to sum up
 * to 1 over the patches (where the sum is 0 it stays 0): shares[n] = r, and
 * score[n] = previous / 2 + (r + m) * sum |mean of v over the heads| / 2. What
 * is no column, and row 0 with cls, gets 0 for both. The mean anchor is the
 * mean query, and the mean value; it is not for rotated rows. shares may be
 * NULL. False: out of memory. */
bool pf_flow_score(const pf_flow *flow, float *score, float *shares);

/* How many of `count` patches go: round((count - target) / sqrt(left) *
 * (1 - (H / ln count)^2)), halves to even, at least 0 and at most count -
 * target; with left 0 count - target. H is the entropy of shares[count], 0 ln 0
 * being 0. Shares that are no numbers let none go before `left` is 0. */
int64_t pf_flow_drop(const float *shares, int64_t count, int64_t target,
                     int64_t left);

#ifdef __cplusplus
}
#endif
#endif
