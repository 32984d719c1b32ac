/*===- internal.h - What the runtime's files share ----------------*- C -*-===*\
|*
|* The runtime is a pipeline: check.c turns DLTensors into a `pf_call` (plain
|* pointers and strides, nothing left to doubt), visibility.c says per tile of
|* query rows which key blocks the masks leave, estimate*.c and index.c leave
|* out more of them where the kernel has a sparse plan, attention.c runs the
|* tiles.
|*
|* Names of internal functions begin with pf_; nothing here is exported from a
|* library. Positions, rows and keys are int64_t throughout; strides are in
|* elements.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_INTERNAL_H
#define PREFILL_RUNTIME_INTERNAL_H

#include "logarithm.h"
#include "prefill/kernel_abi.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Windows at or past this are no bound at all (kernel_abi.h). */
#define PF_UNBOUNDED (INT64_MAX / 4)
/* Longest sequence: positions of gathered keys are int32_t, INT32_MAX is
 * taken, and the last block must not overflow either. */
#define PF_MAX_LENGTH ((int64_t)INT32_MAX - 65536)
/* Value of bool masks' false. */
#define PF_MINUS_INF (-__builtin_inff())
/* Tile functions with a bias take a score below this for invisible. */
#define PF_BIAS_HIDES (-3e38f)
/* Kinds of token that q-boundary and 2d-boundary tell from each other. */
#define PF_MAX_MODALITIES 8
/* Longest accepted block_q and block_k. */
#define PF_MAX_BLOCK 1024
/* Hosts of the first version have no stream in their contexts. */
#define PF_LEAST_CONTEXT offsetof(prefill_context, stream)
/* DLPack's code of bool, newer than Debian's header. */
#define PF_DL_BOOL 6

/*===-- cpu.c ------------------------------------------------------------===*/

/* The highest PREFILL_ISA_* level that processor and operating system support
 * (0 below x86-64-v2). */
uint32_t pf_cpu_isa(void);
/* AVX-512 VNNI, on top of PREFILL_ISA_X86_64_V4. */
bool pf_cpu_vnni(void);

/*===-- hot.c: loops compiled once per instruction set -------------------===*/

/* Element types of the loops below; PREFILL_F32 and so on come first. */
enum { PF_BOOL8 = 3 };

typedef struct pf_hot {
  uint32_t isa;
  /* dst[i] = src[i * stride] as float32; PF_BOOL8 gives 0 or -inf. */
  void (*to_float)(float *dst, const void *src, int64_t stride, int64_t n,
                   int dtype);
  /* dst[i] = src[i] rounded to nearest even; dtype is not PF_BOOL8. */
  void (*from_float)(void *dst, const float *src, int64_t n, int dtype);
  /* dst[i] += src[i] as float32. */
  void (*accumulate)(float *dst, const void *src, int64_t n, int dtype);
  /* Scores of `lanes` queries, transposed to q[d][lanes] and already scaled,
   * against n rows of K: out[j * lanes + i]. */
  void (*score)(float *out, const float *q, int64_t lanes, int64_t d,
                const void *k, int64_t k_stride, int64_t n, int dtype);
  /* m[i] = max(m[i], s[j][i]) over n keys. */
  void (*row_max)(float *m, const float *s, int64_t lanes, int64_t n);
  /* l[i] += sum over j of exp(s[j][i] - m[i]), NaN where a score is; s is not
   * changed. */
  void (*exp_sum)(float *l, const float *s, const float *m, int64_t lanes,
                  int64_t n);
  /* m[i] = max(m[i], s[j][i]) over n keys, then sum[i] = sum over j of
   * exp(s[j][i] - m[i]): NaN where a score is NaN or +inf. */
  void (*block_sums)(float *sum, float *m, const float *s, int64_t lanes,
                     int64_t n);
  /* sum[i] *= exp(m[i] - last[i]); total[i] += sum[i]. */
  void (*rescale)(float *total, float *sum, const float *m, const float *last,
                  int64_t lanes);
  /* With p = exp(s[j][i] - m[i]) * inv_l[i]: column[j] += sum over i of p, and
   * diagonal[i - j] += p, where diagonal points at the sum of row 0, key 0.
   * Rows with inv_l 0 add nothing, whatever their scores are. */
  void (*sums)(float *column, float *diagonal, const float *s, const float *m,
               const float *inv_l, int64_t lanes, int64_t n);
  /* s[i] = cap * tanh(s[i] / cap). */
  void (*softcap)(float *s, float cap, int64_t n);
  /* Rotates the pairs of a row of 2 * half elements, (i, half + i) or (2 i,
   * 2 i + 1): first = a c - b s, second = b c1 + a s1. Entry i of a table is at
   * step * i (1 unless interleaved). */
  void (*rotate)(float *y, const float *x, const float *c, const float *s,
                 const float *c1, const float *s1, int64_t half, int64_t step,
                 int interleaved);
} pf_hot;

