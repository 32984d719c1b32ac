/*===- cuda.h - Kernels on NVIDIA GPUs ----------------------------*- C -*-===*\
|*
|* The runtime reaches GPUs through the NVIDIA driver, libcuda.so.1, loaded when
|* the first CUDA tensor is seen: libraries that never see one need no driver.
|* cuda_driver.c loads it, cuda_modules.c hands code to it, cuda.c checks and
|* launches, cuda_tma.c describes tensors to the unit that copies tiles.
|*
|* NVIDIA's headers are not needed: its C interface is stable, and the part that
|* is used is declared here.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_CUDA_H
#define PREFILL_RUNTIME_CUDA_H

#include "internal.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef int CUresult; /* 0: success */
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;

enum { /* CUdevice_attribute */
       CU_MULTIPROCESSOR_COUNT = 16,
       CU_COMPUTE_CAPABILITY_MAJOR = 75,
       CU_COMPUTE_CAPABILITY_MINOR = 76,
};
enum { CU_FUNC_MAX_DYNAMIC_SHARED_BYTES = 8 }; /* CUfunction_attribute */
enum { CU_JIT_ERROR_LOG = 5, CU_JIT_ERROR_LOG_BYTES = 6 }; /* CUjit_option */

/* CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion; 0 is none of
 * interleaving and, out of bounds, zeros. */
