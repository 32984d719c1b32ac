/*===- windows.h - Windows of alike patches become one row --------*- C -*-===*\
|*
|* MustDrop in the vision encoder (arXiv:2411.10803): the patches of an image
are
|* a grid; non-overlapping windows of it whose patches are alike are merged. No
|* n x n anything: a window's similarities are sums over its patches.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_WINDOWS_H
#define PREFILL_RUNTIME_WINDOWS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* b images of n rows of d elements: `skip` rows that are no patches, then grid
 * * grid patches, row by row. height and width divide grid and are not both 1.
 */
typedef struct pf_windows {
  const float *x;         /* [b][n][d] */
  const uint8_t *protect; /* [b][n]; windows with such a patch stay */
  int64_t b, n, d, skip, grid, height, width;
  double least; /* similarity from which on a window is merged */
} pf_windows;

/* Windows of an image, and patches of a window. */
int64_t pf_window_count(const pf_windows *windows);
int64_t pf_window_size(const pf_windows *windows);

/* similarity[windows], row by row, of image b: the mean over all pairs of
 * different patches of the cosine of the angle between them (0 with a patch of
 * zeros; not a number where a patch is none). sum[d] is scratch memory. */
void pf_window_similarity(const pf_windows *windows, int64_t b,
                          double *similarity, double *sum);

/* order[b][windows]: each image's windows, the most alike first (of equal ones
 * the first), those that may not be merged last. Returns how many windows are
 * merged, as many in every image: the least number of an image that are alike
 * enough. -1: out of memory. */
int64_t pf_rank_windows(const pf_windows *windows, int64_t *order);

/* y[b][m][d] and rows[b][m], m = n - merged * (size - 1): the rows that are no
 * patches; the merged windows in the order of `order`, as the mean of their
 * patches; the other patches, ascending. rows: which row it was, of a window
 * its first one. False: out of memory. */
bool pf_merge_windows(const pf_windows *windows, const int64_t *order,
                      int64_t merged, float *y, int64_t *rows);

#ifdef __cplusplus
}
#endif
#endif