extern const pf_hot pf_hot_v2, pf_hot_v3, pf_hot_v4;
/* The best table for an instruction set level. */
const pf_hot *pf_hot_for(uint32_t isa);

/*===-- a call, checked --------------------------------------------------===*/

/* Q, K, V or O as [batch][head][row][element]; elements of a row adjacent. */
typedef struct pf_rows {
  char *data;
  int64_t batch, head, row;
} pf_rows;

/* A tensor of up to four dimensions broadcast to [b][h][s][t]: strides of
 * broadcast dimensions are 0. data NULL: absent. */
typedef struct pf_bias {
  const char *data;
  int dtype; /* PREFILL_* or PF_BOOL8 */
  int64_t bytes;
  int64_t stride[4];
} pf_bias;

/* What a block of keys is before positions are looked at. */
enum {
  PF_BLOCK_HIDDEN = 0, /* no key visible to anyone: never visited */
  PF_BLOCK_SOME = 1,
  PF_BLOCK_ALL = 2 /* every key visible as far as the key mask goes */
};

/* Facts of one batch entry. */
typedef struct pf_batch {
  int64_t offset;          /* key position of query row 0 */
  int64_t kv_len;          /* keys at or past it are invisible */
  int64_t first_key;       /* first visible key; kv_len if there is none */
  int64_t last_key;        /* one past the last visible key; 0 if none */
  const uint8_t *key_mask; /* [t] 0 or 1; NULL: all visible */
  const uint8_t *state;    /* [blocks] PF_BLOCK_*; NULL: all ALL */
  const int32_t *q_segment, *k_segment; /* [s], [t]; NULL: one segment */
  const int32_t *block_segment;    /* [blocks][2] least and greatest segment */
  const uint8_t *modality;         /* [t] kinds of keys; NULL: not known */
  const uint8_t *block_modalities; /* [blocks]: one bit each that it holds */
  const int64_t *strip; /* [strips][2]: first row and number of rows of runs of
                           one modality, at most bq */
  int64_t strips;
} pf_batch;

struct pf_head_index;
struct estimation;

