/*===- cuda_tma.c - Tensor maps of a launch -----------------------*- C -*-===*\
|*
|* Attention kernels that copy by TMA read Q, K and V through tensor maps. The
|* driver encodes them on the host: no memory, no stream, and the launch takes
|* them by value, so a CUDA graph can hold it. What cannot be described so is
|* launched with the kernel that copies by cp.async.
|*
\*===----------------------------------------------------------------------===*/
#include "cuda.h"
#include "prefill/cuda_abi.h"

/* Elements in 128 bytes, the width of a box and of the swizzle. */
enum { BOX_WIDTH = 64 };
/* What the driver takes: strides below 2^40 bytes that are multiples of 16. */
#define STRIDE_LIMIT ((int64_t)1 << 40)
enum { STRIDE_UNIT = 16, ELEMENT = 2 };

/* Q, K or V: rows of `size` elements; counts and strides (in elements) of rows,
 * heads and batch entries. */
typedef struct tensor {
  const void *data;
  int64_t size;
  int64_t counts[3], strides[3];
} tensor;

static bool encode(const pf_cuda_driver *cuda, int32_t dtype, const tensor *x,
                   int32_t box_rows, uint8_t *map) {
  const unsigned box[] = {BOX_WIDTH, (unsigned)box_rows, 1, 1},
                 steps[] = {1, 1, 1, 1};
  uint64_t dims[4] = {(uint64_t)x->size}, strides[3];
  for (int i = 0; i < 3; ++i) {
    /* Nobody steps along a dimension of one: its stride may be anything. */
    const int64_t stride =
        x->counts[i] > 1 ? x->strides[i] : x->size; /* in elements */
    /* Whether entries may share memory (stride 0) is not said anywhere. */
    if (x->counts[i] < 1 || stride <= 0 || stride >= STRIDE_LIMIT / ELEMENT ||
        stride * ELEMENT % STRIDE_UNIT)
      return false;
    dims[i + 1] = (uint64_t)x->counts[i];
    strides[i] = (uint64_t)(stride * ELEMENT);
  }
  return (uintptr_t)x->data % STRIDE_UNIT == 0 &&
         !cuda->TensorMapEncodeTiled(
             map,
             dtype == PREFILL_BF16 ? CU_TENSOR_MAP_BFLOAT16
                                   : CU_TENSOR_MAP_FLOAT16,
             4, (void *)(uintptr_t)x->data, dims, strides, box, steps,
             /*interleave=*/0, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_256B, /*fill=*/0);
}

/* Sets args for a persistent kernel with tiles of block_q rows; how many thread
 * blocks it gets, or 0 if it has no advantage: a block's first tile costs what
 * one of the other kernel's does. */
static int64_t plan_blocks(const pf_call *call, const pf_cuda_device *device,
                           int64_t count, int32_t block_q,
                           prefill_cuda_attention *args) {
  const pf_cuda_driver *cuda = device->driver;
  int processors = 0;
  if (cuda->DeviceGetAttribute(&processors, CU_MULTIPROCESSOR_COUNT,
                               device->number))
    return 0;
  const int64_t heads = call->hq * count,
                tiles = heads * pf_ceil_div(call->s, block_q);
  /* The kernel's numbers of tiles are int32, and one round goes past the last.
   */
  if (processors < 1 || tiles <= processors || tiles > INT32_MAX / 2)
    return 0;
  /* All heads together: in smaller groups, for the sake of the L2 cache, blocks
   * would not have equally much to do (benchmarks/cuda_estimate.py). */
  args->batch = (int32_t)count;
  args->heads_together = (int32_t)heads;
  return processors;
}

/* Maps for tiles of the image's size. */
static bool describe(const pf_call *call, const pf_cuda_driver *cuda,
                     const prefill_cuda_attention *args, int64_t count,
                     const prefill_cuda_image *image,
                     prefill_cuda_tensor_maps *maps) {
  const tensor q = {args->q,
                    call->d,
                    {args->q_len, call->hq, count},
                    {args->q_row, args->q_head, args->q_batch}},
               k = {args->k,
                    call->d,
                    {args->kv_len, call->hk, count},
                    {args->k_row, args->k_head, args->k_batch}},
               v = {args->v,
                    call->e,
                    {args->kv_len, call->hk, count},
                    {args->v_row, args->v_head, args->v_batch}};
  const int32_t dtype = call->desc->dtype;
  return encode(cuda, dtype, &q, image->block_q, maps->q) &&
         encode(cuda, dtype, &k, image->block_k, maps->k) &&
         encode(cuda, dtype, &v, image->block_k, maps->v);
}

prefill_status pf_cuda_prefer_tma(const pf_call *call,
                                  const pf_cuda_device *device,
                                  prefill_cuda_attention *args, int64_t count,
                                  pf_cuda_kernel *kernel,
                                  prefill_cuda_tensor_maps *maps,
                                  int64_t *blocks) {
  const pf_cuda_driver *cuda = device->driver;
  *blocks = 0;
  /* Zeros begin where the tensor ends: at one key for all batch entries. */
  if (!cuda->TensorMapEncodeTiled || args->kv_lengths)
    return PREFILL_OK;
  static const int kinds[] = {PREFILL_CUDA_DENSE_PERSISTENT,
                              PREFILL_CUDA_DENSE_TMA};
  for (int i = cuda->persistent ? 0 : 1; i < 2; ++i) {
    pf_cuda_kernel found;
    if (!(found.image = pf_cuda_image_of(call, device, kinds[i])))
      continue;
    const int64_t wanted =
        i == 0 ? plan_blocks(call, device, count, found.image->block_q, args)
               : 0;
    if ((i == 0 && !wanted) ||
        !describe(call, cuda, args, count, found.image, maps))
      continue;
    *blocks = wanted;
    return pf_cuda_find_kernel(call, device, kinds[i], NULL, kernel);
  }
  return PREFILL_OK;
}
