/*===- ort_custom_op.c - The library as an ONNX Runtime plug-in ---*- C -*-===*\
|*
|* RegisterCustomOps adds the domain `prefill.opt`: the ops of ort_rows.c and
|*
|*   Attention (version 1), string attribute `kernel`: a kernel of this library,
|*   string attribute `digest`: its prefill_attention_desc::digest in
|*   hexadecimal, or nothing. Kernels of different models have the same names.
|*   Inputs and outputs are the slots of prefill.h in order; Q, K, V and O are
|*   required, the others optional (an omitted one is the empty name in a node).
|*
|* Inputs and outputs stay where ONNX Runtime has them, loops run on the
|* session's threads. A kernel object holds no mutable state: any number of Run
|* calls may be under way.
|*
|* A library with code for GPUs has the op for the CUDA provider, too: sessions
|* with that provider take it, and give it tensors on the GPU and a stream.
|*
\*===----------------------------------------------------------------------===*/
#include "cuda.h"
#include "internal.h"
#include "ort_op.h"
#include "ort_rows.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 8 };

/* The op that a session's options refer to, with the table of its ONNX
 * Runtime. */
typedef struct attention_op {
  OrtCustomOp op; /* first: ONNX Runtime hands back pointers to it */
  const OrtApi *api;
  int type;  /* ONNX's element type of Q, K, V and O */
  bool cuda; /* for the CUDA provider */
} attention_op;

/* One node of a model. */
typedef struct attention_kernel {
  const OrtApi *api;
  const prefill_attention_desc *desc;
  bool cuda;
} attention_kernel;

static const prefill_attention_desc *find_kernel(const char *name) {
  for (int64_t i = 0; i < prefill_model_kernel_count; ++i)
    if (strcmp(prefill_model_kernels[i]->name, name) == 0)
      return prefill_model_kernels[i];
  return NULL;
}

/*===-- schema -----------------------------------------------------------===*/

static const char *get_name(const OrtCustomOp *op) {
  (void)op;
  return "Attention";
}
static const char *get_provider(const OrtCustomOp *op) {
  return ((const attention_op *)op)->cuda ? "CUDAExecutionProvider"
                                          : "CPUExecutionProvider";
}
static size_t get_input_count(const OrtCustomOp *op) {
  (void)op;
  return PREFILL_IN_COUNT;
}
static int get_input_type(const OrtCustomOp *op, size_t index) {
  return index <= PREFILL_IN_V ? ((const attention_op *)op)->type
                               : ONNX_UNDEFINED;
}
static int get_input_characteristic(const OrtCustomOp *op, size_t index) {
  (void)op;
  return index <= PREFILL_IN_V ? ORT_REQUIRED : ORT_OPTIONAL;
}
/* Inputs that cuda.c reads on the host. */
static bool is_read_on_host(size_t index) {
  return index == PREFILL_IN_KV_LENGTHS || index == PREFILL_IN_Q_OFFSET ||
         index == PREFILL_IN_Q_POSITIONS || index == PREFILL_IN_SEGMENT_STARTS;
}
static int get_memory_type(const OrtCustomOp *op, size_t index) {
  return ((const attention_op *)op)->cuda && is_read_on_host(index)
             ? ORT_MEMORY_CPU_INPUT
             : ORT_MEMORY_DEFAULT; /* the provider's */
}
static size_t get_output_count(const OrtCustomOp *op) {
  (void)op;
  return PREFILL_OUT_COUNT;
}
static int get_output_type(const OrtCustomOp *op, size_t index) {
  return index == PREFILL_OUT_O || (index >= PREFILL_OUT_ROTATED_K &&
                                    index <= PREFILL_OUT_PRESENT_V)
             ? ((const attention_op *)op)->type
         : index == PREFILL_OUT_BLOCK_MAP ? ONNX_UINT8
                                          : ONNX_FLOAT;
}
static int get_output_characteristic(const OrtCustomOp *op, size_t index) {
  (void)op;
  return index == PREFILL_OUT_O ? ORT_REQUIRED : ORT_OPTIONAL;
}

