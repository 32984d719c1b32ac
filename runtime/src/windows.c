/*===- windows.c - Windows of alike patches become one row --------*- C -*-===*\
|*
|* See windows.h. MustDrop (arXiv:2411.10803).
|*
\*===----------------------------------------------------------------------===*/
#include "windows.h"
#include <stdlib.h>
#include <string.h>

int64_t pf_window_count(const pf_windows *windows) {
  return windows->grid / windows->height * (windows->grid / windows->width);
}

int64_t pf_window_size(const pf_windows *windows) {
  return windows->height * windows->width;
}

/* The row of patch i of a window. */
static int64_t patch_of(const pf_windows *w, int64_t window, int64_t i) {
  const int64_t across = w->grid / w->width;
  const int64_t row = window / across * w->height + i / w->width;
  const int64_t column = window % across * w->width + i % w->width;
  return w->skip + row * w->grid + column;
}

void pf_window_similarity(const pf_windows *windows, int64_t b,
                          double *similarity, double *sum) {
  const int64_t size = pf_window_size(windows), d = windows->d;
  const float *image = windows->x + b * windows->n * d;
  for (int64_t w = 0; w < pf_window_count(windows); ++w) {
    memset(sum, 0, (size_t)d * sizeof(double));
    /* Of unit vectors u the pairs' products sum up to |sum u|^2 - sum |u|^2. */
    double own = 0, all = 0;
    for (int64_t i = 0; i < size; ++i) {
      const float *x = image + patch_of(windows, w, i) * d;
      double square = 0;
      for (int64_t c = 0; c < d; ++c)
        square += (double)x[c] * (double)x[c];
      const double inverse = square == 0 ? 0 : 1 / __builtin_sqrt(square);
      own += square == 0 ? 0 : square * inverse * inverse;
      for (int64_t c = 0; c < d; ++c)
        sum[c] += (double)x[c] * inverse;
    }
    for (int64_t c = 0; c < d; ++c)
      all += sum[c] * sum[c];
    similarity[w] = (all - own) / (double)(size * (size - 1));
  }
}

/* A window and how much alike its patches are. */
typedef struct ranked {
  double similarity;
  int64_t window;
} ranked;

static int compare(const void *left, const void *right) {
  const ranked *a = left, *b = right;
  if (a->similarity != b->similarity)
    return a->similarity > b->similarity ? -1 : 1;
  return a->window < b->window ? -1 : a->window > b->window;
}

/* Rounding does not keep equal patches from being alike to 1. */
static const double ROUNDING = 1e-9;

static bool is_protected(const pf_windows *w, int64_t b, int64_t window) {
  for (int64_t i = 0; i < pf_window_size(w); ++i)
    if (w->protect[b * w->n + patch_of(w, window, i)])
      return true;
  return false;
}

int64_t pf_rank_windows(const pf_windows *windows, int64_t *order) {
  const int64_t count = pf_window_count(windows);
  double *similarity = malloc((size_t)(count + 1) * sizeof(double));
  double *sum = malloc((size_t)(windows->d + 1) * sizeof(double));
  ranked *list = malloc((size_t)(count + 1) * sizeof(ranked));
  int64_t merged = -1;
  if (similarity && sum && list)
    merged = windows->b ? count : 0;
  for (int64_t b = 0; merged >= 0 && b < windows->b; ++b) {
    pf_window_similarity(windows, b, similarity, sum);
    int64_t alike = 0;
    for (int64_t w = 0; w < count; ++w) {
      const bool merges = similarity[w] >= windows->least - ROUNDING &&
                          !is_protected(windows, b, w);
      alike += merges;
      /* As float32: windows that differ by rounding alone are equal. */
      const double rank = (double)(float)similarity[w];
      list[w] = (ranked){merges ? rank : -__builtin_inf(), w};
    }
    qsort(list, (size_t)count, sizeof(ranked), compare);
    for (int64_t w = 0; w < count; ++w)
      order[b * count + w] = list[w].window;
    merged = alike < merged ? alike : merged;
  }
  free(list);
  free(sum);
  free(similarity);
  return merged;
}

bool pf_merge_windows(const pf_windows *windows, const int64_t *order,
                      int64_t merged, float *y, int64_t *rows) {
  const int64_t n = windows->n, d = windows->d;
  const int64_t count = pf_window_count(windows);
  const int64_t size = pf_window_size(windows);
  bool *gone = malloc((size_t)n + 1);
  if (!gone)
    return false;
  for (int64_t b = 0; b < windows->b; ++b) {
    const float *image = windows->x + b * n * d;
    memset(gone, 0, (size_t)n);
    for (int64_t i = 0; i < windows->skip; ++i, y += d) {
      memcpy(y, image + i * d, (size_t)d * sizeof(float));
      *rows++ = i;
    }
    for (int64_t k = 0; k < merged; ++k, y += d) {
      const int64_t window = order[b * count + k];
      for (int64_t i = 0; i < size; ++i)
        gone[patch_of(windows, window, i)] = true;
      for (int64_t c = 0; c < d; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < size; ++i)
          sum += (double)image[patch_of(windows, window, i) * d + c];
        y[c] = (float)(sum / (double)size);
      }
      *rows++ = patch_of(windows, window, 0);
    }
    for (int64_t i = windows->skip; i < n; ++i)
      if (!gone[i]) {
        memcpy(y, image + i * d, (size_t)d * sizeof(float));
        y += d;
        *rows++ = i;
      }
  }
  free(gone);
  return true;
}
