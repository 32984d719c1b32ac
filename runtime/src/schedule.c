/*===- schedule.c - Which rows run together -----------------------*- C -*-===*\
|*
|* See prefill/schedule.h. Three passes over the requests, each in order of
|* arrival, as Sarathi-Serve makes its batches.
|*
\*===----------------------------------------------------------------------===*/
#include "prefill/schedule.h"
#include <stdbool.h>

static bool is_generating(const prefill_schedule_request *request) {
  return !request->done && request->computed == request->prompt;
}

static bool is_begun(const prefill_schedule_request *request) {
  return !request->done && request->computed > 0;
}

/* Requests under way, or -1 if one is out of range. */
static int64_t count_running(const prefill_schedule_request *requests,
                             size_t count) {
  int64_t running = 0;
  for (size_t i = 0; i < count; ++i) {
    const prefill_schedule_request *r = &requests[i];
    if (r->prompt < 1 || r->computed < 0 || r->computed > r->prompt)
      return -1;
    running += is_begun(r);
  }
  return running;
}

prefill_status prefill_schedule(const prefill_schedule_options *options,
                                const prefill_schedule_request *requests,
                                size_t count, int64_t *rows, int64_t *total) {
  if (total)
    *total = 0;
  if (!options || !total || (count && (!requests || !rows)))
    return PREFILL_INVALID_ARGUMENT;
  for (size_t i = 0; i < count; ++i)
    rows[i] = 0;
  if (options->struct_size < sizeof(prefill_schedule_options) ||
      options->budget < 1 || options->multiple < 1 ||
      options->max_requests < 1 || options->max_requests > options->budget)
    return PREFILL_INVALID_ARGUMENT;
  int64_t running = count_running(requests, count);
  if (running < 0 || running > options->max_requests)
    return PREFILL_INVALID_ARGUMENT;

  int64_t left = options->budget;
  for (size_t i = 0; i < count; ++i)
    if (is_generating(&requests[i])) {
      rows[i] = 1;
      --left;
    }
  size_t cut = count; /* the last chunk that does not end its prompt */
  for (int waiting = 0; waiting < 2; ++waiting)
    for (size_t i = 0; i < count && left; ++i) {
      const prefill_schedule_request *r = &requests[i];
      if (r->done || is_generating(r) || is_begun(r) == waiting ||
          (waiting && running == options->max_requests))
        continue;
      const int64_t rest = r->prompt - r->computed;
      rows[i] = rest < left ? rest : left;
      left -= rows[i];
      running += waiting;
      if (rows[i] < rest)
        cut = i;
    }
  const int64_t excess = (options->budget - left) % options->multiple;
  if (cut < count && excess < rows[cut]) {
    rows[cut] -= excess;
    left += excess;
  }
  *total = options->budget - left;
  return PREFILL_OK;
}
