/*===- ort_row_op.h - What ops on rows share ----------------------*- C -*-===*\
|*
|* Attributes, inputs and outputs of the ops that ort_rows.c registers.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_ORT_ROW_OP_H
#define PREFILL_RUNTIME_ORT_ROW_OP_H

#include "ort_op.h"
#include "rows.h"
#include <stdio.h>
#include <string.h>

enum { MAX_RANK = 8, MAX_INPUTS = 8, MAX_RANGES = 64 };

/* One op: its schema, and what it does with the inputs it was given. */
typedef struct row_op row_op;
struct row_kernel;
struct row_op {
  OrtCustomOp op; /* first: ONNX Runtime hands back pointers to it */
  const OrtApi *api;
  const char *name;
  size_t inputs, required, outputs;
  int input_type[MAX_INPUTS], output_type[3];
  OrtStatus *(*run)(const struct row_kernel *kernel, OrtKernelContext *context);
};

/* A node's attributes. */
typedef struct row_kernel {
  const row_op *op;
  int64_t bos, last, global, individual, target, left, skip;
  int64_t heads, kv_heads, dim, cls, rows_first[3], rotary, rotary_dim;
  float scale, value_scale;
  int64_t grid, height, width, similarity;
  pf_keep_rule keep;
  int64_t ids[MAX_RANGES][2], rows[MAX_RANGES][2];
  int64_t id_count, row_count;
} row_kernel;

/* An input: absent when data is NULL. */
typedef struct view {
  const void *data;
  int64_t shape[MAX_RANK], count;
  size_t rank;
} view;

static inline OrtStatus *refuse(const row_op *op, const char *text) {
  char line[256];
  snprintf(line, sizeof(line), "prefill.opt %s: %s", op->name, text);
  return ort_CreateStatus(op->api, ORT_INVALID_ARGUMENT, line);
}

static inline OrtStatus *look(const OrtApi *api, const OrtValue *value,
                              view *out) {
  OrtTensorTypeAndShapeInfo *info;
  TRY(ort_GetTensorTypeAndShape(api, value, &info));
  OrtStatus *status = ort_GetDimensionsCount(api, info, &out->rank);
  if (!status && out->rank > MAX_RANK)
    status = ort_CreateStatus(api, ORT_INVALID_ARGUMENT,
                              "prefill.opt: more than 8 dimensions");
  if (!status)
    status = ort_GetDimensions(api, info, out->shape, out->rank);
  ort_ReleaseTensorTypeAndShapeInfo(api, info);
  if (status)
    return status;
  out->count = 1;
  for (size_t i = 0; i < out->rank; ++i)
    out->count *= out->shape[i];
  void *data;
  static const int64_t nothing[1] = {0};
  TRY(ort_GetTensorMutableData(api, (OrtValue *)value, &data));
  out->data = data ? data : nothing; /* an empty tensor is not an absent one */
  return NULL;
}

static inline OrtStatus *
read_inputs(const row_op *op, OrtKernelContext *context, view in[MAX_INPUTS]) {
  size_t count = 0;
  memset(in, 0, sizeof(view) * MAX_INPUTS);
  TRY(ort_KernelContext_GetInputCount(op->api, context, &count));
  for (size_t i = 0; i < count && i < op->inputs; ++i) {
    const OrtValue *value = NULL;
    TRY(ort_KernelContext_GetInput(op->api, context, i, &value));
    if (value)
      TRY(look(op->api, value, &in[i]));
  }
  return NULL;
}

static inline OrtStatus *make_output(const row_op *op,
                                     OrtKernelContext *context, size_t index,
                                     const int64_t *dims, size_t rank,
                                     void **data) {
  OrtValue *value = NULL;
  *data = NULL;
  TRY(ort_KernelContext_GetOutput(op->api, context, index, dims, rank, &value));
  return value ? ort_GetTensorMutableData(op->api, value, data) : NULL;
}

/* ort_vision.c */
OrtStatus *pf_run_flow(const row_kernel *kernel, OrtKernelContext *context);
OrtStatus *pf_run_merge(const row_kernel *kernel, OrtKernelContext *context);

#endif
