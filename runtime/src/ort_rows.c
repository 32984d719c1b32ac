/*===- ort_rows.c - Ops on rows for ONNX Runtime ------------------*- C -*-===*\
|*
|* What token pruning needs in a graph besides ordinary operators (domain
|* prefill.opt, version 1; optional inputs in []):
|*
|*   ProtectRows(ids int64 [b, n], [given bool [b, n]], [alive int64 [b, n]],
|*               [starts int64 [segments + 1]], [wanted int64 [m]],
|*               [only bool [b, n]], [parts int64 [segments, 2]])
|*     -> protect bool [b, n]: rows that are never dropped. String attributes
|*     bos, last (numbers), ids, rows ("a-b,c-d").
|*   SelectRows(score float [b, n], protect bool [b, n], [alive], [starts],
|*              [peak float [b, n]], [columns bool [b, n]],
|*              [shares float [b, n]])
|*     -> rows int64 [b, m] ascending, starts int64 [segments + 1]. String
|*     attributes keep: millionths of a segment's rows; topk: at most so many,
|*     and all where there are no more; round: "down". With columns instead
|*     global, individual: in 10^-12, batch 1, without starts. With shares
|*     instead target, left, skip, without alive and starts. With columns and
|*     target: so many of the columns, with what is protected.
|*   FlowScore, MergeWindows: see ort_vision.c.
|*   FindRows(rows int64 [b, m], count int64 [1], wanted int64)
|*     -> index int64, of wanted's shape.
|*
|* See rows.h for the rules.
|*
\*===----------------------------------------------------------------------===*/
#include "ort_rows.h"
#include "ort_row_op.h"
#include "rows.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*===-- attributes -------------------------------------------------------===*/

static void read_text(const OrtApi *api, const OrtKernelInfo *info,
                      const char *name, char *text, size_t capacity) {
  size_t size = capacity;
  OrtStatus *status =
      ort_KernelInfoGetAttribute_string(api, info, name, text, &size);
  if (status) {
    ort_ReleaseStatus(api, status);
    size = 0;
  }
  text[size < capacity ? size : capacity - 1] = '\0';
}

static int64_t read_number(const OrtApi *api, const OrtKernelInfo *info,
                           const char *name) {
  char text[32];
  read_text(api, info, name, text, sizeof(text));
  return strtoll(text, NULL, 10);
}

