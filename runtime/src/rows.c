/*===- rows.c - Which rows stay, and where they went --------------*- C -*-===*\
|*
|* See rows.h. The rules of LazyLLM (arXiv:2407.14057), MustDrop
|* (arXiv:2411.10803) and QuickPrefill with what they leave open: ties, padding,
|* several prompts, and rows that must not go.
|*
\*===----------------------------------------------------------------------===*/
#include "rows.h"
#include "flow.h"
#include "sparse.h"
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MINUS_INF (-__builtin_inff())

static bool is_alive(const pf_row_set *rows, int64_t b, int64_t i) {
  return !rows->alive || rows->alive[b * rows->n + i];
}

static int64_t start_of(const pf_row_set *rows, int64_t segment) {
  return rows->starts ? rows->starts[segment] : segment ? rows->n : 0;
}

bool pf_check_row_set(const pf_row_set *rows, pf_row_error *error) {
  error->text[0] = '\0';
  for (int64_t i = 0; rows->parts && i < 2 * rows->segments; ++i)
    if (rows->parts[i] < 0 || rows->parts[i] > INT64_MAX / 2) {
      snprintf(
          error->text, sizeof(error->text),
          "parts of prompts: segment %lld: expected the number of its first "
          "row and of the rows that follow, got %lld",
          (long long)(i / 2), (long long)rows->parts[i]);
      return false;
    }
  if (!rows->starts)
    return true;
  int64_t last = 0;
  for (int64_t i = 0; i <= rows->segments; ++i) {
    const int64_t start = rows->starts[i];
    if (start < last || start > rows->n || (i == 0 && start) ||
        (i == rows->segments && start != rows->n)) {
      snprintf(error->text, sizeof(error->text),
               "segment starts: expected ascending numbers from 0 to %lld, got "
               "%lld at place %lld",
               (long long)rows->n, (long long)start, (long long)i);
      return false;
    }
    last = start;
  }
  if (rows->b != 1)
    snprintf(error->text, sizeof(error->text),
             "segment starts: expected a batch of 1, got %lld",
             (long long)rows->b);
  return rows->b == 1;
}

/* The same for a part of a prompt; sums of sizes that a caller made up do not
 * overflow. */
static void protect_part(const pf_row_set *rows, int64_t b, int64_t segment,
                         int64_t bos, int64_t last, uint8_t *protect) {
  const int64_t begin = start_of(rows, segment);
  const int64_t end = start_of(rows, segment + 1);
  const int64_t first = rows->parts[2 * segment];
  const int64_t follow = rows->parts[2 * segment + 1];
  for (int64_t i = begin; i < end; ++i)
    if (i - begin < bos - first || end - 1 - i < last - follow || !follow)
      protect[b * rows->n + i] = 1;
}

void pf_protect_ends(const pf_row_set *rows, int64_t bos, int64_t last,
                     uint8_t *protect) {
  for (int64_t b = 0; b < rows->b; ++b)
    for (int64_t s = 0; s < rows->segments; ++s) {
      const int64_t begin = start_of(rows, s), end = start_of(rows, s + 1);
      if (rows->parts) {
        protect_part(rows, b, s, bos, last, protect);
        continue;
      }
      int64_t left = bos;
      for (int64_t i = begin; i < end && left > 0; ++i)
        if (is_alive(rows, b, i)) {
          protect[b * rows->n + i] = 1;
          --left;
        }
      left = last;
      for (int64_t i = end; i-- > begin && left > 0;)
        if (is_alive(rows, b, i)) {
          protect[b * rows->n + i] = 1;
          --left;
        }
    }
}

static bool in_range(const int64_t (*range)[2], int64_t count, int64_t value) {
  for (int64_t i = 0; i < count; ++i)
    if (value >= range[i][0] && value <= range[i][1])
      return true;
  return false;
}

void pf_protect_ids(const pf_row_set *rows, const int64_t *ids,
                    const int64_t (*range)[2], int64_t count,
                    uint8_t *protect) {
  for (int64_t i = 0; i < rows->b * rows->n; ++i)
    if (in_range(range, count, ids[i]))
      protect[i] = 1;
}

void pf_protect_rows(const pf_row_set *rows, const int64_t (*range)[2],
                     int64_t count, uint8_t *protect) {
  for (int64_t b = 0; b < rows->b; ++b)
    for (int64_t s = 0; s < rows->segments; ++s) {
      int64_t number = rows->parts ? rows->parts[2 * s] : 0;
      for (int64_t i = start_of(rows, s); i < start_of(rows, s + 1); ++i)
        if (is_alive(rows, b, i) && in_range(range, count, number++))
          protect[b * rows->n + i] = 1;
    }
}