/*===-- kernels ----------------------------------------------------------===*/

/* Reads a string attribute; false if the node does not have it. One that does
 * not fit is "". */
static bool read_attribute(const OrtApi *api, const OrtKernelInfo *info,
                           const char *name, char *text, size_t capacity) {
  text[0] = '\0';
  size_t size = 0;
  OrtStatus *status =
      ort_KernelInfoGetAttribute_string(api, info, name, NULL, &size);
  if (!status && size <= capacity)
    status = ort_KernelInfoGetAttribute_string(api, info, name, text, &size);
  if (status)
    ort_ReleaseStatus(api, status);
  text[capacity - 1] = '\0';
  return !status;
}

static OrtStatus *create_kernel(const OrtCustomOp *op, const OrtApi *api,
                                const OrtKernelInfo *info, void **out) {
  char name[256], digest[32], text[256];
  if (!read_attribute(api, info, "kernel", name, sizeof(name)))
    return ort_CreateStatus(
        api, ORT_INVALID_ARGUMENT,
        "prefill.opt Attention: the attribute 'kernel' is missing");
  const prefill_attention_desc *desc = find_kernel(name);
  if (!desc) {
    snprintf(text, sizeof(text),
             "prefill.opt Attention: kernel '%.64s' is not in this library, "
             "which has %lld; model and library must come from the same run "
             "of prefill-opt",
             name, (long long)prefill_model_kernel_count);
    return ort_CreateStatus(api, ORT_INVALID_ARGUMENT, text);
  }
  if (read_attribute(api, info, "digest", digest, sizeof(digest)) &&
      strtoull(digest, NULL, 16) != desc->digest) {
    snprintf(text, sizeof(text),
             "prefill.opt Attention: kernel '%.64s' of this library is not the "
             "one that the model was compiled with; model and library must "
             "come from the same run of prefill-opt",
             name);
    return ort_CreateStatus(api, ORT_INVALID_ARGUMENT, text);
  }
  attention_kernel *kernel = malloc(sizeof(attention_kernel));
  if (!kernel)
    return ort_CreateStatus(api, ORT_FAIL,
                            "prefill.opt Attention: out of memory");
  kernel->api = api;
  kernel->desc = desc;
  kernel->cuda = ((const attention_op *)op)->cuda;
  *out = kernel;
  return NULL;
}

static DLDataType to_dl_type(int onnx_type) {
  switch (onnx_type) {
  case ONNX_FLOAT:
    return (DLDataType){kDLFloat, 32, 1};
  case ONNX_FLOAT16:
    return (DLDataType){kDLFloat, 16, 1};
  case ONNX_BFLOAT16:
    return (DLDataType){kDLBfloat, 16, 1};
  case ONNX_DOUBLE:
    return (DLDataType){kDLFloat, 64, 1};
  case ONNX_BOOL:
    return (DLDataType){PF_DL_BOOL, 8, 1};
  case ONNX_UINT8:
    return (DLDataType){kDLUInt, 8, 1};
  case ONNX_INT8:
    return (DLDataType){kDLInt, 8, 1};
  case ONNX_UINT16:
    return (DLDataType){kDLUInt, 16, 1};
  case ONNX_INT16:
    return (DLDataType){kDLInt, 16, 1};
  case ONNX_INT32:
    return (DLDataType){kDLInt, 32, 1};
  case ONNX_INT64:
    return (DLDataType){kDLInt, 64, 1};
  default: /* refused by the checks */
    return (DLDataType){kDLOpaqueHandle, 8, 1};
  }
}

/* A DLTensor and the shape it points at. */
typedef struct tensor {
  DLTensor dl;
  int64_t shape[MAX_RANK];
} tensor;

