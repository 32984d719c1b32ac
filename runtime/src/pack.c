/*===- pack.c - Several prompts in one sequence -------------------*- C -*-===*\
|*
|* Bins and rows of packs: prefill/pack.h.
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <prefill/pack.h>
#include <stdlib.h>
#include <string.h>

/* One prompt; sorted, the longest come first. */
typedef struct item {
  int64_t length, number;
} item;

static int compare_items(const void *a, const void *b) {
  const item *x = a, *y = b;
  if (x->length != y->length)
    return x->length < y->length ? 1 : -1;
  return x->number < y->number ? -1 : 1;
}

/* A distribution of sorted items over bins. */
typedef struct bins {
  int64_t *of;   /* [count]: bin of each item */
  int64_t *room; /* [count]: of each bin */
  int64_t used;
} bins;

typedef struct packing {
  const item *items;
  int64_t count, capacity;
  int64_t least; /* bins that the sum of the lengths needs */
  bins best, tried;
} packing;

static void first_fit(packing *p) {
  bins *b = &p->best;
  for (int64_t i = 0; i < p->count; ++i) {
    int64_t at = 0;
    while (at < b->used && p->items[i].length > b->room[at])
      ++at;
    if (at == b->used)
      b->room[b->used++] = p->capacity;
    b->of[i] = at;
    b->room[at] -= p->items[i].length;
  }
}

/* Tries all places of items from `at` on; bins with the same room are the same.
 */
static void place(packing *p, int64_t at) {
  bins *t = &p->tried;
  if (t->used >= p->best.used || p->best.used == p->least)
    return;
  if (at == p->count) {
    memcpy(p->best.of, t->of, (size_t)p->count * sizeof(int64_t));
    p->best.used = t->used;
    return;
  }
  const int64_t length = p->items[at].length;
  for (int64_t free = length - 1;;) {
    int64_t to = -1; /* the first bin with the least room above `free` */
    for (int64_t i = 0; i < t->used; ++i)
      if (t->room[i] > free && (to < 0 || t->room[i] < t->room[to]))
        to = i;
    if (to < 0)
      break;
    free = t->room[to];
    t->of[at] = to;
    t->room[to] -= length;
    place(p, at + 1);
    t->room[to] += length;
  }
  t->of[at] = t->used;
  t->room[t->used++] = p->capacity - length;
  place(p, at + 1);
  --t->used;
}

/* Lists the items of every bin. */
static void list_bins(const packing *p, prefill_pack_result *result) {
  int64_t written = 0;
  for (int64_t bin = 0; bin < p->best.used; ++bin) {
    result->starts[bin] = written;
    for (int64_t i = 0; i < p->count; ++i)
      if (p->best.of[i] == bin)
        result->prompts[written++] = p->items[i].number;
  }
  result->starts[p->best.used] = written;
  result->packs = (size_t)p->best.used;
}

static prefill_status check_context(const prefill_context *context) {
  return !context || (context->struct_size &&
                      context->struct_size < sizeof(prefill_context))
             ? PREFILL_INVALID_ARGUMENT
             : PREFILL_OK;
}

static prefill_status distribute(prefill_context *context, packing *p,
                                 const int64_t *lengths, bool exact,
                                 prefill_pack_result *result) {
  const size_t n = (size_t)p->count;
  const size_t bytes = (size_t)pf_round_up(
      (int64_t)(n * (sizeof(item) + 4 * sizeof(int64_t))), 64);
  char *memory = context->alloc ? context->alloc(context->host, bytes)
                                : aligned_alloc(64, bytes);
  if (!memory)
    return pf_fail_context(context, PREFILL_OUT_OF_MEMORY,
                           "no memory for a plan of %zu prompts", n);
  item *items = (item *)(void *)memory;
  int64_t *numbers = (int64_t *)(void *)(items + n);
  for (size_t i = 0; i < n; ++i)
    items[i] = (item){lengths[i], (int64_t)i};
  qsort(items, n, sizeof(item), compare_items);
  p->items = items;
  p->best = (bins){numbers, numbers + n, 0};
  p->tried = (bins){numbers + 2 * n, numbers + 3 * n, 0};
  first_fit(p);
  if (exact)
    place(p, 0);
  list_bins(p, result);
  if (!context->alloc)
    free(memory);
  else if (context->free)
    context->free(context->host, memory);
  return PREFILL_OK;
}