/* A float from its bits. */
static float read_float(const OrtApi *api, const OrtKernelInfo *info,
                        const char *name) {
  const uint32_t bits = (uint32_t)read_number(api, info, name);
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

/* "a-b,c-d" into range; returns their number. */
static int64_t read_ranges(const OrtApi *api, const OrtKernelInfo *info,
                           const char *name, int64_t range[][2]) {
  char text[MAX_RANGES * 44];
  read_text(api, info, name, text, sizeof(text));
  int64_t count = 0;
  for (char *at = text; *at && count < MAX_RANGES; ++count) {
    range[count][0] = range[count][1] = strtoll(at, &at, 10);
    if (*at == '-')
      range[count][1] = strtoll(at + 1, &at, 10);
    if (*at != ',')
      return count + 1;
    ++at;
  }
  return count;
}

/*===-- the set of rows -------------------------------------------------===*/

/* The rows that `like` [b, n] has, with the inputs `alive`, `starts`, `parts`.
 * *owned: bytes of `alive`, to be freed. */
static OrtStatus *read_rows(const row_op *op, const view *like,
                            const view *alive, const view *starts,
                            const view *parts, pf_row_set *rows,
                            uint8_t **owned) {
  *owned = NULL;
  if (like->rank != 2)
    return refuse(op, "expected [batch, rows]");
  *rows = (pf_row_set){.b = like->shape[0], .n = like->shape[1], .segments = 1};
  if (starts->data) {
    if (starts->rank != 1 || starts->count < 1)
      return refuse(op, "expected segment starts [segments + 1]");
    rows->starts = starts->data;
    rows->segments = starts->count - 1;
  }
  if (parts->data) {
    if (parts->rank != 2 || parts->count != 2 * rows->segments || alive->data)
      return refuse(op, "expected parts [segments, 2], and no padding");
    rows->parts = parts->data;
  }
  pf_row_error error;
  if (!pf_check_row_set(rows, &error))
    return refuse(op, error.text);
  if (!alive->data)
    return NULL;
  if (alive->count != like->count)
    return refuse(op, "the mask of keys has not one entry for every row");
  if (!(*owned = malloc((size_t)like->count + 1)))
    return refuse(op, "out of memory");
  for (int64_t i = 0; i < like->count; ++i)
    (*owned)[i] = ((const int64_t *)alive->data)[i] != 0;
  rows->alive = *owned;
  return NULL;
}

/*===-- the ops ----------------------------------------------------------===*/

static OrtStatus *run_protect(const row_kernel *kernel,
                              OrtKernelContext *context) {
  const row_op *op = kernel->op;
  view in[MAX_INPUTS];
  TRY(read_inputs(op, context, in));
  pf_row_set rows;
  uint8_t *owned;
  TRY(read_rows(op, &in[0], &in[2], &in[3], &in[6], &rows, &owned));
  uint8_t *protect;
  OrtStatus *status =
      make_output(op, context, 0, in[0].shape, 2, (void **)&protect);
  pf_row_error error;
  if (!status && in[1].data && in[1].count != in[0].count)
    status = refuse(op, "the input of protected rows has not one entry for "
                        "every row");
  if (!status) {
    if (in[1].data)
      memcpy(protect, in[1].data, (size_t)in[0].count);
    else
      memset(protect, 0, (size_t)in[0].count);
    pf_protect_ends(&rows, kernel->bos, kernel->last, protect);
    pf_protect_ids(&rows, in[0].data, kernel->ids, kernel->id_count, protect);
    pf_protect_rows(&rows, kernel->rows, kernel->row_count, protect);
    if (in[4].data &&
        !pf_protect_wanted(&rows, in[4].data, in[4].count, protect, &error))
      status = refuse(op, error.text);
  }
  if (!status && in[5].data && in[5].count != in[0].count)
    status = refuse(op, "the input of vision rows has not one entry for every "
                        "row");
  for (int64_t i = 0; !status && in[5].data && i < in[0].count; ++i)
    protect[i] |= !((const uint8_t *)in[5].data)[i];
  free(owned);
  return status;
}

static OrtStatus *write_rows(const row_op *op, OrtKernelContext *context,
                             const pf_row_set *rows, const uint8_t *kept,
                             int64_t count, const int64_t *segment_count) {
  const int64_t dims[2] = {rows->b, count};
  const int64_t ends[1] = {rows->segments + 1};
  int64_t *out, *starts;
  TRY(make_output(op, context, 0, dims, 2, (void **)&out));
  TRY(make_output(op, context, 1, ends, 1, (void **)&starts));
  for (int64_t i = 0; out && i < rows->b * rows->n; ++i)
    if (kept[i])
      *out++ = i % rows->n;
  if (starts) {
    starts[0] = 0;
    for (int64_t i = 0; i < rows->segments; ++i)
      starts[i + 1] = starts[i] + segment_count[i];
  }
  return NULL;
}

static OrtStatus *run_select(const row_kernel *kernel,
                             OrtKernelContext *context) {
  const row_op *op = kernel->op;
  view in[MAX_INPUTS];
  TRY(read_inputs(op, context, in));
  pf_row_set rows;
  uint8_t *owned;
  if (in[1].count != in[0].count)
    return refuse(op, "expected a score and a protection for every row");
  if (in[4].data && in[0].rank == 2 && in[0].shape[0] != 1) {
    char text[160];
    snprintf(text, sizeof(text),
             "thresholds leave another number of rows in every prompt: "
             "expected a batch of 1, got %lld; run them one by one",
             (long long)in[0].shape[0]);
    return refuse(op, text);
  }
  if ((in[4].data && (in[4].count != in[0].count || !in[5].data)) ||
      (in[5].data && (in[5].count != in[0].count || in[3].data)))
    return refuse(op, "expected a peak and a column for every row, and no "
                      "segments");
  if (in[6].data && (in[6].count != in[0].count || in[2].data || in[3].data ||
                     in[0].rank != 2 || in[0].shape[1] < kernel->skip))
    return refuse(op, "expected a share for every row, and no padding");
  const view whole = {.data = NULL};
  TRY(read_rows(op, &in[0], &in[2], &in[3], &whole, &rows, &owned));
  uint8_t *kept = malloc((size_t)in[0].count + 1);
  int64_t *counts = malloc((size_t)(rows.segments + 1) * sizeof(int64_t));
  OrtStatus *status = NULL;
  int64_t count = -1;
  if (kept && counts && in[6].data)
    count = counts[0] =
        pf_keep_patches(&rows, in[0].data, in[6].data, in[1].data,
                        kernel->target, kernel->left, kernel->skip, kept);
  else if (kept && counts && in[5].data && !in[4].data)
    count = counts[0] = pf_keep_columns(&rows, in[0].data, in[5].data,
                                        in[1].data, kernel->target, kept);
  else if (kept && counts && in[5].data)
    count = counts[0] =
        pf_keep_above(&rows, in[0].data, in[4].data, in[5].data, in[1].data,
                      kernel->global, kernel->individual, kept);
  else if (kept && counts)
    count = pf_keep_rows(&rows, in[0].data, in[1].data, &kernel->keep, kept,
                         counts);
  status = count < 0 ? refuse(op, "out of memory")
                     : write_rows(op, context, &rows, kept, count, counts);
  free(counts);
  free(kept);
  free(owned);
  return status;
}

static OrtStatus *run_find(const row_kernel *kernel,
                           OrtKernelContext *context) {
  const row_op *op = kernel->op;
  view in[MAX_INPUTS];
  TRY(read_inputs(op, context, in));
  if (in[0].rank != 2 || in[1].count != 1)
    return refuse(op, "expected rows [batch, rows] and one number");
  int64_t *index;
  TRY(make_output(op, context, 0, in[2].shape, in[2].rank, (void **)&index));
  pf_row_error error;
  if (!pf_find_rows(in[0].data, in[0].shape[0], in[0].shape[1],
                    *(const int64_t *)in[1].data, in[2].data, in[2].count,
                    index, &error))
    return refuse(op, error.text);
  return NULL;
}

/*===-- ONNX Runtime's callbacks -----------------------------------------===*/

static const char *get_name(const OrtCustomOp *op) {
  return ((const row_op *)op)->name;
}
static const char *get_provider(const OrtCustomOp *op) {
  (void)op;
  return "CPUExecutionProvider";
}
static size_t get_input_count(const OrtCustomOp *op) {
  return ((const row_op *)op)->inputs;
}
static int get_input_type(const OrtCustomOp *op, size_t index) {
  return ((const row_op *)op)->input_type[index];
}
static int get_input_characteristic(const OrtCustomOp *op, size_t index) {
  return index < ((const row_op *)op)->required ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int get_memory_type(const OrtCustomOp *op, size_t index) {
  (void)op;
  (void)index;
  return 0;
}
static size_t get_output_count(const OrtCustomOp *op) {
  return ((const row_op *)op)->outputs;
}
static int get_output_type(const OrtCustomOp *op, size_t index) {
  return ((const row_op *)op)->output_type[index];
}
static int get_output_characteristic(const OrtCustomOp *op, size_t index) {
  (void)op;
  return index == 0 ? ORT_REQUIRED : ORT_OPTIONAL;
}

static OrtStatus *create_kernel(const OrtCustomOp *op, const OrtApi *api,
                                const OrtKernelInfo *info, void **out) {
  row_kernel *kernel = calloc(1, sizeof(row_kernel));
  if (!kernel)
    return refuse((const row_op *)op, "out of memory");
  kernel->op = (const row_op *)op;
  kernel->bos = read_number(api, info, "bos");
  kernel->last = read_number(api, info, "last");
  char round[8];
  read_text(api, info, "round", round, sizeof(round));
  kernel->keep = (pf_keep_rule){.ppm = read_number(api, info, "keep"),
                                .down = strcmp(round, "down") == 0,
                                .topk = read_number(api, info, "topk")};
  kernel->global = read_number(api, info, "global");
  kernel->individual = read_number(api, info, "individual");
  kernel->target = read_number(api, info, "target");
  kernel->left = read_number(api, info, "left");
  kernel->skip = read_number(api, info, "skip");
  kernel->heads = read_number(api, info, "heads");
  kernel->kv_heads = read_number(api, info, "kv_heads");
  kernel->dim = read_number(api, info, "dim");
  kernel->cls = read_number(api, info, "cls");
  kernel->rows_first[0] = read_number(api, info, "q");
  kernel->rows_first[1] = read_number(api, info, "k");
  kernel->rows_first[2] = read_number(api, info, "v");
  kernel->rotary = read_number(api, info, "rotary");
  kernel->rotary_dim = read_number(api, info, "rotary_dim");
  kernel->scale = read_float(api, info, "scale");
  kernel->value_scale = read_float(api, info, "value_scale");
  kernel->grid = read_number(api, info, "grid");
  kernel->height = read_number(api, info, "height");
  kernel->width = read_number(api, info, "width");
  kernel->similarity = read_number(api, info, "similarity");
  kernel->id_count = read_ranges(api, info, "ids", kernel->ids);
  kernel->row_count = read_ranges(api, info, "rows", kernel->rows);
  *out = kernel;
  return NULL;
}
static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  return ((const row_kernel *)kernel)->op->run(kernel, context);
}

OrtStatus *pf_add_row_ops(const OrtApi *api, OrtCustomOpDomain *domain) {
  static const row_op ops[] = {
      {.name = "ProtectRows",
       .inputs = 7,
       .required = 1,
       .outputs = 1,
       .input_type = {ONNX_INT64, ONNX_BOOL, ONNX_INT64, ONNX_INT64, ONNX_INT64,
                      ONNX_BOOL, ONNX_INT64},
       .output_type = {ONNX_BOOL},
       .run = run_protect},
      {.name = "SelectRows",
       .inputs = 7,
       .required = 2,
       .outputs = 2,
       .input_type = {ONNX_FLOAT, ONNX_BOOL, ONNX_INT64, ONNX_INT64, ONNX_FLOAT,
                      ONNX_BOOL, ONNX_FLOAT},
       .output_type = {ONNX_INT64, ONNX_INT64},
       .run = run_select},
      {.name = "FlowScore",
       .inputs = 8,
       .required = 3,
       .outputs = 2,
       .input_type = {ONNX_FLOAT, ONNX_FLOAT, ONNX_FLOAT, ONNX_FLOAT, ONNX_BOOL,
                      ONNX_INT64, ONNX_FLOAT, ONNX_FLOAT},
       .output_type = {ONNX_FLOAT, ONNX_FLOAT},
       .run = pf_run_flow},
      {.name = "MergeWindows",
       .inputs = 2,
       .required = 2,
       .outputs = 3,
       .input_type = {ONNX_FLOAT, ONNX_BOOL},
       .output_type = {ONNX_FLOAT, ONNX_INT64, ONNX_INT64},
       .run = pf_run_merge},
      {.name = "FindRows",
       .inputs = 3,
       .required = 3,
       .outputs = 1,
       .input_type = {ONNX_INT64, ONNX_INT64, ONNX_INT64},
       .output_type = {ONNX_INT64},
       .run = run_find},
  };
  for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); ++i) {
    /* Lives as long as the process, as the Attention ops do. */
    row_op *op = malloc(sizeof(row_op));
    if (!op)
      return ort_CreateStatus(api, ORT_FAIL, "prefill.opt: out of memory");
    *op = ops[i];
    op->api = api;
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
    TRY(ort_CustomOpDomain_Add(api, domain, &op->op));
  }
  return NULL;
}
