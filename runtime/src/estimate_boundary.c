/*===- estimate_boundary.c - Patterns between kinds of token ------*- C -*-===*\
|*
|* MMInference's boundaries (arXiv:2504.16083). In a prompt of text and pictures
|* rows of one modality attend alike, and unlike those of another:
|*
|*   q-boundary   every modality of query rows has vertical lines and slashes of
|*                its own;
|*   2d-boundary  so has every pair of a modality of rows and one of keys.
|*
|* They come from the last rows of a run of the modality, as vertical-slash
takes
|* them from the last rows of the prompt: the last run with as many rows as are
|* looked at, or else the longest.
|*
\*===----------------------------------------------------------------------===*/
#include "estimate.h"
#include "views.h"
#include <string.h>

typedef struct memory {
  pf_lanes lanes;
  float *scores; /* [t][lanes] */
  float *most, *total, *inverse;
  float *column;        /* [t] */
  float *diagonal_base; /* [t + 2 * lanes] */
} memory;

static memory lay_out(const pf_call *call, int64_t b, int64_t h, char **at) {
  const int64_t lanes = call->bq, f = sizeof(float);
  memory m = {.lanes = pf_take_lanes(call, b, h, false, at)};
  m.scores = pf_take(at, call->t * lanes, f);
  m.most = pf_take(at, lanes, f);
  m.total = pf_take(at, lanes, f);
  m.inverse = pf_take(at, lanes, f);
  m.column = pf_take(at, call->t, f);
  m.diagonal_base = pf_take(at, call->t + 2 * lanes, f);
  return m;
}

/* The rows to look at for a modality: *count of them from *row on, at most
 * `last`; 0 if no row that sees anything has it. */
static void rows_of(const pf_estimate *head, int64_t kind, int64_t last,
                    int64_t *row, int64_t *count) {
  const pf_call *call = head->call;
  const pf_batch *batch = head->batch;
  const int64_t row_end =
      pf_max(0, pf_min(call->s, batch->last_key - batch->offset));
  *count = 0;
  for (int64_t begin = 0; begin < row_end;) {
    const int64_t of_run = batch->modality[batch->offset + begin];
    int64_t end = begin + 1;
    while (end < row_end && batch->modality[batch->offset + end] == of_run)
      ++end;
    const int64_t rows = pf_min(end - begin, last);
    if (of_run == kind && rows >= *count) {
      *row = end - rows;
      *count = rows;
    }
    begin = end;
  }
}

/* Scores of the rows and 1 / their sums of exponentials. False: some score is
 * no number. */
static bool score_rows(memory *m, int64_t row, int64_t rows) {
  const pf_call *call = m->lanes.call;
  const pf_hot *hot = call->hot;
  const int64_t lanes = call->bq;
  pf_load_lanes(&m->lanes, row, 1, rows);
  const int64_t begin = m->lanes.begin, end = m->lanes.end;
  for (int64_t i = 0; i < lanes; ++i) {
    m->most[i] = PF_HIDDEN_SCORE;
    m->total[i] = 0;
  }
  bool finite = true;
  if (begin < end) {
    pf_score_lanes(&m->lanes, begin, end, m->scores);
    hot->row_max(m->most, m->scores, lanes, end - begin);
    hot->block_sums(m->total, m->most, m->scores, lanes, end - begin);
  }
  for (int64_t i = 0; i < lanes; ++i) {
    const bool used = i < rows && m->most[i] > PF_HIDDEN_SCORE;
    m->inverse[i] = used ? 1.0f / m->total[i] : 0.0f;
    finite &= i >= rows || m->total[i] - m->total[i] == 0;
  }
  return finite;
}

/* Column and diagonal sums over the keys of a modality, or all (-1). */
static void sum_rows(memory *m, int64_t kind) {
  const pf_call *call = m->lanes.call;
  const pf_batch *batch = m->lanes.batch;
  const int64_t lanes = call->bq, begin = m->lanes.begin, end = m->lanes.end;
  memset(m->column, 0, (size_t)call->t * sizeof(float));
  memset(m->diagonal_base, 0, (size_t)(call->t + 2 * lanes) * sizeof(float));
  for (int64_t j = begin; j < end;) {
    int64_t to = kind < 0 ? end : j + 1;
    while (to < end && batch->modality[to] == batch->modality[j])
      ++to;
    if (kind < 0 || batch->modality[j] == kind)
      call->hot->sums(
          m->column + j, m->diagonal_base + lanes + (m->lanes.position[0] - j),
          m->scores + (j - begin) * lanes, m->most, m->inverse, lanes, to - j);
    j = to;
  }
}

