/*===- flow.c - What flows through the rows of a vision encoder ---*- C -*-===*\
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

/* The anchor's row of head h: row 0, or the mean of all. */
static void load_anchor(const pf_flow *flow, const pf_flow_rows *rows,
                        int64_t h, double *anchor) {
  const int64_t last = flow->cls ? 1 : flow->n;
  memset(anchor, 0, (size_t)flow->d * sizeof(double));
  for (int64_t i = 0; i < last; ++i)
    for (int64_t c = 0; c < flow->d; ++c)
      anchor[c] += (double)row_of(rows, h, i)[c] / (double)last;
}

/* mean[n] += softmax of the anchor's products, divided by the heads. */
static void add_softmax(const pf_flow *flow, const pf_flow_rows *rows,
                        int64_t h, double scale, const double *anchor,
                        double *weight, double *mean) {
  double most = -__builtin_inf(), sum = 0;
  for (int64_t i = 0; i < flow->n; ++i) {
    const float *row = row_of(rows, h, i);
    double product = 0;
    for (int64_t c = 0; c < flow->d; ++c)
      product += anchor[c] * (double)row[c];
    weight[i] = product * scale;
    most = weight[i] > most ? weight[i] : most;
  }
  for (int64_t i = 0; i < flow->n; ++i)
    sum += weight[i] = pf_exponential(weight[i] - most);
  for (int64_t i = 0; i < flow->n; ++i)
    mean[i] += weight[i] / sum / (double)flow->heads;
}

/* Makes the patches' part of mean[n] sum up to 1. */
static void normalise(const pf_flow *flow, double *mean) {
  double sum = 0;
  for (int64_t i = flow->cls; i < flow->n; ++i)
    sum += mean[i];
  for (int64_t i = 0; i < flow->n; ++i)
    mean[i] = i < flow->cls || sum == 0 ? 0 : mean[i] / sum;
}

bool pf_flow_score(const pf_flow *flow, float *score, float *shares) {
  const int64_t n = flow->n, d = flow->d;
  double *memory = calloc((size_t)(3 * n + d + 1), sizeof(double));
  if (!memory)
    return false;
  double *relevance = memory, *semantic = memory + n, *weight = memory + 2 * n;
  double *anchor = memory + 3 * n;
  for (int64_t h = 0; h < flow->heads; ++h) {
    load_anchor(flow, &flow->q, h, anchor);
    add_softmax(flow, &flow->k, h, (double)flow->scale, anchor, weight,
                relevance);
    load_anchor(flow, &flow->v, h, anchor);
    add_softmax(flow, &flow->v, h, 1, anchor, weight, semantic);
  }
  normalise(flow, relevance);
  normalise(flow, semantic);
  for (int64_t i = 0; i < n; ++i) {
    double size = 0;
    for (int64_t c = 0; c < d; ++c) {
      double sum = 0;
      for (int64_t h = 0; h < flow->heads; ++h)
        sum += (double)row_of(&flow->v, h, i)[c];
      size += __builtin_fabs(sum / (double)flow->heads);
    }
    const double before = flow->previous ? (double)flow->previous[i] : 0;
    if (shares)
      shares[i] = (float)relevance[i];
    score[i] = (float)(before / 2 + (relevance[i] + semantic[i]) * size / 2);
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
