/*===- context.c - Errors, memory and loops through the host's callbacks --===*\
|*
|* A zeroed context works: the C library's allocator and the calling thread.
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xmmintrin.h>

prefill_status pf_fail(const pf_call *call, prefill_status status,
                       const char *format, ...) {
  char *text = call->context->message;
  const size_t size = sizeof(call->context->message);
  int used = snprintf(text, size, "kernel '%.64s': ", call->desc->name);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + used, size - (size_t)used, format, arguments);
  va_end(arguments);
  return status;
}

prefill_status pf_fail_context(prefill_context *context, prefill_status status,
                               const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(context->message, sizeof(context->message), format, arguments);
  va_end(arguments);
  return status;
}

void *pf_alloc(pf_call *call, int64_t count, int64_t size) {
  int64_t bytes;
  void *memory = NULL;
  const int limit = (int)(sizeof(call->owned) / sizeof(call->owned[0]));
  if (call->owned_count < limit &&
      !__builtin_mul_overflow(count, size, &bytes) && bytes < INT64_MAX - 64) {
    bytes = pf_round_up(pf_max(bytes, 1), 64);
    prefill_context *context = call->context;
    memory = context->alloc ? context->alloc(context->host, (size_t)bytes)
                            : aligned_alloc(64, (size_t)bytes);
  }
  if (!memory) {
    pf_fail(call, PREFILL_OUT_OF_MEMORY,
            "no memory for %lld x %lld bytes of workspace", (long long)count,
            (long long)size);
    return NULL;
  }
  call->owned[call->owned_count++] = memory;
  return memory;
}

/* Releases the newest allocations until `keep` are left. */
static void release_to(pf_call *call, int keep) {
  prefill_context *context = call->context;
  while (call->owned_count > keep) {
    void *memory = call->owned[--call->owned_count];
    if (!context->alloc)
      free(memory);
    else if (context->free)
      context->free(context->host, memory);
  }
}

void pf_release_all(pf_call *call) { release_to(call, 0); }

/*===-- loops ------------------------------------------------------------===*/

typedef struct loop {
  pf_call *call;
  void (*body)(pf_call *call, void *worker, int64_t item);
  _Atomic int64_t next;
  int64_t items;
  char *workspace;
  int64_t worker_bytes;
} loop;

/* One worker: takes items until there are none. `slot` selects its memory. */
static void work(void *data, size_t slot) {
  loop *l = data;
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040); /* flush to zero, denormals are zero */
  for (;;) {
    int64_t item = atomic_fetch_add_explicit(&l->next, 1, memory_order_relaxed);
    if (item >= l->items)
      break;
    l->body(l->call, l->workspace + (int64_t)slot * l->worker_bytes, item);
  }
  _mm_setcsr(saved);
}

prefill_status pf_parallel(pf_call *call, int64_t items, double work_estimate,
                           int64_t worker_bytes,
                           void (*body)(pf_call *call, void *worker,
                                        int64_t item)) {
  /* Handing work to another thread takes some microseconds: a million
   * operations are about ten. */
  const double least_parallel_work = 1e6;
  if (items <= 0)
    return PREFILL_OK;
  prefill_context *context = call->context;
  int64_t workers = 1;
  if (context->parallel_for && items > 1 &&
      work_estimate >= least_parallel_work) {
    /* The host does not say how many threads it has; more than one worker a
     * processor cannot help. Surplus workers find the counter exhausted. */
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    workers = pf_min(items, processors > 1 ? processors : 2);
  }
  loop l = {.call = call, .body = body, .items = items};
  l.worker_bytes = pf_round_up(worker_bytes, 64);
  const int before = call->owned_count;
  l.workspace = pf_alloc(call, workers, l.worker_bytes);
  if (!l.workspace)
    return PREFILL_OUT_OF_MEMORY;
  if (workers == 1)
    work(&l, 0);
  else
    context->parallel_for(context->host, (size_t)workers, work, &l);
  release_to(call, before);
  return PREFILL_OK;
}
