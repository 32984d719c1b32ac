/*===- kernel_abi.h - Between generated code and the runtime ------*- C -*-===*\
|*
|* The code generator (lib/Codegen) emits, per model: tile functions (one per
|* distinct kernel and instruction set) and constant tables of the structs below
|* that tell the runtime (runtime/src) how to call them. Both sides include this
|* file or mirror it; PREFILL_KERNEL_ABI changes with every change of layout.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_KERNEL_ABI_H
#define PREFILL_KERNEL_ABI_H

#include "prefill/prefill.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PREFILL_KERNEL_ABI 8

enum prefill_dtype { PREFILL_F32 = 0, PREFILL_F16 = 1, PREFILL_BF16 = 2 };

/* Where the rows of a head lie. BSHD also covers the 3-D form [b,s,h*d]. */
enum prefill_layout { PREFILL_BHSD = 0, PREFILL_BSHD = 1 };

/* What a query row without any visible key gives. MEAN: the mean of all t
 * values (softmax over equal finite minima); NAN: unguarded -inf masks; SCORES:
 * what it would give if all t keys were visible (minima that swallow no score;
 * not with a bias or segments). Unless it is MEAN, the runtime computes rows that
 * a float bias hides by finite minima itself (exact.c). */
enum prefill_masked_row {
  PREFILL_MASKED_ZERO = 0,
  PREFILL_MASKED_MEAN = 1,
  PREFILL_MASKED_NAN = 2,
  PREFILL_MASKED_SCORES = 3
};

/* Key position of query row i: i + (t - s) with END, i with START, i + offset
 * input with OPERAND. */
enum prefill_alignment {
  PREFILL_ALIGN_END = 0,
  PREFILL_ALIGN_START = 1,
  PREFILL_ALIGN_OPERAND = 2
};

/* Features a tile function is compiled with. */
enum prefill_tile_feature {
  PREFILL_TILE_CAUSAL = 1 << 0,   /* j <= position(i) + window_right (0) */
  PREFILL_TILE_WINDOW = 1 << 1,   /* j >= position(i) - window_left */
  PREFILL_TILE_KEY_MASK = 1 << 2, /* args->key_mask is read */
  PREFILL_TILE_BIAS = 1 << 3,     /* args->bias is read (float32, added) */
  PREFILL_TILE_SOFTCAP = 1 << 4,  /* cap * tanh(s / cap) before masks */
  PREFILL_TILE_SINK = 1 << 5,     /* args->sink joins the denominator */
  PREFILL_TILE_SEGMENTS = 1 << 6, /* args->q_segment, k_segment are read */
  PREFILL_TILE_SKIP = 1 << 7,     /* args->skip is read */
};

/* One call of a tile function: up to block_q query rows of one head against a
 * list of key blocks, then against gathered columns. Pointers point at row 0 of
 * the head (K, V) or of the tile (Q, O); strides are in elements between rows;
 * elements of a row are adjacent. Exactly rows rows of Q are read and of O
 * written; exactly the keys < kv_len of a block are read.
 *
 * A row without visible keys is 0 with lse -inf (its sink with SINK). A NaN or
 * +inf score of a visible key makes the row NaN; scores below -2e38 (-3e38 with
 * a bias), so any -inf bias, are invisible; others may be as large as fp32
 * allows. V of an invisible key of a visited block may be multiplied by 0, or
 * not at all: an infinity there may show. Tile functions flush subnormal numbers
 * and restore the caller's MXCSR. */
typedef struct prefill_tile_args {
  const void *q, *k, *v;
  void *o;
  float *lse; /* [rows], natural log, -inf where no key is visible; or NULL */
  int64_t q_stride, k_stride, v_stride, o_stride;
  int64_t rows;       /* 1 .. block_q */
  int64_t position;   /* key position of tile row 0; may be negative */
  int64_t kv_len;     /* number of keys; keys past it are invisible */
  int64_t window_left, window_right; /* INT64_MAX/4: unbounded */
  float scale;        /* of q.k, as in the model (not yet times log2 e) */
  float softcap;      /* with SOFTCAP */
  float sink;         /* with SINK: the head's logit */
  float skip;         /* with SKIP: log2 of a probability, -inf for none. A tile of
                         keys is left out, but for the look at its scores, unless
                         one row's largest score there is at least 2^skip of the
                         largest that the row has seen before (as powers, the
                         sink included) or is no number */
  const uint32_t *blocks; /* block ids (block_k keys each), no id twice: first
                             the full ones, ascending, then the others,
                             ascending (with a window a partial block may have a
                             lower id than a full one) */
  int64_t block_count;
  int64_t full_count; /* the first full_count blocks need no mask at all: wholly
                         visible to all rows, wholly below kv_len, bias 0 */
  const void *col_k, *col_v; /* gathered rows, compact [col_count][d] / [e],
                                type as K and V; readable up to the next
                                multiple of block_k rows (zeros or other rows of
                                K and V, as at positions INT32_MAX) */
  const int32_t *col_pos; /* position of each gathered key (for causal and window
                             tests); INT32_MAX: skip this column. Padded with
                             INT32_MAX to a multiple of block_k; a whole tile
                             of block_k columns may be INT32_MAX. Key mask and
                             kv_len are applied here already; bias and segments
                             never occur together with columns */
  int64_t col_count;
  const uint8_t *key_mask; /* [kv_len], nonzero: visible */
  const float *bias;       /* of (tile row 0, key 0); may hold -inf */
  int64_t bias_row_stride, bias_key_stride; /* 0: broadcast; key stride 0 or 1 */
  const int32_t *q_segment, *k_segment; /* [rows], [kv_len] */
  void *workspace; /* workspace_bytes, 64-byte aligned, private to this call */
} prefill_tile_args;
typedef void (*prefill_tile_fn)(const prefill_tile_args *args);