/* Describes an OrtValue; copies nothing but the shape. */
static OrtStatus *describe(const OrtApi *api, const OrtValue *value,
                           DLDevice device, tensor *out) {
  OrtTensorTypeAndShapeInfo *info;
  TRY(ort_GetTensorTypeAndShape(api, value, &info));
  size_t rank = 0;
  int type = 0;
  OrtStatus *status = ort_GetDimensionsCount(api, info, &rank);
  if (!status && rank > MAX_RANK)
    status = ort_CreateStatus(api, ORT_INVALID_ARGUMENT,
                              "prefill.opt Attention: a tensor has more than "
                              "8 dimensions");
  if (!status)
    status = ort_GetDimensions(api, info, out->shape, rank);
  if (!status)
    status = ort_GetTensorElementType(api, info, &type);
  ort_ReleaseTensorTypeAndShapeInfo(api, info);
  if (status)
    return status;
  out->dl = (DLTensor){.device = device,
                       .ndim = (int32_t)rank,
                       .dtype = to_dl_type(type),
                       .shape = out->shape};
  return ort_GetTensorMutableData(api, (OrtValue *)value, &out->dl.data);
}

/* Dimension of the rows of a Q, K or V, by rank and layout. */
static int row_dimension(int32_t layout) {
  return layout == PREFILL_BSHD ? 1 : 2;
}

/* Shape of an output; batch, rows, keys and rows of the cache are -1 where
 * unknown. Returns the rank and tells where batch and rows are. */
static size_t output_shape(const prefill_attention_desc *desc, size_t index,
                           int64_t batch, int64_t rows, int64_t keys,
                           int64_t cached, int64_t dims[4], size_t *row_dim) {
  dims[0] = batch;
  dims[1] = desc->q_heads;
  *row_dim = 2;
  switch (index) {
  case PREFILL_OUT_O:
    if (desc->o_layout == PREFILL_BHSD) {
      dims[2] = rows;
      dims[3] = desc->v_head_dim;
      return 4;
    }
    *row_dim = 1;
    dims[1] = rows;
    dims[2] = desc->o_rank == 3 ? (int64_t)desc->q_heads * desc->v_head_dim
                                : desc->q_heads;
    dims[3] = desc->v_head_dim;
    return desc->o_rank == 3 ? 3 : 4;
  case PREFILL_OUT_LSE:
    dims[2] = rows;
    return 3;
  case PREFILL_OUT_DENSITY:
    return 2;
  case PREFILL_OUT_TOKEN_SCORE:
  case PREFILL_OUT_TOKEN_PEAK:
    dims[1] = keys;
    return 2;
  case PREFILL_OUT_ROTATED_K:
    dims[1] = desc->kv_heads;
    dims[2] = keys;
    dims[3] = desc->head_dim;
    return 4;
  case PREFILL_OUT_PRESENT_K:
  case PREFILL_OUT_PRESENT_V:
    dims[1] = desc->kv_heads;
    dims[2] = cached;
    dims[3] =
        index == PREFILL_OUT_PRESENT_K ? desc->head_dim : desc->v_head_dim;
    return 4;
  default:
    dims[2] = rows < 0 ? -1 : pf_ceil_div(rows, desc->block_q);
    dims[3] = keys < 0 ? -1 : pf_ceil_div(keys, desc->block_k);
    return 4;
  }
}

/* prefill_context::parallel_for on the session's pool. */
typedef struct host {
  const OrtApi *api;
  OrtKernelContext *context;
} host;
static void parallel_for(void *opaque, size_t count,
                         void (*body)(void *data, size_t i), void *data) {
  const host *h = opaque;
  OrtStatus *status =
      ort_KernelContext_ParallelFor(h->api, h->context, body, count, 0, data);
  if (status) {
    /* Refused before it began. Bodies pick their work from a counter, so to
     * run them (again) is right in any case. */
    ort_ReleaseStatus(h->api, status);
    for (size_t i = 0; i < count; ++i)
      body(data, i);
  }
}

