/*===- ort_vision.c - Ops on rows of images for ONNX Runtime ------*- C -*-===*\
|*
|* Domain prefill.opt, version 1; optional inputs in []:
|*
|*   FlowScore(q float [b, h, n, d] or [b, n, h, d] or [b, n, h * d], k, v
|*             likewise, [previous float [b, n]], [columns bool [b, n]],
|*             [alive int64 [b, n]], [cos float [n', w] or [b|1, n', w]], [sin])
|*     -> score float [b, n], shares float [b, n]. String attributes heads,
|*     kv_heads, dim, scale, value_scale (the bits of floats), cls; q, k, v: 1
if
|*     rows come before heads; rotary: 1 halves, 2 interleaved, rotary_dim. With
|*     columns the anchor is the last row that is alive.
|*   MergeWindows(x float [b, n, d], protect bool [b, n])
|*     -> y float [b, m, d], rows int64 [b, m], merged int64 [1]. String
|*     attributes grid, height, width, skip; similarity in 10^-6.
|*
|* See flow.h and windows.h for the rules.
|*
\*===----------------------------------------------------------------------===*/
#include "flow.h"
#include "ort_row_op.h"
#include "windows.h"
#include <stdlib.h>

/* Rows of image b of input x, whose shape was checked. */
static pf_flow_rows flow_rows(const row_kernel *kernel, const view *x,
                              int64_t heads, bool rows_first, int64_t n,
                              int64_t b) {
  const float *data = x->data;
  const int64_t width = heads * kernel->dim;
  return (pf_flow_rows){.data = data + b * n * width,
                        .head = rows_first ? kernel->dim : n * kernel->dim,
                        .row = rows_first ? width : kernel->dim};
}

/* Row `last` of the prompt: the last one that is no padding. */
static int64_t last_alive(const int64_t *alive, int64_t n) {
  int64_t last = n - 1;
  while (alive && last > 0 && !alive[last])
    --last;
  return last;
}

/* Whether `table` has a row of `width` for every row of every entry. */
static bool is_table(const view *table, int64_t b, int64_t n, int64_t width) {
  const int64_t *shape = table->shape;
  if (table->rank == 3 && (shape[0] == b || shape[0] == 1))
    ++shape;
  else if (table->rank != 2)
    return false;
  return shape[0] >= n && shape[1] == width;
}

static const float *table_of(const view *table, int64_t b) {
  const float *data = table->data;
  const bool each = table->rank == 3 && table->shape[0] > 1;
  return each ? data + b * table->shape[1] * table->shape[2] : data;
}

/* What is wrong with FlowScore's inputs, or NULL. */
static const char *check_flow(const row_kernel *kernel, const view *in,
                              int64_t b, int64_t n) {
  const int64_t d = kernel->dim;
  for (int i = 0; i < 3; ++i) {
    const int64_t *shape = in[i].shape;
    const int64_t heads = i ? kernel->kv_heads : kernel->heads;
    const bool first = kernel->rows_first[i];
    const bool fits =
        shape[0] == b &&
        (in[i].rank == 3 ? first && shape[1] == n && shape[2] == heads * d
                         : in[i].rank == 4 && shape[first ? 1 : 2] == n &&
                               shape[first ? 2 : 1] == heads && shape[3] == d);
    if (!fits)
      return "q, k and v do not have the shapes that the model was compiled "
             "for";
  }
  if (in[3].data && in[3].count != b * n)
    return "expected a score of the layer before for every row";
  if ((in[4].data && in[4].count != b * n) ||
      (in[5].data && in[5].count != b * n))
    return "expected vision_rows and a mask of padding with an entry for every "
           "row";
  const int64_t width = in[6].data ? in[6].shape[in[6].rank - 1] : 0;
  if (kernel->rotary &&
      (!in[6].data || !in[7].data || in[6].rank < 2 ||
       (width != kernel->rotary_dim && 2 * width != kernel->rotary_dim) ||
       !is_table(&in[6], b, n, width) || !is_table(&in[7], b, n, width)))
    return "the rotary tables do not have a row for every row";
  return NULL;
}