/* Scores of up to block_q rows against keys [key_begin, key_end): raw dot
 * products times scale, natural units, no mask, no softcap, float32, key-major:
 * out[(j - key_begin) * block_q + i]. Rows >= rows give 0. */
typedef struct prefill_score_args {
  const void *q, *k;
  int64_t q_stride, k_stride, rows, key_begin, key_end;
  float scale;
  float *out;
  void *workspace;
} prefill_score_args;
typedef void (*prefill_score_fn)(const prefill_score_args *args);

/* One instruction set's build of a kernel. */
typedef struct prefill_tile_variant {
  uint32_t isa; /* PREFILL_ISA_* */
  uint32_t vector_bytes;
  uint64_t workspace_bytes;
  prefill_tile_fn attention;
  prefill_score_fn score; /* NULL: the runtime's portable loop */
} prefill_tile_variant;

/* How one query head is made sparse. Token counts are MInference's; a budget
 * given as a density (share of causal blocks) overrides them when > 0. */
enum prefill_pattern {
  PREFILL_PATTERN_DENSE = 0,
  PREFILL_PATTERN_A_SHAPE = 1,        /* init, local */
  PREFILL_PATTERN_TRI_SHAPE = 2,      /* init, local, last */
  PREFILL_PATTERN_VERTICAL_SLASH = 3, /* vertical, slash, last | density, last */
  PREFILL_PATTERN_BLOCK_SPARSE = 4, /* top_k | density | top_p (pooled q.k) */
  PREFILL_PATTERN_XATTENTION = 5,   /* stride, top_p (antidiagonal sums) */
  PREFILL_PATTERN_SAMPLED = 6,      /* stride, top_p, local, values (mass of
                                       sampled rows) */
  PREFILL_PATTERN_SALE = 7, /* bits, init, local, threshold | top_p (quantised) */
  PREFILL_PATTERN_FLEXPREFILL = 8, /* top_p (gamma), threshold (tau), min_budget
                                      (tokens), last */
  PREFILL_PATTERN_INFLLM_V2 = 9,   /* init, local, top_k */
  PREFILL_PATTERN_STRIDED = 10,    /* init, local, stride (blocks) */
  PREFILL_PATTERN_GRID = 11, /* stride (tokens) | top_p, init, last; vertical,
                                slash, horizontal: lines, 0 or 1 */
  PREFILL_PATTERN_Q_BOUNDARY = 12,  /* vertical, slash, init, local, last; of
                                       each modality of rows */
  PREFILL_PATTERN_2D_BOUNDARY = 13, /* and of each pair with one of keys */
};
typedef struct prefill_head_plan {
  uint32_t pattern;
  int32_t init, local, last; /* tokens; last: query rows for VERTICAL_SLASH's
                                estimate, dense last rows for TRI_SHAPE */
  int32_t vertical, slash;   /* tokens */
  int32_t top_k;             /* blocks per row */
  float density;             /* 0: use the counts */
  int32_t stride;            /* rows and keys a strided score is made of */
  float top_p;               /* share of the estimated mass to keep, (0, 1] */
  float threshold;           /* SALE: of a probability; FLEXPREFILL: of the
                                Jensen-Shannon distance */
  int32_t min_budget;        /* tokens a row keeps at least */
  int32_t bits;              /* of quantised queries and keys */
  int32_t values;            /* nonzero: mass is weighed by how far a block's mean
                                value lies from the row's output */
  float similarity; /* 0: off; else blocks whose keys or queries are less alike
                       than this (mean cosine) are kept, SpargeAttn's guard */
  int32_t horizontal; /* GRID: nonzero: rows of the line's phase are dense */
  float skip; /* 0: off; else tiles whose probabilities are all below this share
                 of the largest so far are left out, see prefill_tile_args */
} prefill_head_plan;
typedef struct prefill_plan {
  int32_t dense_below; /* keys; shorter prompts run dense. -1: by cost function */
  int32_t head_count;  /* = q_heads */
  const prefill_head_plan *heads;
} prefill_plan;

