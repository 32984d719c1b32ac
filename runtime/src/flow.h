/*===- flow.h - What flows through the rows of a vision encoder ---*- C -*-===*\
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

/* One image: n rows of `heads` heads of d elements. */
typedef struct pf_flow {
  pf_flow_rows q, k, v;
  int64_t n, heads, d;
  float scale;
  bool cls;              /* row 0 is the anchor and no patch */
  const float *previous; /* [n], the layer before's score; NULL: none */
} pf_flow;

/* With r the mean over the heads of the softmax of the anchor's scaled products
 * with all keys and m of that with all values, each made to sum up to 1 over
 * the patches (where the sum is 0 it stays 0): shares[n] = r, and score[n] =
 * previous / 2 + (r + m) * sum |mean of v over the heads| / 2. Without cls the
 * anchor is the mean query, and the mean value. Row 0 with cls gets 0 for both.
 * shares may be NULL. False: out of memory. */
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
