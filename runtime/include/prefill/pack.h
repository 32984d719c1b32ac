/*===- pack.h - Several prompts in one sequence -------------------*- C -*-===*\
|*
|* Which prompts of a batch share a run of a model that was compiled with
|* -pack, what that run takes, and where each prompt's results lie (Prepacking,
|* arXiv:2404.09529). Host code only: no kernel is needed, and no model. Every
|* compiled library exports these functions, and so does libprefill_host.so.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_PACK_H
#define PREFILL_PACK_H

#include <prefill/prefill.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum prefill_pack_algorithm {
  PREFILL_PACK_FFD = 0,   /* first-fit-decreasing: at most 11/9 of the fewest
                             packs, and one (Johnson 1973) */
  PREFILL_PACK_EXACT = 1, /* the fewest packs, by trying */
} prefill_pack_algorithm;

enum {
  PREFILL_PACK_MOST_EXACT = 20, /* prompts that PREFILL_PACK_EXACT takes */
  PREFILL_PACK_LEAST_ROWS = 2048 /* capacity 0 is this or the longest prompt */
};
/* Where a padded batch has fewer than this times the rows, packing gains
 * nothing: min_gain 0 is this. */
#define PREFILL_PACK_MIN_GAIN 1.05

/* A zeroed one is good. */
typedef struct prefill_pack_options {
  int32_t algorithm; /* prefill_pack_algorithm */
  int64_t capacity;  /* most rows of a pack; 0: LEAST_ROWS or the longest */
  double min_gain;   /* 0: MIN_GAIN; 1: pack whatever the gain */
} prefill_pack_options;

/* What prefill_pack_plan decides. The caller gives the two arrays. */
typedef struct prefill_pack_result {
  int64_t *prompts; /* [count]: numbers of the prompts, pack by pack, in the
                       order of their rows */
  int64_t *starts;  /* [count + 1]: pack p has prompts[starts[p]] to
                       prompts[starts[p + 1] - 1] */
  size_t packs;
  double gain; /* rows of a padded batch by the prompts' own */
} prefill_pack_result;

/* Which of `count` prompts of lengths[i] tokens run together: longest first,
 * of equal ones the lower number. Where packing gains less than min_gain, every
 * prompt is a pack of its own, in their order. options may be NULL. Fails with
 * a message for an empty prompt, one longer than the capacity, and too many for
 * EXACT. */
PREFILL_API prefill_status prefill_pack_plan(prefill_context *context,
                                             const int64_t *lengths,
                                             size_t count,
                                             const prefill_pack_options *options,
                                             prefill_pack_result *result);

/* The inputs of one pack's run. A pointer that is NULL is not filled. */
typedef struct prefill_pack_inputs {
  int64_t *input_ids;      /* [1, rows]: tokens of all its prompts */
  int64_t *segment_starts; /* [count + 1]: where each begins, and the end */
  int64_t *position_ids;   /* [1, rows]: beginning anew in every prompt */
  int64_t *last_rows;      /* [count]: for logits_to_keep or logits_rows */
} prefill_pack_inputs;

/* Lays the tokens ids[prompts[i]] (of lengths[prompts[i]]) of `count` prompts
 * one after the other. rows is the sum of their lengths. */
PREFILL_API prefill_status prefill_pack_fill(prefill_context *context,
                                             const int64_t *const *ids,
                                             const int64_t *lengths,
                                             const int64_t *prompts,
                                             size_t count,
                                             const prefill_pack_inputs *inputs);

/* The part of an output that belongs to the pack's prompt number `prompt`, a
 * view on its memory: of [1, rows, n] the rows [length, n]; of a cache
 * [1, heads, rows, d] the part [heads, length, d]. Of [1, count, n] (logits of
 * the last rows only) the row [1, n]. view's shape and strides (3 elements
 * each, in elements) are the caller's. */
PREFILL_API prefill_status prefill_pack_view(
    prefill_context *context, const DLTensor *output,
    const int64_t *segment_starts, size_t count, size_t prompt,
    int64_t shape[3], int64_t strides[3], DLTensor *view);

#ifdef __cplusplus
}
#endif
#endif