static OrtStatus *compute(void *opaque, OrtKernelContext *context) {
  const attention_kernel *kernel = opaque;
  const OrtApi *api = kernel->api;
  const prefill_attention_desc *desc = kernel->desc;
  tensor in[PREFILL_IN_COUNT], out[PREFILL_OUT_COUNT];
  const DLTensor *inputs[PREFILL_IN_COUNT] = {NULL};
  DLTensor *outputs[PREFILL_OUT_COUNT] = {NULL};
  size_t input_count = 0, output_count = 0;
  TRY(ort_KernelContext_GetInputCount(api, context, &input_count));
  TRY(ort_KernelContext_GetOutputCount(api, context, &output_count));
  const DLDevice cpu = {kDLCPU, 0};
  const DLDevice device =
      kernel->cuda ? (DLDevice){kDLCUDA, pf_cuda_current_device()} : cpu;
  for (size_t i = 0; i < input_count && i < PREFILL_IN_COUNT; ++i) {
    const OrtValue *value = NULL;
    TRY(ort_KernelContext_GetInput(api, context, i, &value));
    if (!value)
      continue;
    TRY(describe(api, value, is_read_on_host(i) ? cpu : device, &in[i]));
    inputs[i] = &in[i].dl;
  }

  /* Outputs are allocated before the checks: as far as Q and K make sense. */
  const DLTensor *q = inputs[PREFILL_IN_Q], *k = inputs[PREFILL_IN_K];
  const int q_rows = row_dimension(desc->q_layout);
  const int k_rows = row_dimension(desc->k_layout);
  if (!q || !k || q->ndim <= q_rows || k->ndim <= k_rows) {
    char text[192];
    snprintf(text, sizeof(text),
             "kernel '%.64s': inputs Q and K: expected rank 3 or 4",
             desc->name);
    return ort_CreateStatus(api, ORT_INVALID_ARGUMENT, text);
  }
  for (size_t i = 0; i < output_count && i < PREFILL_OUT_COUNT; ++i) {
    int64_t dims[4];
    size_t row_dim;
    const DLTensor *past = inputs[PREFILL_IN_PAST_K];
    size_t rank = output_shape(
        desc, i, q->shape[0], q->shape[q_rows], k->shape[k_rows],
        past && past->ndim == 4 ? past->shape[2] : 0, dims, &row_dim);
    OrtValue *value = NULL;
    TRY(ort_KernelContext_GetOutput(api, context, i, dims, rank, &value));
    if (!value) /* omitted */
      continue;
    TRY(describe(api, value, device, &out[i]));
    outputs[i] = &out[i].dl;
  }

  host h = {.api = api, .context = context};
  prefill_context call = {.struct_size = sizeof(prefill_context),
                          .host = &h,
                          .parallel_for = parallel_for};
  if (kernel->cuda)
    TRY(ort_KernelContext_GetGPUComputeStream(api, context, &call.stream));
  prefill_status status = prefill_attention(
      desc, &call, inputs, PREFILL_IN_COUNT, outputs, PREFILL_OUT_COUNT);
  if (status)
    return ort_CreateStatus(api,
                            status == PREFILL_OUT_OF_MEMORY ||
                                    status == PREFILL_UNSUPPORTED ||
                                    status == PREFILL_DEVICE_ERROR
                                ? ORT_FAIL
                                : ORT_INVALID_ARGUMENT,
                            call.message);
  return NULL;
}

/*===-- shape inference --------------------------------------------------===*/

/* The string attribute `key`, or "" when there is none. */
static void string_attribute(const OrtApi *api, OrtShapeInferContext *context,
                             const char *key, char *text, size_t capacity) {
  size_t size = 0;
  const OrtOpAttr *attribute = NULL;
  OrtStatus *status =
      ort_ShapeInferContext_GetAttribute(api, context, key, &attribute);
  if (!status)
    status = ort_ReadOpAttr(api, attribute, ORT_OP_ATTRIBUTE_STRING, text,
                            capacity - 1, &size);
  text[status ? 0 : size < capacity ? size : capacity - 1] = '\0';
  if (status)
    ort_ReleaseStatus(api, status);
}

