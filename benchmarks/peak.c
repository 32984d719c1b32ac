/*===- peak.c - The multiply-add peak of this machine -------------*- C -*-===*\
|*
|* peak_gflops(threads, milliseconds): the most float32 multiply-add operations
|* a second (in 10^9; one multiply-add counts two) that the given number of
|* threads reach together, by the wall clock, with 512-bit or 256-bit vectors,
|* whichever is faster. 0 if the machine has neither. Built by kernel.py.
|*
\*===----------------------------------------------------------------------===*/
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

enum { ACCUMULATORS = 20, ROUNDS = 20000 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Each runs ROUNDS x ACCUMULATORS multiply-adds; the asm keeps the accumulators
 * alive in registers and the loop from being folded. */
__attribute__((target("avx512f"))) static void spin512(void) {
  __m512 a[ACCUMULATORS];
  __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
  for (int i = 0; i < ACCUMULATORS; ++i)
    a[i] = _mm512_set1_ps((float)i);
  for (int r = 0; r < ROUNDS; ++r) {
#pragma clang loop unroll(full)
    for (int i = 0; i < ACCUMULATORS; ++i) {
      a[i] = _mm512_fmadd_ps(a[i], x, y);
      __asm__ volatile("" : "+v"(a[i]));
    }
  }
}

__attribute__((target("avx2,fma"))) static void spin256(void) {
  enum { COUNT = 12 }; /* of 16 registers, two hold the factors */
  __m256 a[COUNT];
  __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
  for (int i = 0; i < COUNT; ++i)
    a[i] = _mm256_set1_ps((float)i);
  for (int r = 0; r < ROUNDS; ++r) {
#pragma clang loop unroll(full)
    for (int i = 0; i < COUNT; ++i) {
      a[i] = _mm256_fmadd_ps(a[i], x, y);
      __asm__ volatile("" : "+x"(a[i]));
    }
  }
}

struct job {
  void (*spin)(void);
  double until;
  uint64_t rounds;
};

static void *work(void *pointer) {
  struct job *job = pointer;
  do {
    job->spin();
    ++job->rounds;
  } while (now() < job->until);
  return 0;
}

static double measure(void (*spin)(void), double flops, int threads,
                      double seconds) {
  enum { MAX_THREADS = 256 };
  pthread_t ids[MAX_THREADS];
  struct job jobs[MAX_THREADS];
  if (threads > MAX_THREADS)
    threads = MAX_THREADS;
  double start = now();
  int started = 0;
  for (int i = 0; i < threads; ++i) {
    jobs[i] = (struct job){spin, start + seconds, 0};
    if (i && pthread_create(&ids[i], 0, work, &jobs[i]))
      break;
    started = i + 1;
  }
  work(&jobs[0]);
  uint64_t rounds = jobs[0].rounds;
  for (int i = 1; i < started; ++i) {
    pthread_join(ids[i], 0);
    rounds += jobs[i].rounds;
  }
  return (double)rounds * flops / (now() - start) / 1e9;
}

double peak_gflops(int threads, int milliseconds) {
  double best = 0, seconds = milliseconds / 1000.0;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) {
    double got = measure(spin512, 2.0 * 16 * ACCUMULATORS * ROUNDS, threads,
                         seconds);
    best = got > best ? got : best;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    double got = measure(spin256, 2.0 * 8 * 12 * ROUNDS, threads, seconds);
    best = got > best ? got : best;
  }
  return best;
}