prefill_status prefill_pack_plan(prefill_context *context,
                                 const int64_t *lengths, size_t count,
                                 const prefill_pack_options *options,
                                 prefill_pack_result *result) {
  const prefill_pack_options defaults = {0};
  if (!options)
    options = &defaults;
  if (check_context(context) != PREFILL_OK)
    return PREFILL_INVALID_ARGUMENT;
  if (!result || !result->starts || (count && (!lengths || !result->prompts)))
    return pf_fail_context(context, PREFILL_INVALID_ARGUMENT,
                           "expected lengths and arrays for the plan, got "
                           "null");
  const bool exact = options->algorithm == PREFILL_PACK_EXACT;
  if (!exact && options->algorithm != PREFILL_PACK_FFD)
    return pf_fail_context(context, PREFILL_INVALID_ARGUMENT,
                           "algorithm %d: expected ffd (0) or exact (1)",
                           (int)options->algorithm);
  if (options->capacity < 0 || !(options->min_gain >= 0))
    return pf_fail_context(context, PREFILL_INVALID_ARGUMENT,
                           "expected a capacity and a gain of 0 or more, got "
                           "%lld and %g",
                           (long long)options->capacity, options->min_gain);
  int64_t longest = 0, sum = 0;
  for (size_t i = 0; i < count; ++i) {
    if (lengths[i] <= 0)
      return pf_fail_context(context, PREFILL_INVALID_ARGUMENT,
                             "prompt %zu is empty: leave it out", i);
    if (lengths[i] > PF_MAX_LENGTH)
      return pf_fail_context(context, PREFILL_INVALID_ARGUMENT,
                             "prompt %zu has %lld tokens: at most %lld are "
                             "possible",
                             i, (long long)lengths[i],
                             (long long)PF_MAX_LENGTH);
    longest = pf_max(longest, lengths[i]);
    sum += lengths[i];
  }
  const int64_t capacity = options->capacity
                               ? options->capacity
                               : pf_max(PREFILL_PACK_LEAST_ROWS, longest);
  for (size_t i = 0; i < count; ++i)
    if (lengths[i] > capacity)
      return pf_fail_context(
          context, PREFILL_INVALID_ARGUMENT,
          "prompt %zu has %lld tokens, more than the capacity %lld", i,
          (long long)lengths[i], (long long)capacity);
  result->gain = count ? (double)longest * (double)count / (double)sum : 1;
  const double least =
      options->min_gain > 0 ? options->min_gain : PREFILL_PACK_MIN_GAIN;
  if (!count || result->gain < least) {
    for (size_t i = 0; i < count; ++i)
      result->prompts[i] = result->starts[i] = (int64_t)i;
    result->starts[count] = (int64_t)count;
    result->packs = count;
    return PREFILL_OK;
  }
  if (exact && count > PREFILL_PACK_MOST_EXACT)
    return pf_fail_context(context, PREFILL_INVALID_ARGUMENT,
                           "exact packs at most %d prompts, got %zu: use ffd",
                           (int)PREFILL_PACK_MOST_EXACT, count);
  packing p = {.count = (int64_t)count,
               .capacity = capacity,
               .least = pf_ceil_div(sum, capacity)};
  return distribute(context, &p, lengths, exact, result);
}

prefill_status prefill_pack_fill(prefill_context *context,
                                 const int64_t *const *ids,
                                 const int64_t *lengths, const int64_t *prompts,
                                 size_t count,
                                 const prefill_pack_inputs *inputs) {
  if (check_context(context) != PREFILL_OK)
    return PREFILL_INVALID_ARGUMENT;
  if (!inputs || (count && (!lengths || !prompts)) ||
      (inputs->input_ids && !ids))
    return pf_fail_context(context, PREFILL_INVALID_ARGUMENT,
                           "expected tokens, lengths and inputs of a pack, got "
                           "null");
  int64_t row = 0;
  for (size_t i = 0; i < count; ++i) {
    const int64_t length = lengths[prompts[i]];
    if (inputs->segment_starts)
      inputs->segment_starts[i] = row;
    if (inputs->input_ids)
      memcpy(inputs->input_ids + row, ids[prompts[i]],
             (size_t)length * sizeof(int64_t));
    if (inputs->position_ids)
      for (int64_t position = 0; position < length; ++position)
        inputs->position_ids[row + position] = position;
    row += length;
    if (inputs->last_rows)
      inputs->last_rows[i] = row - 1;
  }
  if (inputs->segment_starts)
    inputs->segment_starts[count] = row;
  return PREFILL_OK;
}

prefill_status prefill_pack_view(prefill_context *context,
                                 const DLTensor *output,
                                 const int64_t *segment_starts, size_t count,
                                 size_t prompt, int64_t shape[3],
                                 int64_t strides[3], DLTensor *view) {
  if (check_context(context) != PREFILL_OK)
    return PREFILL_INVALID_ARGUMENT;
  if (!output || !segment_starts || !shape || !strides || !view ||
      prompt >= count)
    return pf_fail_context(context, PREFILL_INVALID_ARGUMENT,
                           "expected an output, its segments and one of their "
                           "%zu prompts",
                           count);
  const int32_t rank = output->ndim;
  const int64_t rows = segment_starts[count];
  if ((rank != 3 && rank != 4) || output->shape[0] != 1)
    return pf_fail_context(context, PREFILL_INVALID_SHAPE,
                           "expected an output [1, rows, n] or [1, heads, "
                           "rows, d]");
  const int32_t axis = rank - 2;
  int64_t begin = segment_starts[prompt], end = segment_starts[prompt + 1];
  if (rank == 3 && output->shape[axis] == (int64_t)count &&
      rows != (int64_t)count) {
    begin = (int64_t)prompt; /* the last row of every prompt */
    end = begin + 1;
  } else if (output->shape[axis] != rows) {
    return pf_fail_context(context, PREFILL_INVALID_SHAPE,
                           "expected %lld rows in axis %d of the output, got "
                           "%lld",
                           (long long)rows, (int)axis,
                           (long long)output->shape[axis]);
  }
  int64_t step = 1, row_stride = 0;
  for (int32_t i = rank; i-- > 1;) {
    const int64_t stride = output->strides ? output->strides[i] : step;
    step *= output->shape[i];
    shape[i - 1] = i == axis ? end - begin : output->shape[i];
    strides[i - 1] = stride;
    if (i == axis)
      row_stride = stride;
  }
  *view = *output;
  view->ndim = rank - 1;
  view->shape = shape;
  view->strides = strides;
  view->byte_offset +=
      (uint64_t)(begin * row_stride * (output->dtype.bits / 8));
  return PREFILL_OK;
}
