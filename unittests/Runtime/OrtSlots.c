/*===- OrtSlots.c - Where functions lie in ONNX Runtime's table ---*- C -*-===*\
|*
|* A custom op that calls the function which gives a GPU's stream, and the two
|* beside it, whose results show what they are: test_ort_custom_op.py runs it on
|* a CPU. There the stream is NULL.
|*
\*===----------------------------------------------------------------------===*/
#include "ort_op.h"
#include <string.h>

#define ORT_TYPES_MemoryInfoGetName (const void *, const char **)
ORT_FUNCTION(OrtStatus *, MemoryInfoGetName, 71,
             (const OrtApi *api, const void *info, const char **out),
             (info, out))
#define ORT_TYPES_HasValue (const OrtValue *, int *)
ORT_FUNCTION(OrtStatus *, HasValue, 192,
             (const OrtApi *api, const OrtValue *value, int *out), (value, out))
#define ORT_TYPES_GetTensorMemoryInfo (const OrtValue *, const void **)
ORT_FUNCTION(OrtStatus *, GetTensorMemoryInfo, 194,
             (const OrtApi *api, const OrtValue *value, const void **out),
             (value, out))

static const OrtApi *api;

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *table,
                         const OrtKernelInfo *info, void **out) {
  (void)op;
  (void)info;
  api = table;
  *out = malloc(1);
  return NULL;
}

/* int64[3]: the input has a value, the stream is NULL, the input is on a CPU.
 */
static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  (void)kernel;
  const OrtValue *input = NULL;
  TRY(ort_KernelContext_GetInput(api, context, 0, &input));
  const int64_t count = 3;
  OrtValue *output = NULL;
  TRY(ort_KernelContext_GetOutput(api, context, 0, &count, 1, &output));
  void *data = NULL;
  TRY(ort_GetTensorMutableData(api, output, &data));
  int has_value = 0;
  void *stream = &has_value;
  const void *memory = NULL;
  const char *name = "";
  TRY(ort_HasValue(api, input, &has_value));
  TRY(ort_KernelContext_GetGPUComputeStream(api, context, &stream));
  TRY(ort_GetTensorMemoryInfo(api, input, &memory));
  TRY(ort_MemoryInfoGetName(api, memory, &name));
  const int64_t found[] = {has_value, stream == NULL, strcmp(name, "Cpu") == 0};
  memcpy(data, found, sizeof(found));
  return NULL;
}

static const char *get_name(const OrtCustomOp *op) {
  (void)op;
  return "Slots";
}
static const char *get_provider(const OrtCustomOp *op) {
  (void)op;
  return NULL; /* the CPU */
}
static size_t get_count(const OrtCustomOp *op) {
  (void)op;
  return 1;
}
static int get_input_type(const OrtCustomOp *op, size_t index) {
  (void)op;
  (void)index;
  return ONNX_FLOAT;
}
static int get_output_type(const OrtCustomOp *op, size_t index) {
  (void)op;
  (void)index;
  return ONNX_INT64;
}
static int get_zero(const OrtCustomOp *op, size_t index) {
  (void)op;
  (void)index;
  return 0; /* required; where the provider has it */
}

OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                             const OrtApiBase *base);
OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                             const OrtApiBase *base) {
  static OrtCustomOp op;
  op = pf_ort_op();
  op.GetName = get_name;
  op.GetExecutionProviderType = get_provider;
  op.GetInputType = get_input_type;
  op.GetInputTypeCount = get_count;
  op.GetOutputType = get_output_type;
  op.GetOutputTypeCount = get_count;
  op.GetInputCharacteristic = get_zero;
  op.GetOutputCharacteristic = get_zero;
  op.GetInputMemoryType = get_zero;
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  const OrtApi *table = base->GetApi(ORT_API_VERSION_USED);
  OrtCustomOpDomain *domain = NULL;
  TRY(ort_CreateCustomOpDomain(table, "prefill.test", &domain));
  TRY(ort_CustomOpDomain_Add(table, domain, &op));
  return ort_AddCustomOpDomain(table, options, domain);
}