/* Type and shape of O from Q and the kernel; named dimensions keep their names.
 * Unknown ones get a name that no other node has (from the attribute `site`):
 * without one ONNX Runtime would take them for constants of -1.
 * The other outputs keep the schema's types: their number is not known here,
 * and to set one that the node lacks is an error. */
static OrtStatus *infer_shape(const OrtCustomOp *op,
                              OrtShapeInferContext *context) {
  const OrtApi *api = ((const attention_op *)op)->api;
  char name[256], site[64], unknown[2][80];
  string_attribute(api, context, "kernel", name, sizeof(name));
  string_attribute(api, context, "site", site, sizeof(site));
  const prefill_attention_desc *desc = find_kernel(name);
  if (!desc) /* create_kernel says why */
    return NULL;
  snprintf(unknown[0], sizeof(unknown[0]), "prefill_%s_batch", site);
  snprintf(unknown[1], sizeof(unknown[1]), "prefill_%s_rows", site);
  OrtTensorTypeAndShapeInfo *q, *o;
  TRY(ort_ShapeInferContext_GetInputTypeShape(api, context, PREFILL_IN_Q, &q));
  size_t rank;
  int type;
  int64_t q_dims[MAX_RANK];
  const char *q_names[MAX_RANK] = {NULL};
  TRY(ort_GetTensorElementType(api, q, &type));
  TRY(ort_GetDimensionsCount(api, q, &rank));
  const int q_rows = row_dimension(desc->q_layout);
  int64_t batch = -1, rows = -1;
  const char *batch_name = "", *row_name = "";
  if (rank > (size_t)q_rows && rank <= MAX_RANK) {
    TRY(ort_GetDimensions(api, q, q_dims, rank));
    TRY(ort_GetSymbolicDimensions(api, q, q_names, rank));
    batch = q_dims[0];
    rows = q_dims[q_rows];
    if (q_names[0])
      batch_name = q_names[0];
    if (q_names[q_rows])
      row_name = q_names[q_rows];
  }
  if (batch < 0 && !*batch_name)
    batch_name = unknown[0];
  if (rows < 0 && !*row_name)
    row_name = unknown[1];
  int64_t dims[4];
  const char *names[4] = {batch_name, "", "", ""};
  size_t row_dim;
  rank = output_shape(desc, PREFILL_OUT_O, batch, rows, -1, -1, dims, &row_dim);
  names[row_dim] = row_name;
  TRY(ort_CreateTensorTypeAndShapeInfo(api, &o));
  OrtStatus *status;
  if (!(status = ort_SetTensorElementType(api, o, type)) &&
      !(status = ort_SetDimensions(api, o, dims, rank)) &&
      !(status = ort_SetSymbolicDimensions(api, o, names, rank)))
    status = ort_ShapeInferContext_SetOutputTypeShape(api, context,
                                                      PREFILL_OUT_O, o);
  ort_ReleaseTensorTypeAndShapeInfo(api, o);
  return status;
}

/* ONNX Runtime before 1.24 dereferences null in front of an inference function
 * when a node omits an input (seen with 1.17 to 1.23): there, O has a type and
 * no shape until it is computed. */
static bool can_infer_shapes(const char *version) {
  char *end;
  const long major = strtol(version, &end, 10);
  const long minor = *end == '.' ? strtol(end + 1, NULL, 10) : 0;
  return major > 1 || (major == 1 && minor >= 24);
}

/*===-- entry point ------------------------------------------------------===*/

/* ONNX's element type of a kernel's Q, K, V and O. */
static int type_of(const prefill_attention_desc *desc) {
  return desc->dtype == PREFILL_F16    ? ONNX_FLOAT16
         : desc->dtype == PREFILL_BF16 ? ONNX_BFLOAT16
                                       : ONNX_FLOAT;
}

