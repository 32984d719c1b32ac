/*===- ort_abi.h - The part of ONNX Runtime's C ABI that we use ---*- C -*-===*\
|*
|* ONNX Runtime ships no headers with its packages. Its C interface is one table
|* of functions, OrtApi, to which releases only append; the position of a
|* function never changes (ONNX Runtime asserts that at compile time). So the
|* positions below, all present since API version 17 (ONNX Runtime 1.17), hold
|* for every later release. Declarations here are our own.
|*
|* Functions return NULL for success or an OrtStatus that the caller releases.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_ORT_ABI_H
#define PREFILL_RUNTIME_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION_USED 17
/* Slots of the table that this file names go up to here. */
#define ORT_API_SLOTS 275

typedef struct OrtStatus OrtStatus;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtValue OrtValue;
typedef struct OrtOpAttr OrtOpAttr;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtShapeInferContext OrtShapeInferContext;

typedef struct OrtApi {
  void (*slot[ORT_API_SLOTS])(void);
} OrtApi;
typedef struct OrtApiBase {
  /* NULL if the release is older than the version asked for. */
  const OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} OrtApiBase;

/* ONNX's element types. */
enum {
  ONNX_UNDEFINED = 0, /* in a schema: any type */
  ONNX_FLOAT = 1,
  ONNX_UINT8 = 2,
  ONNX_INT8 = 3,
  ONNX_UINT16 = 4,
  ONNX_INT16 = 5,
  ONNX_INT32 = 6,
  ONNX_INT64 = 7,
  ONNX_BOOL = 9,
  ONNX_FLOAT16 = 10,
  ONNX_DOUBLE = 11,
  ONNX_BFLOAT16 = 16,
};
enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };            /* OrtErrorCode */
enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };                /* characteristic */
enum { ORT_MEMORY_CPU_INPUT = -2, ORT_MEMORY_DEFAULT = 0 }; /* OrtMemType */
enum { ORT_OP_ATTRIBUTE_STRING = 5 };                       /* OrtOpAttrType */

/* A custom op: ONNX Runtime reads the members up to GetEndVersion when version
 * is 17. It keeps the pointer for the life of the sessions. */
typedef struct OrtCustomOp OrtCustomOp;
struct OrtCustomOp {
  uint32_t version;
  void *(*CreateKernel)(const OrtCustomOp *, const OrtApi *,
                        const OrtKernelInfo *);
  const char *(*GetName)(const OrtCustomOp *);
  const char *(*GetExecutionProviderType)(const OrtCustomOp *);
  int (*GetInputType)(const OrtCustomOp *, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp *);
  int (*GetOutputType)(const OrtCustomOp *, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp *);
  void (*KernelCompute)(void *, OrtKernelContext *);
  void (*KernelDestroy)(void *);
  int (*GetInputCharacteristic)(const OrtCustomOp *, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp *, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp *);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
  /* These two replace CreateKernel and KernelCompute. */
  OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, const OrtApi *,
                               const OrtKernelInfo *, void **);
  OrtStatus *(*KernelComputeV2)(void *, OrtKernelContext *);
  OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *, OrtShapeInferContext *);
  int (*GetStartVersion)(const OrtCustomOp *);
  int (*GetEndVersion)(const OrtCustomOp *);
};

