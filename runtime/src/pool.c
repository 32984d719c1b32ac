/*===- pool.c - A small thread pool for hosts that have none ------*- C -*-===*\
|*
|* Persistent threads wait for a job, take indices from one atomic counter and
|* go back to waiting. A pool runs one loop at a time; a second caller, or a
|* body that calls back into the pool, runs its loop on its own thread.
|*
|* Waiting: a short spin (two loops often follow each other within
|* microseconds), then a condition variable. Nobody busy-waits for long.
|*
\*===----------------------------------------------------------------------===*/
#include "prefill/prefill.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum {
  MAX_THREADS = 1024,
  SPINS = 2000, /* of about 40 cycles: some tens of microseconds */
};

struct prefill_pool {
  pthread_mutex_t caller; /* held for the whole of a loop */
  pthread_mutex_t mutex;  /* guards what follows, up to next */
  pthread_cond_t wake, idle;
  bool stop;
  size_t active;                      /* threads inside the current job */
  void (*body)(void *data, size_t i); /* NULL: no job */
  void *data;
  size_t count;
  _Atomic size_t generation; /* grows with every job; also read without mutex */
  _Atomic size_t next;
  size_t threads;
  pthread_t thread[];
};

static void take_items(prefill_pool *pool, void (*body)(void *, size_t),
                       void *data, size_t count) {
  for (;;) {
    size_t i = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
    if (i >= count)
      return;
    body(data, i);
  }
}

static void *thread_main(void *argument) {
  prefill_pool *pool = argument;
  size_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < SPINS; ++spin) {
      if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen)
        break;
      __builtin_ia32_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    while (!pool->stop && atomic_load_explicit(&pool->generation,
                                               memory_order_relaxed) == seen)
      pthread_cond_wait(&pool->wake, &pool->mutex);
    if (pool->stop) {
      pthread_mutex_unlock(&pool->mutex);
      return NULL;
    }
    seen = atomic_load_explicit(&pool->generation, memory_order_relaxed);
    void (*body)(void *, size_t) = pool->body;
    void *data = pool->data;
    size_t count = pool->count;
    if (body) /* else the job is over already */
      ++pool->active;
    pthread_mutex_unlock(&pool->mutex);
    if (!body)
      continue;
    take_items(pool, body, data, count);
    pthread_mutex_lock(&pool->mutex);
    --pool->active;
    if (!pool->active)
      pthread_cond_signal(&pool->idle);
    pthread_mutex_unlock(&pool->mutex);
  }
}

/* Creates a pool of `threads` threads, the caller of a loop included;
 * 0 means 1. Threads that the system refuses to create are done without. NULL:
 * out of memory. */
prefill_pool *prefill_pool_create(size_t threads) {
  if (threads < 1)
    threads = 1;
  if (threads > MAX_THREADS)
    threads = MAX_THREADS;
  prefill_pool *pool =
      calloc(1, sizeof(prefill_pool) + (threads - 1) * sizeof(pthread_t));
  if (!pool)
    return NULL;
  /* These cannot fail with default attributes on Linux. */
  pthread_mutex_init(&pool->caller, NULL);
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->wake, NULL);
  pthread_cond_init(&pool->idle, NULL);
  while (pool->threads < threads - 1 &&
         pthread_create(&pool->thread[pool->threads], NULL, thread_main,
                        pool) == 0)
    ++pool->threads;
  return pool;
}

/* Ends the threads and frees the pool. No loop may be running. */
void prefill_pool_destroy(prefill_pool *pool) {
  if (!pool)
    return;
  pthread_mutex_lock(&pool->mutex);
  pool->stop = true;
  atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->mutex);
  for (size_t i = 0; i < pool->threads; ++i)
    pthread_join(pool->thread[i], NULL);
  pthread_cond_destroy(&pool->idle);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->mutex);
  pthread_mutex_destroy(&pool->caller);
  free(pool);
}

/* A prefill_parallel_for_fn; `opaque` is the pool, NULL runs on the caller. */
void prefill_pool_parallel_for(void *opaque, size_t count,
                               void (*body)(void *data, size_t i), void *data) {
  prefill_pool *pool = opaque;
  if (!pool || !pool->threads || count < 2 ||
      pthread_mutex_trylock(&pool->caller) != 0) {
    for (size_t i = 0; i < count; ++i)
      body(data, i);
    return;
  }
  pthread_mutex_lock(&pool->mutex);
  pool->body = body;
  pool->data = data;
  pool->count = count;
  atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
  atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->mutex);

  take_items(pool, body, data, count);

  /* No thread may join from here on; wait for those inside. */
  pthread_mutex_lock(&pool->mutex);
  pool->body = NULL;
  while (pool->active)
    pthread_cond_wait(&pool->idle, &pool->mutex);
  pthread_mutex_unlock(&pool->mutex);
  pthread_mutex_unlock(&pool->caller);
}
