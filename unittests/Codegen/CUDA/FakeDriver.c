/*===- FakeDriver.c - A libcuda.so.1 without a GPU ----------------*- C -*-===*/
#include "FakeDriver.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static fake_cuda state;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

fake_cuda *fake_cuda_reset(void) {
  memset(&state, 0, sizeof(state));
  state.major = 8;
  state.context = 1;
  state.shared_limit = 163 << 10;
  state.processors = 108;
  return &state;
}

enum { INVALID_VALUE = 1, NOT_FOUND = 500, INVALID_IMAGE = 200 };

typedef struct module {
  char code[65];
} module;
typedef struct function {
  char name[128];
  module *of;
} function;

static int fails(const char *name) {
  return state.failing && strcmp(state.failing, name) == 0 ? state.code : 0;
}

int cuInit(unsigned flags) {
  if (!state.major)
    fake_cuda_reset();
  return flags ? INVALID_VALUE : fails("cuInit");
}
int cuGetErrorName(int code, const char **text) {
  *text = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY"
                      : "CUDA_ERROR_OF_A_TEST";
  return 0;
}
int cuGetErrorString(int code, const char **text) {
  (void)code;
  *text = "as the test says";
  return 0;
}
int cuCtxGetCurrent(void **context) {
  *context = (void *)(uintptr_t)state.context;
  return fails("cuCtxGetCurrent");
}
int cuCtxGetId(void *context, unsigned long long *id) {
  *id = (uintptr_t)context;
  return 0;
}
int cuCtxGetDevice(int *device) {
  *device = state.device;
  return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (device != state.device)
    return INVALID_VALUE;
  *value = attribute == 75   ? state.major
           : attribute == 76 ? state.minor
           : attribute == 16 ? state.processors
                             : 0;
  return *value || attribute == 76 ? 0 : INVALID_VALUE;
}
int cuModuleLoadDataEx(void **out, const void *image, unsigned count,
                       int *options, void **values) {
  (void)count;
  (void)options;
  (void)values;
  int code = fails("cuModuleLoadDataEx");
  if (code)
    return code;
  const char *text = image;
  if (memcmp(text, "\177ELF", 4) != 0 && memcmp(text, "//", 2) != 0)
    return INVALID_IMAGE;
  module *loaded = calloc(1, sizeof(module));
  memcpy(loaded->code, image, sizeof(loaded->code) - 1);
  pthread_mutex_lock(&mutex);
  ++state.loads;
  pthread_mutex_unlock(&mutex);
  *out = loaded;
  return 0;
}
int cuModuleUnload(void *loaded) {
  free(loaded);
  return 0;
}
int cuModuleGetFunction(void **out, void *of, const char *name) {
  int code = fails("cuModuleGetFunction");
  if (code)
    return code;
  function *found = calloc(1, sizeof(function));
  strncpy(found->name, name, sizeof(found->name) - 1);
  found->of = of;
  *out = found;
  return 0;
}
int cuFuncSetAttribute(void *of, int attribute, int value) {
  if (!of || attribute != 8 || value > state.shared_limit)
    return INVALID_VALUE;
  return fails("cuFuncSetAttribute");
}
int cuMemAllocAsync(unsigned long long *out, size_t bytes, void *stream) {
  (void)stream;
  int code = fails("cuMemAllocAsync");
  if (code || state.pool_count == 16)
    return code ? code : 2;
  /* Not reused, so that kernels that come late would be seen. */
  void *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset(memory, 0xff, bytes);
  state.pool[state.pool_count] = memory;
  state.pool_bytes[state.pool_count++] = bytes;
  ++state.pool_live;
  *out = (uintptr_t)memory;
  return 0;
}
int cuMemAlloc_v2(unsigned long long *out, size_t bytes) {
  return cuMemAllocAsync(out, bytes, NULL);
}
int cuMemFree_v2(unsigned long long memory) {
  (void)memory;
  return 0;
}
int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t bytes) {
  memcpy((void *)(uintptr_t)to, from, bytes);
  return fails("cuMemcpyHtoD");
}
int cuMemFreeAsync(unsigned long long memory, void *stream) {
  (void)memory;
  (void)stream;
  --state.pool_live;
  return 0;
}
#ifndef FAKE_CUDA_11
int cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *data,
                           const uint64_t *dims, const uint64_t *strides,
                           const unsigned *box, const unsigned *steps,
                           int interleave, int swizzle, int promotion,
                           int fill) {
  int code = fails("cuTensorMapEncodeTiled");
  if (code || (uintptr_t)map % 64 || state.major < 9)
    return code ? code : INVALID_VALUE;
  const fake_tensor_map asked = {type,    rank,      data,  dims,
                                 strides, box,       steps, interleave,
                                 swizzle, promotion, fill};
  memset(map, 0, 128);
  pthread_mutex_lock(&mutex);
  if (state.encode)
    code = state.encode(state.user, &asked, map);
  pthread_mutex_unlock(&mutex);
  return code;
}
#endif
int cuLaunchKernel(void *of, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                   unsigned by, unsigned bz, unsigned shared, void *stream,
                   void **params, void **extra) {
  int code = fails("cuLaunchKernel");
  if (code || !of || extra || !gx || !gy || !gz)
    return code ? code : INVALID_VALUE;
  const function *called = of;
  const char *suffix = strrchr(called->name, '_');
  const int maps = suffix && strcmp(suffix, "_tma") == 0;
  fake_launch launch = {
      called->name, called->of->code, {gx, gy, gz}, {bx, by, bz},
      shared,       stream,           params[0],    maps ? params[1] : NULL};
  pthread_mutex_lock(&mutex);
  ++state.launches;
  if (state.launch)
    code = state.launch(state.user, &launch);
  pthread_mutex_unlock(&mutex);
  return code;
}