/* Code for NVIDIA GPUs; cuda_abi.h has the parameters of each kind. */
enum prefill_cuda_kind {
  PREFILL_CUDA_DENSE = 0, /* attention, all that the masks leave */
  PREFILL_CUDA_INPUTS = 1, /* a module with prefill_rotate, prefill_convert and
                              prefill_fill_rows */
  PREFILL_CUDA_LISTS = 2,  /* attention, what lists name */
  PREFILL_CUDA_INDEX = 3,  /* a module with prefill_index_*, cuda_index.h */
  PREFILL_CUDA_ROW_SUMS = 4, /* its <sums rows> */
  PREFILL_CUDA_LINE_SUMS = 5, /* its <sums columns> */
  /* As DENSE, with copies by TMA: what it needs is in cuda_abi.h at
   * prefill_cuda_tensor_maps, where it is missing DENSE runs */
  PREFILL_CUDA_DENSE_TMA = 6,
  /* As DENSE_TMA, for launches with more tiles of query rows than the GPU has
   * multiprocessors: each of these takes one tile after the other */
  PREFILL_CUDA_DENSE_PERSISTENT = 7
};
enum prefill_cuda_format { PREFILL_CUDA_CUBIN = 0, PREFILL_CUDA_PTX = 1 };
typedef struct prefill_cuda_image {
  const char *function; /* in the module; of INPUTS a name for people */
  int32_t kind, format;
  int32_t arch;       /* 10 * major + minor compute capability. A cubin runs on
                         this and later minor ones, PTX on this and all later */
  int32_t exact_arch; /* nonzero: on this one alone (sm_90a) */
  int32_t block_q, block_k, threads, shared_bytes;
  const void *data; /* zlib; PTX ends with a zero byte after decompression */
  uint64_t bytes, code_bytes; /* compressed and not */
} prefill_cuda_image;

/* One kernel of the library. */
typedef struct prefill_attention_desc {
  uint32_t abi; /* PREFILL_KERNEL_ABI */
  uint32_t features;
  const char *name;
  int32_t dtype;
  int32_t q_layout, k_layout, v_layout, o_layout; /* prefill_layout */
  int32_t o_rank;                                 /* 3 or 4 */
  int32_t q_heads, kv_heads, head_dim, v_head_dim;
  int32_t block_q, block_k;
  int64_t window_left, window_right; /* as in prefill_tile_args */
  float scale;   /* NaN: 1/sqrt(head_dim) */
  float softcap; /* 0: none */
  int32_t masked_row, alignment;
  int32_t rotary; /* 0: none; 1: rotate halves; 2: interleaved pairs (COS, SIN
                     are applied to the first rotary_dim elements of q and k
                     before the product). Row p of a table is for key position
                     p; its width is rotary_dim / 2 or rotary_dim */
  int32_t rotary_dim;
  const prefill_plan *plan; /* NULL: dense */
  const prefill_tile_variant *variants;
  int64_t variant_count; /* best first */
  const prefill_cuda_image *const *cuda_images;
  int64_t cuda_image_count; /* 0: not for GPUs; best first */
  /* Of CONTEXT_SLOTS, both positive; 0: the kernel does not take it. With o_c,
   * l_c the attention over the contexts' keys with scale / context_temperature
   * and o, l the one over the segment's own, a row gives w o_c + (1 - w) o with
   * (w, 1 - w) = softmax(context_scale * context_temperature * l_c, l). */
  float context_temperature, context_scale;
  /* Of everything that the kernel computes, by the compiler; a model's node has
   * it, too (ort_custom_op.c). */
  uint64_t digest;
} prefill_attention_desc;

/* Emitted by the code generator, read by the runtime. */
extern const prefill_attention_desc *const prefill_model_kernels[];
extern const int64_t prefill_model_kernel_count;

/* What a kernel's own exported symbol calls. */
prefill_status prefill_attention(const prefill_attention_desc *desc,
                                 prefill_context *context,
                                 const DLTensor *const *inputs,
                                 size_t input_count, DLTensor *const *outputs,
                                 size_t output_count);

#ifdef __cplusplus
}
#endif
#endif
