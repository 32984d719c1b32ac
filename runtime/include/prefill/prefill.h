/*===- prefill.h - The C interface of a compiled prefill library --*- C -*-===*\
|*
|* Every library that prefill-opt writes exports these functions. Tensors are
|* DLPack DLTensors; shapes are in elements, strides may be NULL (compact
|* row-major). There is no global state: a context holds everything, functions
|* are thread-safe as long as each thread uses a context of its own, and no
|* exception crosses this boundary.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_PREFILL_H
#define PREFILL_PREFILL_H

#include <dlpack/dlpack.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PREFILL_API __attribute__((visibility("default")))

typedef enum prefill_status {
  PREFILL_OK = 0,
  PREFILL_INVALID_ARGUMENT = 1, /* null pointer, wrong count or attribute */
  PREFILL_INVALID_SHAPE = 2,    /* ranks, dimensions or strides disagree */
  PREFILL_INVALID_TYPE = 3,     /* element type the kernel is not built for */
  PREFILL_OUT_OF_MEMORY = 4,    /* the allocator returned NULL */
  PREFILL_UNSUPPORTED = 5,      /* no kernel variant for this machine */
  PREFILL_NOT_FOUND = 6,        /* no kernel of that name in the library */
  PREFILL_DEVICE_ERROR = 7,     /* the GPU's driver is missing or refused */
} prefill_status;

/* Runs body(data, i) for every i in [0, count), in any order, on any threads,
 * and returns when all are done. */
typedef void (*prefill_parallel_for_fn)(void *host, size_t count,
                                        void (*body)(void *data, size_t i),
                                        void *data);
/* malloc and free of the host; alignment 64 is required of the result. */
typedef void *(*prefill_alloc_fn)(void *host, size_t bytes);
typedef void (*prefill_free_fn)(void *host, void *pointer);

/* Hosts fill the callbacks they have; a zeroed context runs on the calling
 * thread and uses the C library's allocator. */
typedef struct prefill_context {
  uint32_t struct_size; /* sizeof(prefill_context), for later extension */
  uint32_t isa_limit;   /* 0: the best this machine has; else the highest
                           PREFILL_ISA_* level to use (tests) */
  void *host;           /* handed back to the callbacks */
  prefill_parallel_for_fn parallel_for;
  prefill_alloc_fn alloc;
  prefill_free_fn free;
  char message[256]; /* one line that explains the last status */
  /* For tensors on a GPU; read if struct_size covers them. */
  void *stream; /* CUstream or cudaStream_t, NULL: the default one. Kernels are
                   launched there, and have not run when a call returns */
  /* Workspace on the GPU, 256-byte aligned, in the order of the stream: memory
   * may be handed out that work launched there before still uses, and is freed
   * when the kernels that use it may not have run. NULL: the driver's pool
   * (cuMemAllocAsync). */
  prefill_alloc_fn device_alloc;
  prefill_free_fn device_free;
} prefill_context;

enum {
  PREFILL_ISA_X86_64_V2 = 2, /* SSE4.2 */
  PREFILL_ISA_X86_64_V3 = 3, /* AVX2, FMA, F16C */
  PREFILL_ISA_X86_64_V4 = 4, /* AVX-512 F, BW, CD, DQ, VL */
};

/* Operand slots of an attention kernel. A slot that a model does not use is a
 * NULL pointer; trailing ones may be left out. Shapes: b batch, hq query heads,
 * hk KV heads, s query rows, t keys, d head dim, e value head dim. */