enum { CU_TENSOR_MAP_FLOAT16 = 6, CU_TENSOR_MAP_BFLOAT16 = 9 };
enum { CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum { CU_TENSOR_MAP_L2_PROMOTION_256B = 3 };

/* Functions of the driver, by their names without `cu`. */
typedef struct pf_cuda_driver {
  CUresult (*Init)(unsigned flags);
  CUresult (*GetErrorName)(CUresult code, const char **text);
  CUresult (*GetErrorString)(CUresult code, const char **text);
  CUresult (*CtxGetCurrent)(CUcontext *context);
  CUresult (*CtxGetDevice)(CUdevice *device);
  CUresult (*DeviceGetAttribute)(int *value, int attribute, CUdevice device);
  CUresult (*ModuleLoadDataEx)(CUmodule *module, const void *image,
                               unsigned option_count, int *options,
                               void **values);
  CUresult (*ModuleUnload)(CUmodule module);
  CUresult (*ModuleGetFunction)(CUfunction *function, CUmodule module,
                                const char *name);
  CUresult (*FuncSetAttribute)(CUfunction function, int attribute, int value);
  CUresult (*LaunchKernel)(CUfunction function, unsigned grid_x,
                           unsigned grid_y, unsigned grid_z, unsigned block_x,
                           unsigned block_y, unsigned block_z,
                           unsigned shared_bytes, CUstream stream,
                           void **params, void **extra);
  CUresult (*MemAlloc)(CUdeviceptr *memory, size_t bytes);
  CUresult (*MemFree)(CUdeviceptr memory);
  CUresult (*MemcpyHtoD)(CUdeviceptr to, const void *from, size_t bytes);
  /* May be missing (before CUDA 12, 11.2 and 12): NULL. */
  CUresult (*CtxGetId)(CUcontext context, unsigned long long *id);
  CUresult (*MemAllocAsync)(CUdeviceptr *memory, size_t bytes, CUstream stream);
  CUresult (*MemFreeAsync)(CUdeviceptr memory, CUstream stream);
  /* Also NULL where PREFILL_CUDA_COPIES=cp.async. */
  CUresult (*TensorMapEncodeTiled)(void *map, int type, unsigned rank,
                                   void *data, const uint64_t *dims,
                                   const uint64_t *strides, const unsigned *box,
                                   const unsigned *steps, int interleave,
                                   int swizzle, int promotion, int fill);
  /* Unless PREFILL_CUDA_BLOCKS=tile: a launch may take the persistent kernel.
   */
  bool persistent;
} pf_cuda_driver;

/* The driver, initialised; NULL with the reason in *error (which lives as long
 * as the process). */
const pf_cuda_driver *pf_cuda_load_driver(const char **error);

/* A GPU and its context, current on the calling thread. */
typedef struct pf_cuda_device {
  const pf_cuda_driver *driver;
  CUcontext context;
  unsigned long long id; /* of the context, never used twice where the driver
                            tells (CUDA 12), else its address */
  CUdevice number;
  int32_t arch; /* 10 * major + minor compute capability */
} pf_cuda_device;
/* Finds the calling thread's. */
prefill_status pf_cuda_find_device(const pf_call *call, pf_cuda_device *device);

/* The number of the GPU whose context is current on the thread; 0 without. */
int32_t pf_cuda_current_device(void);

/* `what` failed with `code`: PREFILL_DEVICE_ERROR and a message. */
prefill_status pf_cuda_fail(const pf_call *call, const pf_cuda_driver *driver,
                            const char *what, CUresult code);

/* The call's kernel of a kind for the device, loaded into its context; `name`
 * is the function in modules with several, else NULL. */
typedef struct pf_cuda_kernel {
  const prefill_cuda_image *image;
  CUfunction function;
} pf_cuda_kernel;
/* Loads code once per context and keeps it until the process ends; threads may
 * call it at once. */
prefill_status pf_cuda_find_kernel(const pf_call *call,
                                   const pf_cuda_device *device, int kind,
                                   const char *name, pf_cuda_kernel *kernel);

/* Launches a kernel with its one parameter on the call's stream. `what` is for
 * messages. */
prefill_status pf_cuda_launch(const pf_call *call, const pf_cuda_device *device,
                              const pf_cuda_kernel *kernel, const char *what,
                              int64_t x, int64_t y, int64_t z, void *param);

/* As pf_cuda_launch, with all of the kernel's parameters. */
prefill_status pf_cuda_launch_with(const pf_call *call,
                                   const pf_cuda_device *device,
                                   const pf_cuda_kernel *kernel,
                                   const char *what, int64_t x, int64_t y,
                                   int64_t z, void **params);

/* The library's code of a kind for the device; NULL: it has none. */
const prefill_cuda_image *
pf_cuda_image_of(const pf_call *call, const pf_cuda_device *device, int kind);
/* The plan's heads on the device, copied there once per context. */
prefill_status pf_cuda_find_plan(const pf_call *call,
                                 const pf_cuda_device *device,
                                 const prefill_head_plan **heads);

/*===-- cuda_inputs.c ----------------------------------------------------===*/

/* Workspace of a call, and how its queries are rotated. */
typedef struct pf_cuda_workspace {
  void *memory[8];
  int count;
  pf_cuda_kernel rotate;
  pf_cuda_kernel fill; /* image NULL: rows without keys are right as they are */
} pf_cuda_workspace;
/* count * size bytes on the GPU; on failure *status says so. */
void *pf_cuda_take(const pf_call *call, const pf_cuda_device *device,
                   pf_cuda_workspace *workspace, int64_t count, int64_t size,
                   prefill_status *status);
/* Frees the newest until `keep` are left. */
void pf_cuda_release(const pf_call *call, const pf_cuda_device *device,
                     pf_cuda_workspace *workspace, int keep);

/* A mask of keys as bytes and sinks as float32, and rotated keys: in args,
 * where they are not as they come. Launches what makes them. */
struct prefill_cuda_attention;
prefill_status pf_cuda_prepare_inputs(pf_call *call,
                                      const pf_cuda_device *device,
                                      const DLTensor *const *inputs,
                                      pf_cuda_workspace *workspace,
                                      struct prefill_cuda_attention *args);
/* Rotates the queries of batch entries [b, b + count), whose row 0 is at
 * `position` or as args->positions says, into args->q. */
prefill_status pf_cuda_rotate_queries(const pf_call *call,
                                      const pf_cuda_device *device,
                                      const pf_cuda_workspace *workspace,
                                      const struct prefill_cuda_attention *args,
                                      int64_t position, int64_t b,
                                      int64_t count);

/*===-- cuda_fill.c ------------------------------------------------------===*/

/* If rows may see no key and are to give something else than 0: finds
 * workspace->fill, and gives args a log-sum-exp if it has none. */
prefill_status pf_cuda_prepare_fill(const pf_call *call,
                                    const pf_cuda_device *device,
                                    const DLTensor *const *inputs,
                                    pf_cuda_workspace *workspace,
                                    struct prefill_cuda_attention *args);
/* Launches it, if there is one, behind the attention that args describes, of
 * `count` batch entries. */
prefill_status pf_cuda_fill_rows(const pf_call *call,
                                 const pf_cuda_device *device,
                                 const pf_cuda_workspace *workspace,
                                 const struct prefill_cuda_attention *args,
                                 int64_t count);

/* Launches the attention of a call whose Q is on a GPU; inputs as given. */
prefill_status pf_cuda_run(pf_call *call, const DLTensor *const *inputs,
                           size_t input_count);

/*===-- cuda_sparse.c ----------------------------------------------------===*/

/* How a call with a plan visits less than everything. */
typedef struct pf_cuda_sparse {
  uint32_t patterns; /* of its heads, as bits; 0: the call runs dense */
  pf_cuda_kernel attention;
  const prefill_head_plan *plans; /* on the device */
} pf_cuda_sparse;
prefill_status pf_cuda_prepare_sparse(const pf_call *call,
                                      const pf_cuda_device *device,
                                      pf_cuda_sparse *sparse);
/* Launches what finds the blocks and columns of `count` batch entries, whose
 * pointers and lengths args has, and sets its lists. */
prefill_status pf_cuda_build_lists(const pf_call *call,
                                   const pf_cuda_device *device,
                                   const pf_cuda_sparse *sparse,
                                   pf_cuda_workspace *workspace, int64_t count,
                                   struct prefill_cuda_attention *args);

/*===-- cuda_tma.c -------------------------------------------------------===*/

struct prefill_cuda_tensor_maps;
/* Where the launch that args describes, of `count` batch entries, can copy by
 * TMA, *kernel becomes the kernel for it and *maps its second parameter. Where
 * it cannot, that is no error, and *kernel stays. *blocks becomes the number of
 * thread blocks of a persistent kernel, whose fields of args are set; 0 for
 * others: one a tile of query rows. */
prefill_status pf_cuda_prefer_tma(const pf_call *call,
                                  const pf_cuda_device *device,
                                  struct prefill_cuda_attention *args,
                                  int64_t count, pf_cuda_kernel *kernel,
                                  struct prefill_cuda_tensor_maps *maps,
                                  int64_t *blocks);

#ifdef __cplusplus
}
#endif
#endif
