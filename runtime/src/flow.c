/*===- flow.c - What flows through the rows of an image -----------*- C -*-===*\
|*
|* See flow.h. FlowCut (arXiv:2505.19536).
|*
\*===----------------------------------------------------------------------===*/
#include "flow.h"
#include "internal.h"
#include <stdlib.h>
#include <string.h>

static const float *row_of(const pf_flow_rows *rows, int64_t h, int64_t i) {
  return rows->data + h * rows->head + i * rows->row;
}

/* Row i of head h as it is multiplied: rotated by `rotary`, if that is given.
 */
static void load_row(const pf_flow *flow, const pf_flow_rows *rows,
                     const pf_flow_rotary *rotary, int64_t h, int64_t i,
                     double *out) {
  const float *x = row_of(rows, h, i);
  for (int64_t c = 0; c < flow->d; ++c)
    out[c] = (double)x[c];
  const int64_t half = rotary ? rotary->dim / 2 : 0;
  for (int64_t c = 0; c < half; ++c) {
    const int64_t first = rotary->interleaved ? 2 * c : c;
    const int64_t second = rotary->interleaved ? 2 * c + 1 : c + half;
    const bool wide = rotary->width == rotary->dim;
    const float *cos = rotary->cos + i * rotary->width;
    const float *sin = rotary->sin + i * rotary->width;
    const double a = (double)x[first], b = (double)x[second];
    out[first] =
        a * (double)cos[wide ? first : c] - b * (double)sin[wide ? first : c];
    out[second] =
        b * (double)cos[wide ? second : c] + a * (double)sin[wide ? second : c];
  }
}

/* The anchor's row of head h. */
static void load_anchor(const pf_flow *flow, const pf_flow_rows *rows,
                        const pf_flow_rotary *rotary, int64_t h,
                        double *anchor) {
  if (flow->anchor >= 0) {
    load_row(flow, rows, rotary, h, flow->anchor, anchor);
    return;
  }
  memset(anchor, 0, (size_t)flow->d * sizeof(double));
  for (int64_t i = 0; i < flow->n; ++i)
    for (int64_t c = 0; c < flow->d; ++c)
      anchor[c] += (double)row_of(rows, h, i)[c] / (double)flow->n;
}

/* Whether row i is read. */
static bool is_column(const pf_flow *flow, int64_t i) {
  return !flow->columns || flow->columns[i];
}

/* mean[n] += softmax of the anchor's products with the rows of head h, divided
 * by `heads`. row[d] and weight[n] are scratch memory. */
static void add_softmax(const pf_flow *flow, const pf_flow_rows *rows,
                        const pf_flow_rotary *rotary, int64_t h, double scale,
                        int64_t heads, const double *anchor, double *row,
                        double *weight, double *mean) {
  double most = -__builtin_inf(), sum = 0;
  for (int64_t i = 0; i < flow->n; ++i) {
    if (!is_column(flow, i))
      continue;
    load_row(flow, rows, rotary, h, i, row);
    double product = 0;
    for (int64_t c = 0; c < flow->d; ++c)
      product += anchor[c] * row[c];
    weight[i] = product * scale;
    most = weight[i] > most ? weight[i] : most;
  }
  for (int64_t i = 0; i < flow->n; ++i)
    if (is_column(flow, i))
      sum += weight[i] = pf_exponential(weight[i] - most);
  for (int64_t i = 0; i < flow->n; ++i)
    if (is_column(flow, i))
      mean[i] += weight[i] / sum / (double)heads;
}

/* Makes the patches' part of mean[n] sum up to 1. */
static void normalise(const pf_flow *flow, double *mean) {
  double sum = 0;
  for (int64_t i = flow->cls; i < flow->n; ++i)
    sum += mean[i];
  for (int64_t i = 0; i < flow->n; ++i)
    mean[i] = i < flow->cls || sum == 0 ? 0 : mean[i] / sum;
}

/* The sum of the absolute values of row i's v, averaged over the heads. */
static double size_of(const pf_flow *flow, int64_t i) {
  double size = 0;
  for (int64_t c = 0; c < flow->d; ++c) {
    double sum = 0;
    for (int64_t h = 0; h < flow->kv_heads; ++h)
      sum += (double)row_of(&flow->v, h, i)[c];
    size += __builtin_fabs(sum / (double)flow->kv_heads);
  }
  return size;
}

bool pf_flow_score(const pf_flow *flow, float *score, float *shares) {
  const int64_t n = flow->n, d = flow->d;
  double *memory = calloc((size_t)(3 * n + 2 * d + 1), sizeof(double));
  if (!memory)
    return false;
  double *relevance = memory, *semantic = memory + n, *weight = memory + 2 * n;
  double *anchor = memory + 3 * n, *row = anchor + d;
  const pf_flow_rotary *rotary = flow->rotary.dim ? &flow->rotary : NULL;
  for (int64_t h = 0; h < flow->heads; ++h) {
    load_anchor(flow, &flow->q, rotary, h, anchor);
    add_softmax(flow, &flow->k, rotary, h / (flow->heads / flow->kv_heads),
                (double)flow->scale, flow->heads, anchor, row, weight,
                relevance);
  }
  for (int64_t h = 0; h < flow->kv_heads; ++h) {
    load_anchor(flow, &flow->v, NULL, h, anchor);
    add_softmax(flow, &flow->v, NULL, h, (double)flow->value_scale,
                flow->kv_heads, anchor, row, weight, semantic);
  }
  normalise(flow, relevance);
  normalise(flow, semantic);
  for (int64_t i = 0; i < n; ++i) {
    const double before = flow->previous ? (double)flow->previous[i] : 0;
    const double own = is_column(flow, i)
                           ? (relevance[i] + semantic[i]) * size_of(flow, i)
                           : 0;
    if (shares)
      shares[i] = (float)relevance[i];
    score[i] = (float)(before / 2 + own / 2);
  }
  free(memory);
  return true;
}

int64_t pf_flow_drop(const float *shares, int64_t count, int64_t target,
                     int64_t left) {
  if (count <= target)
    return 0;
  const int64_t most = count - target;
  if (left == 0)
    return most;
  double entropy = 0;
  for (int64_t i = 0; i < count; ++i)
    if (!(shares[i] <= 0)) /* NaN counts */
      entropy -= (double)shares[i] * pf_logarithm((double)shares[i]);
  const double evenness = entropy / pf_logarithm((double)count);
  const double drop =
      (double)most / __builtin_sqrt((double)left) * (1 - evenness * evenness);
  if (!(drop > 0))
    return 0;
  if (drop >= (double)most)
    return most;
  const int64_t whole = (int64_t)drop;
  const double rest = drop - (double)whole;
  return whole + (rest > 0.5 || (rest == 0.5 && whole % 2));
}
