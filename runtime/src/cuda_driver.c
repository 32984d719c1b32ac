/*===- cuda_driver.c - NVIDIA's driver, when it is needed ---------*- C -*-===*/
#include "cuda.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pf_cuda_driver driver;
static char load_error[192];
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Whether a variable of the environment, read once a process, has the first of
 * two values, which is what it is taken for when it is not set. Any other value
 * is an error. */
static bool is_first(const char *name, const char *first, const char *second) {
  const char *value = getenv(name);
  if (!value || !*value || strcmp(value, first) == 0)
    return true;
  if (strcmp(value, second) != 0)
    snprintf(load_error, sizeof(load_error), "%s=%.60s: expected %s or %s",
             name, value, first, second);
  return false;
}

static void load(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char *why = dlerror();
    snprintf(load_error, sizeof(load_error),
             "no NVIDIA driver: libcuda.so.1 cannot be loaded (%.120s)",
             why ? why : "no reason given");
    return;
  }
  /* The header of CUDA 13 maps some names to later versions; these are the ones
   * whose parameters are declared in cuda.h. */
  const struct {
    void **slot;
    const char *name;
  } functions[] = {
      {(void **)&driver.Init, "cuInit"},
      {(void **)&driver.GetErrorName, "cuGetErrorName"},
      {(void **)&driver.GetErrorString, "cuGetErrorString"},
      {(void **)&driver.CtxGetCurrent, "cuCtxGetCurrent"},
      {(void **)&driver.CtxGetDevice, "cuCtxGetDevice"},
      {(void **)&driver.DeviceGetAttribute, "cuDeviceGetAttribute"},
      {(void **)&driver.ModuleLoadDataEx, "cuModuleLoadDataEx"},
      {(void **)&driver.ModuleUnload, "cuModuleUnload"},
      {(void **)&driver.ModuleGetFunction, "cuModuleGetFunction"},
      {(void **)&driver.FuncSetAttribute, "cuFuncSetAttribute"},
      {(void **)&driver.LaunchKernel, "cuLaunchKernel"},
      {(void **)&driver.MemAlloc, "cuMemAlloc_v2"},
      {(void **)&driver.MemFree, "cuMemFree_v2"},
      {(void **)&driver.MemcpyHtoD, "cuMemcpyHtoD_v2"},
  };
  for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); ++i)
    if (!(*functions[i].slot = dlsym(library, functions[i].name))) {
      snprintf(load_error, sizeof(load_error),
               "the NVIDIA driver (libcuda.so.1) lacks %s; one for CUDA 11.4 "
               "or newer is needed",
               functions[i].name);
      return;
    }
  *(void **)&driver.CtxGetId = dlsym(library, "cuCtxGetId");
  *(void **)&driver.MemAllocAsync = dlsym(library, "cuMemAllocAsync");
  *(void **)&driver.MemFreeAsync = dlsym(library, "cuMemFreeAsync");
  /* Which kernel a dense launch takes where there are several. Which is faster
   * has not been measured. */
  driver.persistent = is_first("PREFILL_CUDA_BLOCKS", "persistent", "tile");
  if (is_first("PREFILL_CUDA_COPIES", "tma", "cp.async"))
    *(void **)&driver.TensorMapEncodeTiled =
        dlsym(library, "cuTensorMapEncodeTiled");
  CUresult code = load_error[0] ? 0 : driver.Init(0);
  if (code) {
    const char *name = NULL;
    driver.GetErrorName(code, &name);
    snprintf(load_error, sizeof(load_error),
             "the NVIDIA driver does not start: %s (%d)",
             name ? name : "unknown error", code);
  }
}

const pf_cuda_driver *pf_cuda_load_driver(const char **error) {
  pthread_once(&once, load);
  *error = load_error;
  return load_error[0] ? NULL : &driver;
}

prefill_status pf_cuda_fail(const pf_call *call, const pf_cuda_driver *cuda,
                            const char *what, CUresult code) {
  const char *name = NULL, *text = NULL;
  cuda->GetErrorName(code, &name);
  cuda->GetErrorString(code, &text);
  return pf_fail(call, PREFILL_DEVICE_ERROR, "%s: %s (%d, %.100s)", what,
                 name ? name : "unknown error", code, text ? text : "");
}

int32_t pf_cuda_current_device(void) {
  const char *error;
  const pf_cuda_driver *cuda = pf_cuda_load_driver(&error);
  CUdevice number = 0;
  return cuda && !cuda->CtxGetDevice(&number) ? number : 0;
}

prefill_status pf_cuda_find_device(const pf_call *call,
                                   pf_cuda_device *device) {
  const char *error;
  const pf_cuda_driver *cuda = pf_cuda_load_driver(&error);
  if (!cuda)
    return pf_fail(call, PREFILL_DEVICE_ERROR, "%s", error);
  *device = (pf_cuda_device){.driver = cuda};
  CUresult code;
  if ((code = cuda->CtxGetCurrent(&device->context)))
    return pf_cuda_fail(call, cuda, "cuCtxGetCurrent", code);
  if (!device->context)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "no CUDA context is current on this thread");
  if ((code = cuda->CtxGetDevice(&device->number)))
    return pf_cuda_fail(call, cuda, "cuCtxGetDevice", code);
  int major = 0, minor = 0;
  if ((code = cuda->DeviceGetAttribute(&major, CU_COMPUTE_CAPABILITY_MAJOR,
                                       device->number)) ||
      (code = cuda->DeviceGetAttribute(&minor, CU_COMPUTE_CAPABILITY_MINOR,
                                       device->number)))
    return pf_cuda_fail(call, cuda, "cuDeviceGetAttribute", code);
  device->arch = 10 * major + minor;
  if (!cuda->CtxGetId || cuda->CtxGetId(device->context, &device->id))
    device->id = (unsigned long long)(uintptr_t)device->context;
  return PREFILL_OK;
}
