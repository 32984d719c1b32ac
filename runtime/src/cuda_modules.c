/*===- cuda_modules.c - Code in CUDA contexts ---------------------*- C -*-===*\
|*
|* The one thing that outlives a call: which code and plans have been loaded
into
|* which context. Entries are never changed or removed, so that launches read
the list
|* without a lock. A context that is destroyed takes its modules with it; its
|* entry stays, and is never found again, as the driver does not reuse contexts'
|* numbers. (Before CUDA 12 there are none: there a context that is made after
|* another was destroyed, at its address, would find dead entries.)
|*
\*===----------------------------------------------------------------------===*/
#include "cuda.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct loaded {
  unsigned long long context;
  const prefill_cuda_image *image;
  const char *name;
  CUfunction function;
  struct loaded *next;
} loaded;

static _Atomic(loaded *) all;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* zlib's uncompress, linked into the runtime under a name of its own. */
int pf_zlib_uncompress(unsigned char *out, unsigned long *out_bytes,
                       const unsigned char *in, unsigned long in_bytes)
    __attribute__((visibility("hidden")));

static const loaded *find(const pf_cuda_device *device,
                          const prefill_cuda_image *image, const char *name) {
  const loaded *entry = atomic_load_explicit(&all, memory_order_acquire);
  while (entry && (entry->context != device->id || entry->image != image ||
                   strcmp(entry->name, name) != 0))
    entry = entry->next;
  return entry;
}

/* Decompresses and loads; the caller holds the mutex. */
static prefill_status load(const pf_call *call, const pf_cuda_device *device,
                           const prefill_cuda_image *image, const char *name,
                           const loaded **result) {
  const pf_cuda_driver *cuda = device->driver;
  loaded *entry = malloc(sizeof(loaded));
  unsigned char *code_bytes = malloc(image->code_bytes);
  if (!entry || !code_bytes) {
    free(entry);
    free(code_bytes);
    return pf_fail(call, PREFILL_OUT_OF_MEMORY,
                   "no memory for %llu bytes of "
                   "CUDA code",
                   (unsigned long long)image->code_bytes);
  }
  unsigned long bytes = image->code_bytes;
  prefill_status status = PREFILL_OK;
  CUmodule module = NULL;
  CUresult code;
  if (pf_zlib_uncompress(code_bytes, &bytes, image->data, image->bytes) ||
      bytes != image->code_bytes) {
    status = pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "the library's CUDA code is damaged");
  } else {
    char log[160] = "";
    int options[] = {CU_JIT_ERROR_LOG, CU_JIT_ERROR_LOG_BYTES};
    void *values[] = {log, (void *)sizeof(log)};
    code = cuda->ModuleLoadDataEx(&module, code_bytes, 2, options, values);
    log[sizeof(log) - 1] = '\0';
    log[strcspn(log, "\n")] = '\0';
    if (code)
      status = log[0] ? pf_fail(call, PREFILL_DEVICE_ERROR,
                                "cuModuleLoadDataEx (%d): %s", code, log)
                      : pf_cuda_fail(call, cuda, "cuModuleLoadDataEx", code);
    else if ((code = cuda->ModuleGetFunction(&entry->function, module, name)))
      status = pf_cuda_fail(call, cuda, "cuModuleGetFunction", code);
    else if ((code = cuda->FuncSetAttribute(entry->function,
                                            CU_FUNC_MAX_DYNAMIC_SHARED_BYTES,
                                            image->shared_bytes)))
      status = pf_cuda_fail(call, cuda, "cuFuncSetAttribute", code);
  }
  free(code_bytes);
  if (status) {
    if (module)
      cuda->ModuleUnload(module);
    free(entry);
    return status;
  }
  entry->context = device->id;
  entry->image = image;
  entry->name = name;
  entry->next = atomic_load_explicit(&all, memory_order_relaxed);
  atomic_store_explicit(&all, entry, memory_order_release);
  *result = entry;
  return PREFILL_OK;
}

static bool runs_on(const prefill_cuda_image *image, int32_t arch) {
  if (image->exact_arch)
    return image->arch == arch;
  return image->format == PREFILL_CUDA_PTX
             ? image->arch <= arch
             : image->arch <= arch && image->arch / 10 == arch / 10;
}

const prefill_cuda_image *
pf_cuda_image_of(const pf_call *call, const pf_cuda_device *device, int kind) {
  const prefill_attention_desc *desc = call->desc;
  for (int64_t i = 0; i < desc->cuda_image_count; ++i)
    if (desc->cuda_images[i]->kind == kind &&
        runs_on(desc->cuda_images[i], device->arch))
      return desc->cuda_images[i];
  return NULL;
}

