/*===- schedule.h - Which rows run together -----------------------*- C -*-===*\
|*
|* A scheduler for hybrid batches: one call of a model computes the next rows of
|* some prompts beside one row of every request that generates (decode-maximal
|* batching, SARATHI, arXiv:2308.16369). It decides how many rows each request
|* gets and nothing else: it holds no state, allocates nothing and knows no
|* model. Any host can use it; models compiled with -chunk take what it decides
|* (docs/RowTransforms.md).
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_SCHEDULE_H
#define PREFILL_SCHEDULE_H

#include "prefill/prefill.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct prefill_schedule_options {
  uint32_t struct_size; /* sizeof(prefill_schedule_options) */
  int64_t budget;       /* most rows of a batch, at least 1 (SARATHI: 512) */
  int64_t max_requests; /* most requests that hold rows of the cache at a time,
                           at least 1 and at most `budget` (Sarathi-Serve: 128) */
  int64_t multiple;     /* rows of a batch are a multiple of this as far as a
                           chunk may be cut for it, at least 1: the tile of the
                           host's matrix products (128 on GPUs). Chunks that end
                           a prompt are not cut */
} prefill_schedule_options;

/* A request, in order of arrival. `computed` of `prompt` tokens are in the
 * cache; once all are, the request generates: one row a batch. */
typedef struct prefill_schedule_request {
  int64_t prompt;   /* tokens of its prompt, at least 1 */
  int64_t computed; /* 0 .. prompt */
  int64_t done;     /* nonzero: finished or cancelled; it gets no rows */
} prefill_schedule_request;

/* Writes to rows[i] how many rows request i gets in the next batch, and their
 * sum to *total: 0 when every request is done.
 *
 *   1. one row for every request that generates;
 *   2. of what is left of the budget, as much as fits for prompts that are begun,
 *      the earliest first;
 *   3. then for prompts that are not, while fewer than max_requests are under
 *      way;
 *   4. then the last chunk that does not end its prompt is cut so that *total is
 *      a multiple of `multiple`, unless nothing would be left of it.
 *
 * Every request is served in the end: generating ones fit the budget, so the
 * earliest begun prompt gets a row whenever one of the budget is left. With
 * as many generating requests as rows in the budget it waits for one of them.
 *
 * PREFILL_INVALID_ARGUMENT for null pointers, options or requests out of range,
 * and more requests under way than max_requests; rows and *total are zero
 * then. count 0 is fine. */
PREFILL_API prefill_status
prefill_schedule(const prefill_schedule_options *options,
                 const prefill_schedule_request *requests, size_t count,
                 int64_t *rows, int64_t *total);

#ifdef __cplusplus
}
#endif
#endif