/* Everything a call needs, resolved. Read-only once the tiles run. */
typedef struct pf_call {
  const prefill_attention_desc *desc;
  prefill_context *context;
  const prefill_tile_variant *variant;
  const pf_hot *hot;

  int64_t b, s, t;       /* batch, query rows, keys */
  int64_t hq, hk, group; /* group = hq / hk */
  int64_t d, e, bq, bk;
  int64_t tiles, blocks; /* ceil(s / bq), ceil(t / bk) */
  int64_t element;       /* bytes of an element of Q, K, V, O */
  bool causal, window;   /* features, with the bounds below */
  int64_t window_left, window_right;
  float scale;
  bool cuda; /* Q, K, V and O are on GPU number `device` */
  int32_t device;

  pf_rows q, k, v, o;
  pf_bias bias;
  const float *sinks; /* [hq] or NULL */
  pf_rows lse;        /* float32 [b][hq][s], row stride in .row; or NULL */
  pf_rows density;    /* float32 [b][hq] or NULL */
  pf_rows block_map;  /* uint8 [b][hq][tiles], block stride in map_block */
  int64_t map_block;
  pf_rows token_score;   /* float32 [b][t], key stride in .row; or NULL */
  pf_rows token_peak;    /* the same */
  pf_rows score_rows;    /* bytes [b][s]: rows that these two are of; or NULL */
  const pf_batch *batch; /* [b] */
  const float *value_mean; /* [b][hk][e] for PREFILL_MASKED_MEAN, or NULL */
  bool may_mask_rows; /* some row may see no key, and masked_row is not ZERO */

  /* Rotary tables as [b][1][position][element], see rotary.c. */
  pf_rows cosine, sine;
  int rotary_dtype;
  int64_t rotary_width, rotary_rows;
  bool rotary;

  /* Rows that are not one after the other (ragged.c), or NULL. */
  const DLTensor *q_positions, *segment_starts;
  bool keys_rotated; /* call->k is rotated already */
  int64_t table_row; /* row of the rotary tables for position 0 */

  /* The KV cache that k and v are appended to (cache.c), or NULL. */
  const DLTensor *cache_slots, *kept_rows;
  const DLTensor *context_slots; /* contexts.c, or NULL */
  pf_rows past_k, past_v, present_k, present_v;
  int64_t cache_rows;

  const uint8_t *ones;         /* [t], for kernels with an absent key mask */
  const int32_t *zeros;        /* [max(s, t)], for absent segments */
  pf_rows rotated_k;           /* output or workspace, see rotary.c */
  struct pf_head_index *index; /* [b][hq], or NULL: all dense */
  int64_t most_columns;        /* longest column list of any head */
  int64_t modalities;          /* of the call; 0: not known */
  const int64_t *first_strip;  /* [b][hq]: number of a head's first strip */
  int64_t most_gathered;       /* keys that a strip copies, views.c */
  const struct estimation *estimation; /* while the index is built */
  struct pf_quantized_keys {           /* quantized.h; 8 and 4 bits */
    uint8_t *bytes; /* [b][hk][blocks * bk][width], hidden keys are zeros */
    float *scale;   /* [b][hk][blocks]; NaN: a key is not finite, as it is or
                       without the mean */
    int64_t width;  /* d rounded up to 4 */
  } quantized[2];
  const struct pf_quantized_hot *quantized_hot;
  const struct pf_quantization *quantization; /* while keys are quantised */
  const void *token_work; /* while TOKEN_SCORE is computed */
  int32_t *visited;       /* [b][hq][tiles][2]: visited, visible blocks */

  /* Workspace to release at the end of the call. */
  void *owned[24];
  int owned_count;
} pf_call;

/*===-- context.c: errors, memory, loops ---------------------------------===*/

/* Writes the context's message, `kernel 'name': ` and the formatted text, and
 * returns status. */