/* ort_<Name>(api, arguments...) calls the function in a slot. */
/* NOLINTBEGIN(bugprone-macro-parentheses): types and lists. */
#define ORT_FUNCTION(result, name, number, parameters, arguments)              \
  static inline result ort_##name parameters {                                 \
    return ((result(*) ORT_TYPES_##name)api->slot[number])arguments;           \
  }
/* NOLINTEND(bugprone-macro-parentheses) */

#define ORT_TYPES_CreateStatus (int, const char *)
ORT_FUNCTION(OrtStatus *, CreateStatus, 0,
             (const OrtApi *api, int code, const char *text), (code, text))
#define ORT_TYPES_CreateCustomOpDomain (const char *, OrtCustomOpDomain **)
ORT_FUNCTION(OrtStatus *, CreateCustomOpDomain, 26,
             (const OrtApi *api, const char *name, OrtCustomOpDomain **out),
             (name, out))
#define ORT_TYPES_CustomOpDomain_Add (OrtCustomOpDomain *, const OrtCustomOp *)
ORT_FUNCTION(OrtStatus *, CustomOpDomain_Add, 27,
             (const OrtApi *api, OrtCustomOpDomain *domain,
              const OrtCustomOp *op),
             (domain, op))
#define ORT_TYPES_AddCustomOpDomain (OrtSessionOptions *, OrtCustomOpDomain *)
ORT_FUNCTION(OrtStatus *, AddCustomOpDomain, 28,
             (const OrtApi *api, OrtSessionOptions *options,
              OrtCustomOpDomain *domain),
             (options, domain))
#define ORT_TYPES_GetTensorMutableData (OrtValue *, void **)
ORT_FUNCTION(OrtStatus *, GetTensorMutableData, 51,
             (const OrtApi *api, OrtValue *value, void **out), (value, out))
#define ORT_TYPES_CreateTensorTypeAndShapeInfo (OrtTensorTypeAndShapeInfo **)
ORT_FUNCTION(OrtStatus *, CreateTensorTypeAndShapeInfo, 57,
             (const OrtApi *api, OrtTensorTypeAndShapeInfo **out), (out))
#define ORT_TYPES_SetTensorElementType (OrtTensorTypeAndShapeInfo *, int)
ORT_FUNCTION(OrtStatus *, SetTensorElementType, 58,
             (const OrtApi *api, OrtTensorTypeAndShapeInfo *info, int type),
             (info, type))
#define ORT_TYPES_SetDimensions                                                \
  (OrtTensorTypeAndShapeInfo *, const int64_t *, size_t)
ORT_FUNCTION(OrtStatus *, SetDimensions, 59,
             (const OrtApi *api, OrtTensorTypeAndShapeInfo *info,
              const int64_t *dims, size_t count),
             (info, dims, count))
#define ORT_TYPES_GetTensorElementType                                         \
  (const OrtTensorTypeAndShapeInfo *, int *)
ORT_FUNCTION(OrtStatus *, GetTensorElementType, 60,
             (const OrtApi *api, const OrtTensorTypeAndShapeInfo *info,
              int *out),
             (info, out))
#define ORT_TYPES_GetDimensionsCount                                           \
  (const OrtTensorTypeAndShapeInfo *, size_t *)
ORT_FUNCTION(OrtStatus *, GetDimensionsCount, 61,
             (const OrtApi *api, const OrtTensorTypeAndShapeInfo *info,
              size_t *out),
             (info, out))
#define ORT_TYPES_GetDimensions                                                \
  (const OrtTensorTypeAndShapeInfo *, int64_t *, size_t)
ORT_FUNCTION(OrtStatus *, GetDimensions, 62,
             (const OrtApi *api, const OrtTensorTypeAndShapeInfo *info,
              int64_t *dims, size_t count),
             (info, dims, count))
#define ORT_TYPES_GetSymbolicDimensions                                        \
  (const OrtTensorTypeAndShapeInfo *, const char **, size_t)
ORT_FUNCTION(OrtStatus *, GetSymbolicDimensions, 63,
             (const OrtApi *api, const OrtTensorTypeAndShapeInfo *info,
              const char **names, size_t count),
             (info, names, count))
#define ORT_TYPES_GetTensorTypeAndShape                                        \
  (const OrtValue *, OrtTensorTypeAndShapeInfo **)
ORT_FUNCTION(OrtStatus *, GetTensorTypeAndShape, 65,
             (const OrtApi *api, const OrtValue *value,
              OrtTensorTypeAndShapeInfo **out),
             (value, out))
/* out NULL: *size becomes the size, terminating 0 included. */
#define ORT_TYPES_KernelInfoGetAttribute_string                                \
  (const OrtKernelInfo *, const char *, char *, size_t *)
ORT_FUNCTION(OrtStatus *, KernelInfoGetAttribute_string, 87,
             (const OrtApi *api, const OrtKernelInfo *info, const char *name,
              char *out, size_t *size),
             (info, name, out, size))
#define ORT_TYPES_KernelContext_GetInputCount                                  \
  (const OrtKernelContext *, size_t *)
ORT_FUNCTION(OrtStatus *, KernelContext_GetInputCount, 88,
             (const OrtApi *api, const OrtKernelContext *context, size_t *out),
             (context, out))
#define ORT_TYPES_KernelContext_GetOutputCount                                 \
  (const OrtKernelContext *, size_t *)
ORT_FUNCTION(OrtStatus *, KernelContext_GetOutputCount, 89,
             (const OrtApi *api, const OrtKernelContext *context, size_t *out),
             (context, out))
/* *out is NULL for an omitted input. */
#define ORT_TYPES_KernelContext_GetInput                                       \
  (const OrtKernelContext *, size_t, const OrtValue **)
ORT_FUNCTION(OrtStatus *, KernelContext_GetInput, 90,
             (const OrtApi *api, const OrtKernelContext *context, size_t index,
              const OrtValue **out),
             (context, index, out))
#define ORT_TYPES_KernelContext_GetOutput                                      \
  (OrtKernelContext *, size_t, const int64_t *, size_t, OrtValue **)
ORT_FUNCTION(OrtStatus *, KernelContext_GetOutput, 91,
             (const OrtApi *api, OrtKernelContext *context, size_t index,
              const int64_t *dims, size_t count, OrtValue **out),
             (context, index, dims, count, out))
#define ORT_TYPES_ReleaseStatus (OrtStatus *)
ORT_FUNCTION(void, ReleaseStatus, 93, (const OrtApi *api, OrtStatus *status),
             (status))
#define ORT_TYPES_ReleaseTensorTypeAndShapeInfo (OrtTensorTypeAndShapeInfo *)
ORT_FUNCTION(void, ReleaseTensorTypeAndShapeInfo, 99,
             (const OrtApi *api, OrtTensorTypeAndShapeInfo *info), (info))
/* The stream that a node of the CUDA provider computes on (its cudaStream_t);
 * NULL for the default one, and on CPUs. The second function that version 10 of
 * the table added to version 9's 192. */
#define ORT_TYPES_KernelContext_GetGPUComputeStream                            \
  (const OrtKernelContext *, void **)
ORT_FUNCTION(OrtStatus *, KernelContext_GetGPUComputeStream, 193,
             (const OrtApi *api, const OrtKernelContext *context, void **out),
             (context, out))
#define ORT_TYPES_ShapeInferContext_GetInputTypeShape                          \
  (const OrtShapeInferContext *, size_t, OrtTensorTypeAndShapeInfo **)
/* The result belongs to the context. */
ORT_FUNCTION(OrtStatus *, ShapeInferContext_GetInputTypeShape, 268,
             (const OrtApi *api, const OrtShapeInferContext *context,
              size_t index, OrtTensorTypeAndShapeInfo **out),
             (context, index, out))
#define ORT_TYPES_ShapeInferContext_GetAttribute                               \
  (const OrtShapeInferContext *, const char *, const OrtOpAttr **)
ORT_FUNCTION(OrtStatus *, ShapeInferContext_GetAttribute, 269,
             (const OrtApi *api, const OrtShapeInferContext *context,
              const char *name, const OrtOpAttr **out),
             (context, name, out))
#define ORT_TYPES_ShapeInferContext_SetOutputTypeShape                         \
  (const OrtShapeInferContext *, size_t, const OrtTensorTypeAndShapeInfo *)
ORT_FUNCTION(OrtStatus *, ShapeInferContext_SetOutputTypeShape, 270,
             (const OrtApi *api, const OrtShapeInferContext *context,
              size_t index, const OrtTensorTypeAndShapeInfo *info),
             (context, index, info))
/* The names are copied; "" for none. */
#define ORT_TYPES_SetSymbolicDimensions                                        \
  (OrtTensorTypeAndShapeInfo *, const char **, size_t)
ORT_FUNCTION(OrtStatus *, SetSymbolicDimensions, 271,
             (const OrtApi *api, OrtTensorTypeAndShapeInfo *info,
              const char **names, size_t count),
             (info, names, count))
/* *size: bytes of data, then bytes needed. */
#define ORT_TYPES_ReadOpAttr (const OrtOpAttr *, int, void *, size_t, size_t *)
ORT_FUNCTION(OrtStatus *, ReadOpAttr, 272,
             (const OrtApi *api, const OrtOpAttr *attribute, int type,
              void *data, size_t size, size_t *out),
             (attribute, type, data, size, out))
/* Runs fn(user, i) for i in [0, total) on the session's threads; batches 0:
 * one index at a time. */
#define ORT_TYPES_KernelContext_ParallelFor                                    \
  (const OrtKernelContext *, void (*)(void *, size_t), size_t, size_t, void *)
ORT_FUNCTION(OrtStatus *, KernelContext_ParallelFor, 274,
             (const OrtApi *api, const OrtKernelContext *context,
              void (*fn)(void *, size_t), size_t total, size_t batches,
              void *user),
             (context, fn, total, batches, user))

#endif