typedef enum prefill_attention_input {
  PREFILL_IN_Q = 0,          /* [b,hq,s,d] or [b,s,hq,d] or [b,s,hq*d] */
  PREFILL_IN_K = 1,          /* [b,hk,t,d] or [b,t,hk,d] or [b,t,hk*d] */
  PREFILL_IN_V = 2,          /* the same with e */
  PREFILL_IN_BIAS = 3,       /* bool (true: visible) or the type of q (added):
                                [b|1, hq|1, s|1, t] or lower rank, broadcast */
  PREFILL_IN_KEY_MASK = 4,   /* [b,t] bool, int32 or int64; nonzero: visible */
  PREFILL_IN_KV_LENGTHS = 5, /* [b] or [] int32 or int64: keys at or past it are
                                invisible */
  PREFILL_IN_SINKS = 6,      /* [hq], type of q: an extra logit without value */
  PREFILL_IN_Q_SEGMENT = 7,  /* [b,s] int64: row i sees key j only if equal */
  PREFILL_IN_K_SEGMENT = 8,  /* [b,t] int64 */
  PREFILL_IN_Q_OFFSET = 9,   /* [] or [b] int64: key position of query row 0;
                                absent: as the kernel's alignment says */
  PREFILL_IN_COS = 10,       /* rotary tables [s', w] or [b|1, s', w], w =
                                rotary_dim / 2 or rotary_dim; row p is for key
                                position p, s' >= t */
  PREFILL_IN_SIN = 11,
  PREFILL_IN_Q_POSITIONS = 12, /* [s] or [b|1, s] int64: key position of every
                                  query row, in any order, instead of Q_OFFSET
                                  and the alignment */
  PREFILL_IN_SEGMENT_STARTS =
      13,                   /* [n+1] int64, ascending from 0 to t: keys
                               [starts[i], starts[i+1]) are a prompt of
                               their own, which only its query rows see;
                               without Q_POSITIONS s = t and row i is at
                               position i. Positions count through the
                               pack (a table's rows too). Batch 1; not
                               with BIAS, KEY_MASK, KV_LENGTHS, Q_SEGMENT */
  PREFILL_IN_MODALITY = 14, /* [t] or [b|1, t] integers or bool: what kind of
                               token each key is, for q-boundary and
                               2d-boundary; [s] or [b|1, s] too, then these run
                               dense where there are keys before the rows, as
                               they do with the two inputs above */
  PREFILL_IN_PAST_K =
      15, /* with SEGMENT_STARTS, a KV cache: [1,hk,rows,d] and */
  PREFILL_IN_PAST_V = 16, /* [1,hk,rows,e]. K (rotated) and V are appended to it
                             and keys read from it; see PRESENT_K */
  PREFILL_IN_CACHE_SLOTS = 17, /* [n,2] int64: first cache row of each segment's
                                  keys, and how many of them are there before
                                  the call. Its new rows follow these; segments
                                  do not overlap. Without it the three are
                                  absent */
  PREFILL_IN_SCORE_ROWS = 18, /* [b,s] bool: the query rows that TOKEN_SCORE and
                                 TOKEN_PEAK are of; not with SEGMENT_STARTS */
  PREFILL_IN_CONTEXT_SLOTS = 19, /* with CACHE_SLOTS, [n,2] int64: first cache
                                    row and number of further keys, which all
                                    rows of the segment see by a second softmax
                                    (kernel_abi.h, context_temperature). Not
                                    rows of a segment's own. Kernels for parallel
                                    encoding only; not with SINKS, LSE */
  PREFILL_IN_KEPT_ROWS = 20, /* [m] or [1,m] int64, ascending, with a cache: of
                                the rows of K these are in it after the call,
                                side by side behind those held before; the call
                                itself sees all. Absent: all of them */
  PREFILL_IN_COUNT = 21
} prefill_attention_input;

typedef enum prefill_attention_output {
  PREFILL_OUT_O = 0,   /* as q with e for d, layout as compiled */
  PREFILL_OUT_LSE = 1, /* [b,hq,s] float32, natural log; -inf for masked rows */
  PREFILL_OUT_DENSITY = 2,   /* [b,hq] float32: visited / causal blocks */
  PREFILL_OUT_BLOCK_MAP = 3, /* [b,hq,ceil(s/bq),ceil(t/bk)] uint8: 1 visited,
                                2 visited as gathered columns only */
  PREFILL_OUT_ROTATED_K = 4, /* [b,hk,t,d], type of k: k after the rotation, of
                                kernels that rotate (what a KV cache holds) */
  PREFILL_OUT_PRESENT_K = 5, /* the cache after the call, as PAST_K. In the same
                                memory only the new rows are written; other
                                memory gets a copy of all rows first */
  PREFILL_OUT_PRESENT_V = 6, /* as PAST_V */
  PREFILL_OUT_TOKEN_SCORE = 7, /* [b,t] float32: the mean over the query heads
                                  of the probability that the last visible row
                                  (of each segment) gives to key j; NaN where a
                                  score of that row is no number. Causal kernels
                                  only, not with BIAS, SINKS, Q_SEGMENT, PAST_K.
                                  With SCORE_ROWS the sum of these means over
                                  the rows that it marks. Q_POSITIONS, where the
                                  last row of q is meant, go with neither
                                  SCORE_ROWS nor SEGMENT_STARTS */
  PREFILL_OUT_TOKEN_PEAK = 8, /* [b,t] float32, with SCORE_ROWS: the greatest of
                                 these means; 0 where no row is marked */
  PREFILL_OUT_COUNT = 9
} prefill_attention_output;

/* Tensors on an NVIDIA GPU (kDLCUDA): Q, K, V, O and LSE all on the same one,
 * whose CUDA context is current on the calling thread; KEY_MASK, SINKS, COS and
 * SIN too; KV_LENGTHS and Q_OFFSET on the CPU, where they are read before the
 * call returns, or as int32 and int64 on the GPU. Rows are aligned to 16 bytes
 * (O: 4). The first call in a CUDA context loads the kernel's code; later ones
 * only launch, with workspace in the order of the stream, and never wait, so
 * that CUDA graphs can capture them. */

/* The library's kernels, in order of compilation. */
PREFILL_API size_t prefill_kernel_count(void);
PREFILL_API const char *prefill_kernel_name(size_t index);

/* Runs one kernel by name. Every kernel is also exported under its own name
 * with the arguments after `name` (see the generated header). */
PREFILL_API prefill_status prefill_run(
    prefill_context *context, const char *name, const DLTensor *const *inputs,
    size_t input_count, DLTensor *const *outputs, size_t output_count);

/* A small thread pool for hosts that have none: point parallel_for at
 * prefill_pool_parallel_for and host at the pool. threads counts the caller. */
typedef struct prefill_pool prefill_pool;
PREFILL_API prefill_pool *prefill_pool_create(size_t threads);
PREFILL_API void prefill_pool_destroy(prefill_pool *pool);
PREFILL_API void prefill_pool_parallel_for(void *pool, size_t count,
                                           void (*body)(void *data, size_t i),
                                           void *data);

#ifdef __cplusplus
}
#endif
#endif
