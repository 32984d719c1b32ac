/*===- rows.h - Which rows stay, and where they went --------------*- C -*-===*\
|*
|* Token pruning leaves rows (tokens) out of later layers. These functions say
|* which may never go, which go, and where the others are afterwards; what is
|* done with the rows themselves is the model's graph. No n x n anything.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_ROWS_H
#define PREFILL_RUNTIME_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The rows of a call: [b] batch entries of n rows each. */
typedef struct pf_row_set {
  int64_t b, n;
  const uint8_t *alive;  /* [b][n]; 0: padding. NULL: all are tokens */
  const int64_t *starts; /* [segments + 1] ascending from 0 to n, for b = 1:
                            prompts one after the other. NULL: one */
  int64_t segments;      /* 1 without starts */
  const int64_t *parts; /* [segments][2]: the segment's first row is that row of
                           its prompt, and so many rows of it follow the
                           segment. Not with `alive`. NULL: whole prompts */
} pf_row_set;

/* How many of a segment's n rows stay. */
typedef struct pf_keep_rule {
  int64_t ppm;  /* ceil(ppm / 10^6 n) */
  bool down;    /* floor of it */
  int64_t topk; /* at most so many, and all if n <= topk; 0: no bound */
} pf_keep_rule;

/* The first error, one line, or "". */
typedef struct pf_row_error {
  char text[192];
} pf_row_error;

/* Whether `starts` are ascending numbers from 0 to n and b is 1, and `parts`
 * not negative. */
bool pf_check_row_set(const pf_row_set *rows, pf_row_error *error);

/* protect[b][n] |= 1 for the first `bos` and the last `last` rows of every
 * segment that are no padding (`last` at least 1: the query of the scores). Of
 * parts, for those of the prompt, and for all of a part that nothing follows.
 */
void pf_protect_ends(const pf_row_set *rows, int64_t bos, int64_t last,
                     uint8_t *protect);
/* ... for the rows whose token is in one of `count` ranges [low, high]. */
void pf_protect_ids(const pf_row_set *rows, const int64_t *ids,
                    const int64_t (*range)[2], int64_t count, uint8_t *protect);
/* ... for rows whose number, counted from their segment's first one that is no
 * padding, is in one of the ranges. */
void pf_protect_rows(const pf_row_set *rows, const int64_t (*range)[2],
                     int64_t count, uint8_t *protect);
/* ... for `count` rows of every entry; negative numbers count from the end.
 * False: a number is out of range. */
bool pf_protect_wanted(const pf_row_set *rows, const int64_t *wanted,
                       int64_t count, uint8_t *protect, pf_row_error *error);

/* Of every segment the protected rows, then those of the greatest score (of
 * equal ones the first; NaN is the greatest: what is not understood stays)
 * until as many stay as `rule` says, or more if more are protected.
 * Padding does not count and goes first. All batch entries keep as many rows as
 * the one that keeps most: entries that keep fewer fill up with padding, then
 * with their next rows. Without memory -1.
 *
 * kept[b][n] becomes 1 for rows that stay; the result is their number per
 * entry. segment_count [segments] gets the number of every segment. */
int64_t pf_keep_rows(const pf_row_set *rows, const float *score,
                     const uint8_t *protect, const pf_keep_rule *rule,
                     uint8_t *kept, int64_t *segment_count);

/* Keeps the protected rows, and of the others those that are not both: of a
 * score below share / 10^12 times the sum of the scores of `columns`, and of a
 * peak below most / 10^12 (MustDrop, arXiv:2411.10803). A score or peak that is
 * no number keeps its row. kept and the result as above; one batch entry only.
 */
int64_t pf_keep_above(const pf_row_set *rows, const float *score,
                      const float *peak, const uint8_t *columns,
                      const uint8_t *protect, int64_t share, int64_t most,
                      uint8_t *kept);

/* Of b images, whose first `skip` rows are no patches and stay, keeps the
 * protected patches, then those of the greatest score, until N - r stay: N the
 * patches, r the greatest pf_flow_drop of an image's shares [b][n] (FlowCut,
 * arXiv:2505.19536; its peer too leaves as many out of every image). kept and
 * the result as of pf_keep_rows. */
int64_t pf_keep_patches(const pf_row_set *rows, const float *score,
                        const float *shares, const uint8_t *protect,
                        int64_t target, int64_t left, int64_t skip,
                        uint8_t *kept);

/* Keeps what `protect` names, then those of `columns` [b][n] of the greatest
 * score until `target` of an entry's columns stay (FlowCut, arXiv:2505.19536,
 * in a language model); more where another entry keeps more rows. kept and the
 * result as of pf_keep_rows. Rows that are no column should be protected. */
int64_t pf_keep_columns(const pf_row_set *rows, const float *score,
                        const uint8_t *columns, const uint8_t *protect,
                        int64_t target, uint8_t *kept);

/* index[i] = the place of row wanted[i] (negative: from the end of `count`
 * rows) among rows[b][n], ascending. False: it is not there, or not at the same
 * place in every entry. */
bool pf_find_rows(const int64_t *rows, int64_t b, int64_t n, int64_t count,
                  const int64_t *wanted, int64_t wanted_count, int64_t *index,
                  pf_row_error *error);

#ifdef __cplusplus
}
#endif
#endif
