/*===- ort_op.h - What the ops of the plug-in have in common ------*- C -*-===*\
|*
|* The functions of an OrtCustomOp that say the same for every op of the domain
|* `prefill.opt`. The others are set by the op's own file.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_SRC_ORT_OP_H
#define PREFILL_SRC_ORT_OP_H

#include "ort_abi.h"
#include <stdlib.h>

/* Returns the status of a call that has one. */
#define TRY(call)                                                              \
  do {                                                                         \
    OrtStatus *try_status = (call);                                            \
    if (try_status)                                                            \
      return try_status;                                                       \
  } while (0)

static inline int pf_ort_zero(const OrtCustomOp *op) {
  (void)op;
  return 0;
}
static inline int pf_ort_version(const OrtCustomOp *op) {
  (void)op;
  return 1;
}

/* Never called when the V2 functions are there, but ONNX Runtime may look. */
static inline void *pf_ort_create_v1(const OrtCustomOp *op, const OrtApi *api,
                                     const OrtKernelInfo *info) {
  (void)op;
  (void)api;
  (void)info;
  return NULL;
}
static inline void pf_ort_compute_v1(void *kernel, OrtKernelContext *context) {
  (void)kernel;
  (void)context;
}

/* Version 1 of an op without variadic slots, whose kernels are one block of
 * memory; its schema, CreateKernelV2 and KernelComputeV2 are the caller's. */
static inline OrtCustomOp pf_ort_op(void) {
  return (OrtCustomOp){.version = ORT_API_VERSION_USED,
                       .CreateKernel = pf_ort_create_v1,
                       .KernelCompute = pf_ort_compute_v1,
                       .KernelDestroy = free,
                       .GetVariadicInputMinArity = pf_ort_zero,
                       .GetVariadicInputHomogeneity = pf_ort_zero,
                       .GetVariadicOutputMinArity = pf_ort_zero,
                       .GetVariadicOutputHomogeneity = pf_ort_zero,
                       .GetStartVersion = pf_ort_version,
                       .GetEndVersion = pf_ort_version};
}

#endif
