/*===- cuda_abi.h - Between generated CUDA kernels and their host -*- C -*-===*\
|*
|* A CUDA attention kernel has one parameter: this struct, by value. The code
|* generator (lib/Codegen/CUDA) reads its fields by their offsets;
|* PREFILL_CUDA_ABI changes with every change of layout.
|*
|* Launch: grid (query tiles, query heads, batch), where query tiles =
|* ceil(q_len / block_q); block and dynamic shared memory as the kernel's report
|* says. Tiles are numbered from the last one down, as those of a causal prompt
|* have most to do.
|*
|* Persistent kernels: grid (blocks), as many as there are multiprocessors, or
|* query tiles of all heads and batch entries if these are fewer. Heads of batch
|* entries, numbered batch * heads + head, are worked on heads_together (1 or
|* more) at a time, as many as have K and V in the L2 cache; of these the last
|* tiles of all heads, then the ones before. In this order block b of n takes
|* tiles b, 2 n - 1 - b, 2 n + b, 4 n - 1 - b, ...
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_CUDA_ABI_H
#define PREFILL_CUDA_ABI_H

#include <stdint.h>

#define PREFILL_CUDA_ABI 2

/* Strides are in elements. Elements of a row are adjacent. Rows of Q, K, V are
 * read in 16-byte pieces: their addresses are multiples of 16 bytes, so strides
 * of rows, heads and batches are multiples of 8; those of O are even. */
typedef struct prefill_cuda_attention {
  const void *q, *k, *v;
  void *o;
  float *lse; /* [rows] a head, adjacent; natural log; or NULL */
  int64_t q_batch, q_head, q_row;
  int64_t k_batch, k_head, k_row;
  int64_t v_batch, v_head, v_row;
  int64_t o_batch, o_head, o_row;
  int64_t lse_batch, lse_head;
  int64_t position;                  /* key position of query row 0 */
  int64_t window_left, window_right; /* INT64_MAX/4: unbounded */
  int32_t q_len, kv_len;
  int32_t heads, group; /* query heads; query heads a KV head */
  float scale;
  float softcap;
  int32_t block_rows; /* rows of the lists a head: query tiles */
  int32_t reserved;
  const float *sink;  /* [query heads] */
  /* Ragged batches: [batch], or NULL: kv_len and position hold for all. Lengths
   * below 0 or past kv_len count as these. */
  const int32_t *kv_lengths;
  const int64_t *positions;
  /* Kernels with lists. Row r = (batch * heads + head) * block_rows + tile, where
   * * tile counts query tiles from the first. Blocks block_begin[r] up to
   * block_begin[r + 1] of block_ids, of block_k keys each; the first
   * full_count[r] of them need no mask. Then columns col_begin[r] up to
   * col_begin[r + 1] of col_pos, a multiple of block_k: key numbers, gathered
   * from K and V; INT32_MAX: none. No key twice. */
  const int32_t *block_begin, *full_count, *block_ids;
  const int32_t *col_begin, *col_pos;
  const uint8_t *key_mask; /* [batch][key_mask_batch], nonzero: visible */
  int64_t key_mask_batch;
  int32_t batch, heads_together; /* of persistent kernels */
} prefill_cuda_attention;

/* What brings inputs into the form that attention kernels read: element-wise
 * kernels with blocks of PREFILL_CUDA_INPUT_THREADS threads and no dynamic shared
 * memory, in a module of their own (PREFILL_CUDA_INPUTS). */
#define PREFILL_CUDA_INPUT_THREADS 256
enum prefill_cuda_element { /* the first three are prefill_dtype's */
  PREFILL_CUDA_F32 = 0,
  PREFILL_CUDA_F16 = 1,
  PREFILL_CUDA_BF16 = 2,
  PREFILL_CUDA_BYTE = 3,
  PREFILL_CUDA_I32 = 4,
  PREFILL_CUDA_I64 = 5
};

/* prefill_rotate: rotary embedding (runtime/src/rotary.c) of the rows of Q or K
 * into y, which does not overlap x. Grid: ceil(rows * dim / 2 / threads), heads,
 * batch. Row i uses row position + i of the tables; rows that tables do not have
 * use the nearest one. */
typedef struct prefill_cuda_rotate {
  const void *x;
  void *y;
  const void *cosine, *sine;
  const int64_t *positions; /* [batch], or NULL: position holds for all */
  int64_t x_batch, x_head, x_row;
  int64_t y_batch, y_head, y_row;
  int64_t cosine_batch, cosine_row, sine_batch, sine_row;
  int64_t position; /* of row 0 */
  int32_t rows, dim, rotary_dim;
  int32_t table_rows, width; /* rotary_dim / 2 or rotary_dim */
  int32_t interleaved;       /* nonzero: pairs (2 i, 2 i + 1) */
  int32_t element, table_element; /* prefill_cuda_element */
} prefill_cuda_rotate;

/* prefill_convert: target[r][c] = source[r * source_row + c], as float32 or, for
 * bytes, 1 where it is not 0. Without a source: ones. Grid: ceil(columns /
 * threads), rows. */
typedef struct prefill_cuda_convert {
  const void *source;
  void *target; /* [rows][columns] */
  int64_t source_row;
  int32_t columns;
  int32_t from, to; /* prefill_cuda_element; to F32 or BYTE */
  int32_t reserved;
} prefill_cuda_convert;

/* prefill_fill_rows, behind attention: rows whose log-sum-exp is -infinity saw no
 * key, and get in O what the model gives them (prefill_masked_row), which is not
 * 0. Grid: ceil(q_len / PREFILL_CUDA_FILL_ROWS), heads, batch. */
#define PREFILL_CUDA_FILL_ROWS 32
typedef struct prefill_cuda_fill {
  const void *q, *k, *v; /* as attention read them */
  void *o;
  const float *lse;
  int64_t q_batch, q_head, q_row;
  int64_t k_batch, k_head, k_row;
  int64_t v_batch, v_head, v_row;
  int64_t o_batch, o_head, o_row;
  int64_t lse_batch, lse_head;
  int32_t q_len, keys; /* keys: all, whatever the lengths are */
  int32_t head_dim, v_head_dim, group;
  int32_t masked_row; /* prefill_masked_row */
  int32_t element;    /* PREFILL_CUDA_F16 or _BF16 */
  float scale, softcap;
  int32_t reserved;
} prefill_cuda_fill;

/* The second parameter, by value, of kernels that copy by TMA (their report's
 * schedule says tensorMaps; other kernels do not have it). Three CUtensorMaps,
 * which the host makes with cuTensorMapEncodeTiled once for a set of addresses:
 *
 *   data type    16-bit, as the kernel's (CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, ..)
 *   rank         4, innermost first
 *   dimensions   {head dimension of the tensor, q_len or kv_len, heads, batch}
 *   strides      bytes: {row, head, batch} times 2; multiples of 16
 *   box          {64, block_q for q and block_k for k and v, 1, 1}
 *   others       element strides 1, no interleave, CU_TENSOR_MAP_SWIZZLE_128B,
 *                L2 promotion 256 bytes, out of bounds: zeros (FLOAT_OOB_FILL_NONE)
 *
 * A dimension of one has any legal stride. The dimensions are the true ones:
 * rows past them are read as zeros, others must hold numbers. So kv_lengths is
 * NULL, and a launch with lengths of its own for each batch entry takes the
 * kernel without TMA, as does one without keys: there are no maps of nothing. */
typedef struct __attribute__((aligned(64))) prefill_cuda_tensor_maps {
  uint8_t q[128], k[128], v[128];
} prefill_cuda_tensor_maps;

#endif
