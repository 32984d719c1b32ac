/*===- estimate_shares.c - From sums of exponentials to masses ----*- C -*-===*\
|*
|* What the estimators in bytes (xattention, sale) share once the exponentials
|* of every block are summed for 64 rows side by side.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include "quantized.h"
#include <string.h>

enum { LANES = PF_QUANTIZED_LANES };

void pf_finish_shares(const pf_call *call, float *sum, const float *most,
                      const float *top, const pf_span *span) {
  float weight[LANES], total[LANES] = {0};
  for (int64_t block = span->begin; block < span->end; ++block) {
    float *of_block = sum + block * LANES;
    memset(weight, 0, sizeof weight);
    call->hot->exp_sum(weight, most + block * LANES, top, LANES, 1);
    for (int64_t lane = 0; lane < LANES; ++lane) {
      of_block[lane] *= weight[lane];
      total[lane] += of_block[lane];
    }
  }
  for (int64_t lane = 0; lane < LANES; ++lane)
    total[lane] = total[lane] > 0 ? 1 / total[lane] : 0;
  for (int64_t block = span->begin; block < span->end; ++block)
    for (int64_t lane = 0; lane < LANES; ++lane)
      sum[block * LANES + lane] *= total[lane];
}

void pf_add_shares(float *mass, const float *shares, const pf_span *span,
                   int64_t begin, int64_t end) {
  enum { PARTS = 16 };
  for (int64_t block = span->begin; block < span->end; ++block) {
    const float *share = shares + block * LANES;
    float part[PARTS] = {0};
    int64_t lane = begin;
    for (; lane + PARTS <= end; lane += PARTS)
      for (int64_t i = 0; i < PARTS; ++i)
        part[i] += share[lane + i];
    for (; lane < end; ++lane)
      part[lane % PARTS] += share[lane];
    for (int width = PARTS / 2; width; width /= 2)
      for (int i = 0; i < width; ++i)
        part[i] += part[i + width];
    mass[block] += part[0];
  }
}