/* A plan in a context's memory. */
typedef struct copied {
  unsigned long long context;
  const prefill_plan *plan;
  CUdeviceptr heads;
  struct copied *next;
} copied;
static _Atomic(copied *) all_plans;

static const copied *find_copy(const pf_cuda_device *device,
                               const prefill_plan *plan) {
  const copied *entry = atomic_load_explicit(&all_plans, memory_order_acquire);
  while (entry && (entry->context != device->id || entry->plan != plan))
    entry = entry->next;
  return entry;
}

/* Copies; the caller holds the mutex. */
static prefill_status copy_plan(const pf_call *call,
                                const pf_cuda_device *device,
                                const prefill_plan *plan,
                                const copied **result) {
  const pf_cuda_driver *cuda = device->driver;
  const size_t bytes = (size_t)plan->head_count * sizeof(prefill_head_plan);
  copied *entry = malloc(sizeof(copied));
  if (!entry)
    return pf_fail(call, PREFILL_OUT_OF_MEMORY, "no memory for a plan");
  CUresult code = cuda->MemAlloc(&entry->heads, bytes);
  const char *what = "cuMemAlloc";
  if (!code) {
    what = "cuMemcpyHtoD";
    if ((code = cuda->MemcpyHtoD(entry->heads, plan->heads, bytes)))
      cuda->MemFree(entry->heads);
  }
  if (code) {
    free(entry);
    return pf_cuda_fail(call, cuda, what, code);
  }
  entry->context = device->id;
  entry->plan = plan;
  entry->next = atomic_load_explicit(&all_plans, memory_order_relaxed);
  atomic_store_explicit(&all_plans, entry, memory_order_release);
  *result = entry;
  return PREFILL_OK;
}

prefill_status pf_cuda_find_plan(const pf_call *call,
                                 const pf_cuda_device *device,
                                 const prefill_head_plan **heads) {
  const prefill_plan *plan = call->desc->plan;
  const copied *entry = find_copy(device, plan);
  prefill_status status = PREFILL_OK;
  if (!entry) {
    pthread_mutex_lock(&mutex);
    entry = find_copy(device, plan);
    if (!entry)
      status = copy_plan(call, device, plan, &entry);
    pthread_mutex_unlock(&mutex);
    if (status)
      return status;
  }
  *heads = (const prefill_head_plan *)(uintptr_t)entry->heads;
  return PREFILL_OK;
}

prefill_status pf_cuda_find_kernel(const pf_call *call,
                                   const pf_cuda_device *device, int kind,
                                   const char *name, pf_cuda_kernel *kernel) {
  const prefill_attention_desc *desc = call->desc;
  const prefill_cuda_image *image = NULL;
  char known[128] = "";
  size_t used = 0;
  for (int64_t i = 0; i < desc->cuda_image_count && !image; ++i) {
    const prefill_cuda_image *candidate = desc->cuda_images[i];
    if (candidate->kind != kind)
      continue;
    if (runs_on(candidate, device->arch))
      image = candidate;
    if (used + 24 < sizeof(known))
      used += (size_t)snprintf(
          known + used, sizeof(known) - used, "%ssm_%d%s%s", used ? ", " : "",
          (int)candidate->arch, candidate->exact_arch ? "a" : "",
          candidate->format == PREFILL_CUDA_PTX ? " as PTX" : "");
  }
  if (!image && !used)
    return pf_fail(call, PREFILL_UNSUPPORTED,
                   "has no code for GPUs (the manifest says why); compile the "
                   "model with -target=cpu,sm_%d, or give it CPU tensors",
                   (int)device->arch);
  if (!image)
    return pf_fail(call, PREFILL_UNSUPPORTED,
                   "has no code for this GPU, sm_%d, only for %s; compile the "
                   "model with -target=cpu,sm_%d",
                   (int)device->arch, known, (int)device->arch);
  if (!name)
    name = image->function;
  const loaded *entry = find(device, image, name);
  prefill_status status = PREFILL_OK;
  if (!entry) {
    pthread_mutex_lock(&mutex);
    entry = find(device, image, name);
    if (!entry)
      status = load(call, device, image, name, &entry);
    pthread_mutex_unlock(&mutex);
    if (status)
      return status;
  }
  kernel->image = image;
  kernel->function = entry->function;
  return PREFILL_OK;
}
