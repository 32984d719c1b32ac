/*===- FakeDriver.h - A libcuda.so.1 without a GPU ----------------*- C -*-===*\
|*
|* The driver functions that the runtime uses, as a shared library whose soname
|* is libcuda.so.1: a process that loads it first gives it to everybody. It
|* records what is asked of it, fails on demand, and hands launches on. With
|* FAKE_CUDA_11 it lacks what came with CUDA 12's.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_UNITTESTS_CODEGEN_CUDA_FAKEDRIVER_H
#define PREFILL_UNITTESTS_CODEGEN_CUDA_FAKEDRIVER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct fake_launch {
  const char *function;
  const char *code; /* the first bytes of what was loaded */
  unsigned grid[3], block[3], shared_bytes;
  void *stream;
  const void *params; /* the kernel's first parameter */
  const void *maps;   /* the second one, if the function's name ends in _tma */
} fake_launch;

/* What cuTensorMapEncodeTiled is asked for. */
typedef struct fake_tensor_map {
  int type;
  unsigned rank;
  void *data;
  const uint64_t *dims, *strides;
  const unsigned *box, *steps;
  int interleave, swizzle, promotion, fill;
} fake_tensor_map;

typedef struct fake_cuda {
  int major, minor, device;   /* of the current context */
  unsigned long long context; /* its number; 0: there is none */
  const char *failing;        /* name of a function that fails, or NULL */
  int code;                   /* with this */
  int loads, launches;
  int shared_limit;
  int pool_live;  /* allocations that are not freed */
  void *pool[16]; /* all of them, and their sizes */
  size_t pool_bytes[16];
  int pool_count;
  /* Called by each launch; nonzero is what it returns. */
  int (*launch)(void *user, const fake_launch *launch);
  void *user;
  /* Called for each tensor map, of 128 bytes; as `launch`. NULL: zeros. */
  int (*encode)(void *user, const fake_tensor_map *asked, void *map);
  int processors; /* of the GPU */
} fake_cuda;

/* The one state, as new: sm_80, device 0, context 1. */
fake_cuda *fake_cuda_reset(void);

#ifdef __cplusplus
}
#endif
#endif