/* Whether a kernel of this library takes `type`. */
static bool has_kernel(int type) {
  for (int64_t i = 0; i < prefill_model_kernel_count; ++i)
    if (type_of(prefill_model_kernels[i]) == type)
      return true;
  return false;
}

/* True if all kernels of a type have code for GPUs: a node whose kernel has
 * none must stay with the CPU, and the provider is chosen by types alone. */
static bool runs_on_gpus(int type) {
  bool any = false;
  for (int64_t i = 0; i < prefill_model_kernel_count; ++i) {
    const prefill_attention_desc *desc = prefill_model_kernels[i];
    if (type_of(desc) != type)
      continue;
    if (!desc->cuda_image_count)
      return false;
    any = true;
  }
  return any;
}

/* Lives as long as the process: sessions refer to it, and nobody tells when the
 * last one is gone. A few hundred bytes per SessionOptions. */
static attention_op *make_op(const OrtApi *api, const OrtApiBase *base,
                             int type, bool cuda) {
  attention_op *op = calloc(1, sizeof(attention_op));
  if (!op)
    return NULL;
  op->api = api;
  op->type = type;
  op->cuda = cuda;
  op->op = pf_ort_op();
  op->op.GetName = get_name;
  op->op.GetExecutionProviderType = get_provider;
  op->op.GetInputType = get_input_type;
  op->op.GetInputTypeCount = get_input_count;
  op->op.GetOutputType = get_output_type;
  op->op.GetOutputTypeCount = get_output_count;
  op->op.GetInputCharacteristic = get_input_characteristic;
  op->op.GetOutputCharacteristic = get_output_characteristic;
  op->op.GetInputMemoryType = get_memory_type;
  op->op.CreateKernelV2 = create_kernel;
  op->op.KernelComputeV2 = compute;
  op->op.InferOutputShapeFn =
      can_infer_shapes(base->GetVersionString()) ? infer_shape : NULL;
  return op;
}

/* What SessionOptions.register_custom_ops_library calls. */
PREFILL_API OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                         const OrtApiBase *base);
OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                             const OrtApiBase *base) {
  const OrtApi *api = base->GetApi(ORT_API_VERSION_USED);
  if (!api) {
    api = base->GetApi(1);
    char text[128];
    snprintf(text, sizeof(text),
             "prefill.opt: needs ONNX Runtime 1.%d or newer, this is %.32s",
             ORT_API_VERSION_USED, base->GetVersionString());
    return api ? ort_CreateStatus(api, ORT_FAIL, text) : NULL;
  }
  OrtCustomOpDomain *domain = NULL;
  OrtStatus *status = ort_CreateCustomOpDomain(api, "prefill.opt", &domain);
  /* One op per element type, all of one name: an output of any type would need
   * exactly one input of any type in ONNX Runtime 1.17. */
  static const int types[] = {ONNX_FLOAT, ONNX_FLOAT16, ONNX_BFLOAT16};
  for (size_t i = 0; !status && i < 2 * sizeof(types) / sizeof(types[0]); ++i) {
    const bool cuda = i % 2;
    /* ONNX Runtime makes a lone fp16 node an fp32 one where it finds a kernel
     * for that, whatever the node's attribute says. */
    if (!(cuda ? runs_on_gpus(types[i / 2]) : has_kernel(types[i / 2])))
      continue;
    attention_op *op = make_op(api, base, types[i / 2], cuda);
    status = op ? ort_CustomOpDomain_Add(api, domain, &op->op)
                : ort_CreateStatus(api, ORT_FAIL, "prefill.opt: out of memory");
  }
  if (!status)
    status = pf_add_row_ops(api, domain);
  if (!status)
    status = ort_AddCustomOpDomain(api, options, domain);
  return status;
}