prefill_status pf_fail(const pf_call *call, prefill_status status,
                       const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same without a kernel. */
prefill_status pf_fail_context(prefill_context *context, prefill_status status,
                               const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* count * size bytes of 64-byte aligned memory from the context, released by
 * pf_release_all; NULL with the message set if it does not fit or there is
 * none. A size of 0 gives a valid pointer. */
void *pf_alloc(pf_call *call, int64_t count, int64_t size);
void pf_release_all(pf_call *call);

/* Runs body(call, state of the worker, item) for all items in ascending order
 * of their start. Workers pick items from one counter, so that the order is
 * kept whatever the host's parallel_for does; item results must not depend on
 * the worker. Every worker has worker_bytes of aligned memory of its own, not
 * cleared. Denormals are flushed to zero while
 * bodies run, so that results do not depend on the state of host threads.
 * work: rough number of floating-point operations of the whole loop; little
 * work stays on the calling thread. */
prefill_status
pf_parallel(pf_call *call, int64_t items, double work, int64_t worker_bytes,
            void (*body)(pf_call *call, void *worker, int64_t item));

/*===-- check.c ----------------------------------------------------------===*/

/* Fills call from the arguments; after success no tensor can be wrong. Reads
 * small inputs (lengths, offsets, masks), touches no Q, K, V or O. With
 * call->cuda no input at all is read, and batch stays NULL (cuda.c). */
prefill_status pf_check(pf_call *call, const DLTensor *const *inputs,
                        size_t input_count, DLTensor *const *outputs,
                        size_t output_count);

/*===-- prepare.c --------------------------------------------------------===*/

/* Element `index` (in elements) of an int32, int64 or one-byte tensor. */
int64_t pf_read_int(const DLTensor *tensor, int64_t index);
/* Stride of a dimension of a tensor of rank 1 or 2, compact or given; 0 where
 * it is never stepped along. */
int64_t pf_stride_of(const DLTensor *tensor, int dim);
/* Key position of query row 0. A position far outside of the keys means the
 * same as one just outside; clamping keeps all later sums small. */
int64_t pf_clamp_offset(const pf_call *call, int64_t offset);
/* Per-batch facts from the small inputs: fills call->batch, ones, zeros. The
 * tensors have been checked. */
prefill_status pf_prepare_batches(pf_call *call, const DLTensor *key_mask,
                                  const DLTensor *kv_lengths,
                                  const DLTensor *q_segment,
                                  const DLTensor *k_segment,
                                  const DLTensor *q_offset,
                                  const DLTensor *modality);
/* call->value_mean, for kernels that give it to masked rows. */
prefill_status pf_prepare_value_mean(pf_call *call);

/*===-- rotary.c ---------------------------------------------------------===*/

/* Replaces call->k by a rotated copy: the output ROTATED_K, or workspace. */
prefill_status pf_rotate_keys(pf_call *call);
/* Rows [row, row + rows) of query head h, rotated, into out (compact, type of
 * q); scratch: 2 * d + 2 * rotary_width floats. */
void pf_rotate_queries(const pf_call *call, int64_t b, int64_t h, int64_t row,
                       int64_t rows, void *out, float *scratch);

/*===-- ragged.c ---------------------------------------------------------===*/

/* First row of a segment; of the one after the last, the number of rows. */
int64_t pf_segment_start(const pf_call *call, int64_t segment);
/* Runs a call with q_positions or segment_starts: `run` on every piece of
 * consecutive rows of one prompt. */
prefill_status pf_run_ragged(pf_call *call,
                             prefill_status (*run)(pf_call *call));

/* Consecutive query rows [row, row + rows) of one prompt, of batch entries
 * [batch, batch + batches): a call on a part of the tensors. They are at
 * positions from `position` on and see keys [key, key + keys); row 0 is at
 * `offset` among these, and `table` is the row of the rotary tables for the
 * first of them. */
typedef struct pf_piece {
  int64_t batch, batches, row, rows, position, key, keys, offset, table;
  /* Where rows [0, rows) of O and LSE go, instead of to the call's; or NULL. */
  const pf_rows *o, *lse;
  float scale; /* of scores; 0: the call's */
} pf_piece;
typedef prefill_status (*pf_run_fn)(pf_call *call);
/* Runs `run` on a piece; sums: what DENSITY is made of, or NULL. */
prefill_status pf_run_piece(const pf_call *call, const pf_piece *p,
                            pf_run_fn run, int64_t *sums);

/*===-- cache.c ----------------------------------------------------------===*/

/* Rows [row, row + held + added) of the cache are a segment's; the last are
 * those of this call. */
typedef struct pf_slot {
  int64_t row, held, added;
} pf_slot;
pf_slot pf_slot_of(const pf_call *call, int64_t segment);
/* Fails unless rows [row, row + count) of `input` are rows of the cache. */
prefill_status pf_check_cache_rows(const pf_call *call, const char *input,
                                   int64_t segment, int64_t row, int64_t count);
/* Checks the slots, appends k (rotated) and v to the cache and makes them the
 * whole of it. */
prefill_status pf_append_to_cache(pf_call *call);
/* Takes the new rows that KEPT_ROWS does not name out of the cache again. */
void pf_keep_in_cache(const pf_call *call);

/*===-- contexts.c -------------------------------------------------------===*/

/* Every entry of CONTEXT_SLOTS, before anything is computed. */
prefill_status pf_check_contexts(pf_call *call);
/* Runs a piece on the keys of its own segment and on those of the segment's
 * contexts, and merges the two. */
prefill_status pf_run_with_contexts(const pf_call *call, const pf_piece *own,
                                    int64_t segment, pf_run_fn run,
                                    int64_t *sums);
/* Merges two attentions of n rows in place of the first: row i becomes
 * w o + (1 - w) other, (w, 1 - w) = softmax(lse[i], factor * other_lse[i]). An
 * lse of -inf has weight 0 whatever its row is; two of them leave the row. lse
 * and other_lse are overwritten; scratch: 2 * (n + width) floats. */
void pf_merge_lse(const pf_hot *hot, const pf_rows *o, float *lse,
                  const pf_rows *other, float *other_lse, float factor,
                  int64_t n, int64_t width, int dtype, float *scratch);

/*===-- token_score.c ----------------------------------------------------===*/

/* Writes TOKEN_SCORE of a call (or of a piece of one) whose keys are rotated.
 */
prefill_status pf_score_tokens(pf_call *call);

/*===-- attention.c ------------------------------------------------------===*/

/* prefill_tile_args::skip of head h. Prompts that the plan wants dense, and
 * single rows, are exact. */
float pf_skip_of(const pf_call *call, const pf_batch *batch, int64_t h);

/*===-- exact.c ----------------------------------------------------------===*/

/* Rows that the tile function took for rows without keys, but that have keys
 * with finite biases, as float32 softmax gives them: writes their rows of O and
 * args->lse. memory: pf_exact_bytes, 64-byte aligned. */
void pf_exact_rows(const pf_call *call, const prefill_tile_args *args,
                   void *memory);
int64_t pf_exact_bytes(const pf_call *call);

/*===-- unmasked.c -------------------------------------------------------===*/

/* Whether rows that see no key may occur and are to see all of them. */
static inline bool pf_unmasks(const pf_call *call) {
  return call->may_mask_rows && call->desc->masked_row == PREFILL_MASKED_SCORES;
}
/* Computes rows of `tile` whose lse is -inf as if all keys were visible, and
 * writes their rows of O. tile: q, o, lse and rows are read. memory:
 * pf_unmasked_bytes, 64-byte aligned. */
void pf_unmask_rows(const pf_call *call, int64_t b, int64_t h,
                    const prefill_tile_args *tile, void *memory);
int64_t pf_unmasked_bytes(const pf_call *call);

/*===-- visibility.c -----------------------------------------------------===*/

/* What the masks leave for a tile of rows of batch entry b: blocks
 * [begin, end) hold every visible key; of these, blocks in [full_begin,
 * full_end) need no test of positions or kv_len. */
typedef struct pf_span {
  int64_t position; /* key position of the first row */
  int64_t begin, end, full_begin, full_end;
} pf_span;
pf_span pf_visible_span(const pf_call *call, int64_t b, int64_t tile);

/* Writes the ids of the blocks to visit, full ones first, to out, and returns
 * their number. kept: bitmap over blocks, or NULL for all of the span.
 * bias_state: [blocks] PF_BLOCK_* of the tile's bias, or NULL. */
int64_t pf_list_blocks(const pf_call *call, int64_t b, int64_t row,
                       int64_t rows, const pf_span *span, const uint64_t *kept,
                       const uint8_t *bias_state, uint32_t *out,
                       int64_t *full_count);
/* The number of blocks that pf_list_blocks would give with kept NULL and
 * without bias and segments: the dense work of the tile. */
int64_t pf_count_visible(const pf_call *call, int64_t b, const pf_span *span);

/*===-- logarithm.h, logarithm.c -----------------------------------------===*/

/* e^x for x <= 0. */
double pf_exponential(double x);

/* Floor division for possibly negative a and positive b. */
static inline int64_t pf_floor_div(int64_t a, int64_t b) {
  return a / b - (a % b != 0 && a < 0);
}
static inline int64_t pf_ceil_div(int64_t a, int64_t b) {
  return -pf_floor_div(-a, b);
}
static inline int64_t pf_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t pf_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t pf_round_up(int64_t a, int64_t to) {
  return (a + to - 1) / to * to;
}

#ifdef __cplusplus
}
#endif
#endif