/* Row `wanted` of `count`, or -1. */
static int64_t normalise(int64_t wanted, int64_t count) {
  const int64_t row = wanted < 0 ? wanted + count : wanted;
  return row >= 0 && row < count ? row : -1;
}

bool pf_protect_wanted(const pf_row_set *rows, const int64_t *wanted,
                       int64_t count, uint8_t *protect, pf_row_error *error) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = normalise(wanted[i], rows->n);
    if (row < 0) {
      snprintf(error->text, sizeof(error->text),
               "row %lld is asked for, the prompt has %lld",
               (long long)wanted[i], (long long)rows->n);
      return false;
    }
    for (int64_t b = 0; b < rows->b; ++b)
      protect[b * rows->n + row] = 1;
  }
  return true;
}

/*===-- selection --------------------------------------------------------===*/

/* Memory for one segment of at most n rows. */
typedef struct choice {
  float *value;     /* [n] */
  uint64_t *chosen; /* [n / 64 + 1] */
} choice;

/* Keeps `more` rows of [begin, end) of entry b that are not kept yet, padding
 * or tokens only, by score. Returns how many there were. */
static int64_t keep_best(const pf_row_set *rows, int64_t b, int64_t begin,
                         int64_t end, const float *score, bool padding,
                         int64_t more, const choice *memory, uint8_t *kept) {
  int64_t found = 0;
  if (more <= 0 || begin == end)
    return 0;
  for (int64_t i = begin; i < end; ++i) {
    /* -inf (a key whose norm overflows) is a score too: below it is nothing. */
    const float given = score[b * rows->n + i];
    const float s = given < -FLT_MAX ? -FLT_MAX : given;
    memory->value[i - begin] =
        kept[b * rows->n + i] || is_alive(rows, b, i) == padding ? MINUS_INF
        : s != s                                                 ? -MINUS_INF
                                                                 : s;
  }
  pf_select(memory->value, NULL, end - begin, (double)more, memory->chosen);
  for (int64_t i = begin; i < end; ++i)
    if (memory->chosen[(i - begin) / 64] >> ((i - begin) % 64) & 1) {
      kept[b * rows->n + i] = 1;
      ++found;
    }
  return found;
}

/* How many of `count` rows stay. */
static int64_t budget_of(const pf_keep_rule *rule, int64_t count) {
  if (rule->topk && count <= rule->topk)
    return count;
  const int64_t whole = count / 1000000, rest = count % 1000000;
  const int64_t share =
      rule->ppm * whole +
      (rule->ppm * rest + (rule->down ? 0 : 999999)) / 1000000;
  return rule->topk && rule->topk < share ? rule->topk : share;
}

/* What one segment keeps by itself. */
static int64_t keep_segment(const pf_row_set *rows, int64_t b, int64_t begin,
                            int64_t end, const float *score,
                            const uint8_t *protect, const pf_keep_rule *rule,
                            const choice *memory, uint8_t *kept) {
  int64_t alive = 0, count = 0;
  for (int64_t i = begin; i < end; ++i) {
    alive += is_alive(rows, b, i);
    count += kept[b * rows->n + i] = protect[b * rows->n + i] != 0;
  }
  const int64_t more = budget_of(rule, alive) - count;
  return count + keep_best(rows, b, begin, end, score, /*padding=*/false, more,
                           memory, kept);
}

int64_t pf_keep_rows(const pf_row_set *rows, const float *score,
                     const uint8_t *protect, const pf_keep_rule *rule,
                     uint8_t *kept, int64_t *segment_count) {
  choice memory = {.value = malloc((size_t)(rows->n + 1) * sizeof(float)),
                   .chosen = malloc((size_t)(rows->n / 64 + 1) * 8)};
  int64_t *count = malloc((size_t)(rows->b + 1) * sizeof(int64_t));
  int64_t most = -1;
  if (!memory.value || !memory.chosen || !count)
    goto done;
  most = 0;
  for (int64_t b = 0; b < rows->b; ++b) {
    count[b] = 0;
    for (int64_t s = 0; s < rows->segments; ++s) {
      segment_count[s] =
          keep_segment(rows, b, start_of(rows, s), start_of(rows, s + 1), score,
                       protect, rule, &memory, kept);
      count[b] += segment_count[s];
    }
    most = count[b] > most ? count[b] : most;
  }
  for (int64_t b = 0; b < rows->b; ++b)
    for (int padding = 1; padding >= 0; --padding)
      count[b] += keep_best(rows, b, 0, rows->n, score, padding,
                            most - count[b], &memory, kept);
done:
  free(count);
  free(memory.chosen);
  free(memory.value);
  return most;
}