/* Adds to an index what a pair of modalities keeps; columns go to `columns`. */
static void select_pair(const pf_estimate *head, memory *m, int64_t kind,
                        uint64_t *diagonals, uint64_t *columns) {
  const pf_batch *batch = head->batch;
  const prefill_head_plan *plan = head->plan;
  const int64_t n = batch->last_key;
  float *diagonal = m->diagonal_base + head->call->bq;
  const int64_t sinks = pf_min(batch->first_key + plan->init, n);
  int64_t forced = 0;
  for (int64_t j = 0; j < n; ++j)
    if ((kind >= 0 && batch->modality[j] != kind) || j < batch->first_key ||
        (batch->key_mask && !batch->key_mask[j])) {
      m->column[j] = PF_MINUS_INF;
    } else if (j < sinks) {
      m->column[j] = __builtin_inff();
      ++forced;
    }
  const int64_t near = pf_min(pf_max(plan->local, 1), n);
  for (int64_t delta = 0; delta < near; ++delta)
    diagonal[delta] = __builtin_inff();
  pf_select(diagonal, NULL, n, (double)pf_max(plan->slash, near), diagonals);
  pf_select(m->column, NULL, n, (double)pf_max(plan->vertical, forced),
            head->chosen);
  for (int64_t word = 0; word < pf_words(n); ++word)
    columns[word] |= head->chosen[word];
}

static void estimate_boundary(const pf_estimate *head) {
  const pf_call *call = head->call;
  const bool pairs = head->plan->pattern == PREFILL_PATTERN_2D_BOUNDARY;
  char *at = head->scratch;
  memory m = lay_out(call, head->b, head->h, &at);
  pf_head_index *index = head->index;
  pf_boundary_init(index, call, head->storage);
  const int64_t kinds = call->modalities, words = pf_words(call->t);
  for (int64_t of_row = 0; of_row < kinds; ++of_row) {
    uint64_t *kept = index->diagonals + of_row * kinds * words;
    uint64_t *columns = head->distances;
    memset(columns, 0, (size_t)words * 8);
    int64_t row = 0, rows;
    rows_of(head, of_row, head->plan->last, &row, &rows);
    if (rows > 0) {
      if (!score_rows(&m, row, rows)) {
        index->mode = PF_HEAD_DENSE; /* keep everything */
        return;
      }
      for (int64_t of_key = 0; of_key < (pairs ? kinds : 1); ++of_key) {
        sum_rows(&m, pairs ? of_key : -1);
        select_pair(head, &m, pairs ? of_key : -1, kept + of_key * words,
                    columns);
      }
      for (int64_t of_key = 1; !pairs && of_key < kinds; ++of_key)
        memcpy(kept + of_key * words, kept, (size_t)words * 8);
    }
    index->column_first[of_row] = (int32_t)index->columns;
    for (int64_t j = 0; j < call->t; ++j)
      if (pf_get_bit(columns, j))
        index->column[index->columns++] = (int32_t)j;
  }
  index->column_first[kinds] = (int32_t)index->columns;
}

static bool boundary_fits(const pf_call *call, const prefill_head_plan *plan) {
  (void)plan;
  return call->modalities > 0;
}

static int64_t bytes_of(const pf_call *call, const prefill_head_plan *plan) {
  (void)plan;
  return pf_boundary_bytes(call);
}

static int64_t scratch_of(const pf_call *call, const prefill_head_plan *plan,
                          int64_t limit) {
  (void)plan, (void)limit;
  static char anchor[1];
  char *at = anchor;
  lay_out(call, 0, 0, &at);
  return pf_max(pf_strip_keys_bytes(call), at - anchor);
}

const pf_pattern pf_pattern_boundary = {.fits = boundary_fits,
                                        .bytes = bytes_of,
                                        .scratch = scratch_of,
                                        .estimate = estimate_boundary};