OrtStatus *pf_run_flow(const row_kernel *kernel, OrtKernelContext *context) {
  const row_op *op = kernel->op;
  view in[MAX_INPUTS];
  TRY(read_inputs(op, context, in));
  if (in[0].rank < 3)
    return refuse(op, "expected q of rank 3 or 4");
  const int64_t n = in[0].shape[kernel->rows_first[0] ? 1 : 2];
  const int64_t dims[2] = {in[0].shape[0], n};
  const char *wrong = check_flow(kernel, in, dims[0], n);
  if (wrong)
    return refuse(op, wrong);
  float *score, *shares;
  TRY(make_output(op, context, 0, dims, 2, (void **)&score));
  TRY(make_output(op, context, 1, dims, 2, (void **)&shares));
  if (!score)
    return refuse(op, "expected the first output");
  const int64_t heads = kernel->heads, kv_heads = kernel->kv_heads;
  for (int64_t b = 0; b < dims[0]; ++b) {
    const int64_t *alive =
        in[5].data ? (const int64_t *)in[5].data + b * n : NULL;
    pf_flow flow = {
        .q = flow_rows(kernel, &in[0], heads, kernel->rows_first[0], n, b),
        .k = flow_rows(kernel, &in[1], kv_heads, kernel->rows_first[1], n, b),
        .v = flow_rows(kernel, &in[2], kv_heads, kernel->rows_first[2], n, b),
        .n = n,
        .heads = heads,
        .kv_heads = kv_heads,
        .d = kernel->dim,
        .scale = kernel->scale,
        .value_scale = kernel->value_scale,
        .anchor = in[4].data    ? last_alive(alive, n)
                  : kernel->cls ? 0
                                : -1,
        .cls = kernel->cls,
        .columns = in[4].data ? (const uint8_t *)in[4].data + b * n : NULL,
        .previous = in[3].data ? (const float *)in[3].data + b * n : NULL};
    if (kernel->rotary)
      flow.rotary = (pf_flow_rotary){.cos = table_of(&in[6], b),
                                     .sin = table_of(&in[7], b),
                                     .width = in[6].shape[in[6].rank - 1],
                                     .dim = kernel->rotary_dim,
                                     .interleaved = kernel->rotary == 2};
    if (!pf_flow_score(&flow, score + b * n, shares ? shares + b * n : NULL))
      return refuse(op, "out of memory");
  }
  return NULL;
}

OrtStatus *pf_run_merge(const row_kernel *kernel, OrtKernelContext *context) {
  const row_op *op = kernel->op;
  view in[MAX_INPUTS];
  TRY(read_inputs(op, context, in));
  pf_windows windows = {.x = in[0].data,
                        .protect = in[1].data,
                        .skip = kernel->skip,
                        .grid = kernel->grid,
                        .height = kernel->height,
                        .width = kernel->width,
                        .least = (double)kernel->similarity / 1e6};
  if (in[0].rank != 3 ||
      in[0].shape[1] != windows.skip + windows.grid * windows.grid ||
      in[1].count != in[0].shape[0] * in[0].shape[1])
    return refuse(op, "the number of rows is not that of the grid of patches "
                      "that the model was compiled for");
  windows.b = in[0].shape[0];
  windows.n = in[0].shape[1];
  windows.d = in[0].shape[2];
  const int64_t all = windows.b * pf_window_count(&windows);
  int64_t *order = malloc((size_t)(all + 1) * sizeof(int64_t));
  const int64_t merged = order ? pf_rank_windows(&windows, order) : -1;
  const int64_t left = windows.n - merged * (pf_window_size(&windows) - 1);
  const int64_t shape[3] = {windows.b, left, windows.d}, one[1] = {1};
  float *y = NULL;
  int64_t *rows = NULL, *count = NULL;
  OrtStatus *status = merged < 0
                          ? refuse(op, "out of memory")
                          : make_output(op, context, 0, shape, 3, (void **)&y);
  if (!status)
    status = make_output(op, context, 1, shape, 2, (void **)&rows);
  if (!status)
    status = make_output(op, context, 2, one, 1, (void **)&count);
  if (!status && (!y || !rows))
    status = refuse(op, "expected the first two outputs");
  if (!status && !pf_merge_windows(&windows, order, merged, y, rows))
    status = refuse(op, "out of memory");
  if (!status && count)
    *count = merged;
  free(order);
  return status;
}