int64_t pf_keep_above(const pf_row_set *rows, const float *score,
                      const float *peak, const uint8_t *columns,
                      const uint8_t *protect, int64_t share, int64_t most,
                      uint8_t *kept) {
  double total = 0;
  for (int64_t i = 0; i < rows->n; ++i)
    if (columns[i])
      total += (double)score[i];
  const double low = (double)share / 1e12 * total;
  const double least = (double)most / 1e12;
  int64_t count = 0;
  for (int64_t i = 0; i < rows->n; ++i) {
    const bool goes = (double)score[i] < low && (double)peak[i] < least;
    count += kept[i] = protect[i] || !goes;
  }
  return count;
}

int64_t pf_keep_patches(const pf_row_set *rows, const float *score,
                        const float *shares, const uint8_t *protect,
                        int64_t target, int64_t left, int64_t skip,
                        uint8_t *kept) {
  const int64_t n = rows->n, patches = n - skip;
  choice memory = {.value = malloc((size_t)(n + 1) * sizeof(float)),
                   .chosen = malloc((size_t)(n / 64 + 1) * 8)};
  int64_t most = -1;
  if (!memory.value || !memory.chosen)
    goto done;
  int64_t drop = 0;
  for (int64_t b = 0; b < rows->b; ++b) {
    const int64_t goes =
        pf_flow_drop(shares + b * n + skip, patches, target, left);
    drop = goes > drop ? goes : drop;
  }
  most = n - drop;
  for (int64_t b = 0; b < rows->b; ++b) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i)
      count += kept[b * n + i] = i < skip || protect[b * n + i];
    most = count > most ? count : most;
  }
  for (int64_t b = 0; b < rows->b; ++b) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i)
      count += kept[b * n + i];
    keep_best(rows, b, 0, n, score, /*padding=*/false, most - count, &memory,
              kept);
  }
done:
  free(memory.chosen);
  free(memory.value);
  return most;
}

int64_t pf_keep_columns(const pf_row_set *rows, const float *score,
                        const uint8_t *columns, const uint8_t *protect,
                        int64_t target, uint8_t *kept) {
  const int64_t n = rows->n;
  choice memory = {.value = malloc((size_t)(n + 1) * sizeof(float)),
                   .chosen = malloc((size_t)(n / 64 + 1) * 8)};
  int64_t *count = malloc((size_t)(rows->b + 1) * sizeof(int64_t));
  int64_t most = -1;
  if (!memory.value || !memory.chosen || !count)
    goto done;
  most = 0;
  for (int64_t b = 0; b < rows->b; ++b) {
    int64_t all = 0, fixed = 0;
    count[b] = 0;
    for (int64_t i = b * n; i < (b + 1) * n; ++i) {
      count[b] += kept[i] = protect[i] != 0;
      all += columns[i] != 0;
      fixed += columns[i] && protect[i];
    }
    const int64_t stay = all < target ? all : target;
    const int64_t least = count[b] + (stay > fixed ? stay - fixed : 0);
    most = least > most ? least : most;
  }
  for (int64_t b = 0; b < rows->b; ++b)
    keep_best(rows, b, 0, n, score, /*padding=*/false, most - count[b], &memory,
              kept);
done:
  free(count);
  free(memory.chosen);
  free(memory.value);
  return most;
}

bool pf_find_rows(const int64_t *rows, int64_t b, int64_t n, int64_t count,
                  const int64_t *wanted, int64_t wanted_count, int64_t *index,
                  pf_row_error *error) {
  for (int64_t w = 0; w < wanted_count; ++w) {
    const int64_t row = normalise(wanted[w], count);
    for (int64_t entry = 0; entry < b; ++entry) {
      const int64_t *list = rows + entry * n;
      int64_t low = 0, high = n;
      while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (list[middle] < row)
          low = middle + 1;
        else
          high = middle;
      }
      if (row < 0 || low == n || list[low] != row) {
        snprintf(error->text, sizeof(error->text),
                 "row %lld of %lld is asked for and was not kept",
                 (long long)wanted[w], (long long)count);
        return false;
      }
      if (entry && index[w] != low) {
        snprintf(error->text, sizeof(error->text),
                 "row %lld is not at the same place in all prompts of the "
                 "batch after pruning; run them one by one",
                 (long long)wanted[w]);
        return false;
      }
      index[w] = low;
    }
  }
  return true;
}
