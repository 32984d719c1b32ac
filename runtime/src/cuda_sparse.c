/*===- cuda_sparse.c - What a launch visits, found on the GPU -----*- C -*-===*\
|*
|* Kernels with a plan: prefill/cuda_index.h's launches score, select and build
|* lists from Q and K, and the attention kernel with lists reads them. The host
|* waits for nothing. Heads whose pattern the index kernels do not know visit
|* everything; a plan of such heads alone runs the dense kernel.
|*
\*===----------------------------------------------------------------------===*/
#include "cuda.h"
#include "prefill/cuda_abi.h"
#include "prefill/cuda_index.h"

/* Plans that leave the choice to the CPU's cost function (dense_below -1) are
 * sparse from here on. Nobody has measured it. */
enum { DENSE_BELOW = 2048 };
/* Single keys of a head with a density: there is no bound but all keys, and
 * each costs a workspace of one number a row of tiles. Beyond this blocks are
 * visited whole. */
enum { FEW_COLUMNS = 4096 };
/* MInference's constant: keys that are always kept. */
enum { FORCED_COLUMNS = 30 };

static int32_t dense_below(const prefill_plan *plan) {
  return plan->dense_below < 0 ? DENSE_BELOW : plan->dense_below;
}

/* Room for single keys of a head, of `keys`. */
static int64_t most_columns(const prefill_plan *plan, int64_t keys) {
  int64_t most = 0;
  for (int32_t h = 0; h < plan->head_count; ++h) {
    const prefill_head_plan *head = &plan->heads[h];
    if (head->pattern != PREFILL_PATTERN_VERTICAL_SLASH)
      continue;
    most = pf_max(most, pf_max(head->vertical, FORCED_COLUMNS));
    if (head->density > 0)
      most = pf_max(most, FEW_COLUMNS);
  }
  return pf_min(most, keys);
}

prefill_status pf_cuda_prepare_sparse(const pf_call *call,
                                      const pf_cuda_device *device,
                                      pf_cuda_sparse *sparse) {
  const prefill_plan *plan = call->desc->plan;
  sparse->patterns = 0;
  if (!plan || !call->causal || call->s < 2 || call->t < dense_below(plan) ||
      !pf_cuda_image_of(call, device, PREFILL_CUDA_LISTS))
    return PREFILL_OK;
  prefill_status status;
  const uint32_t patterns =
      prefill_cuda_index_needs(plan->heads, plan->head_count);
  if (!patterns)
    return PREFILL_OK;
  if ((status = pf_cuda_find_kernel(call, device, PREFILL_CUDA_LISTS, NULL,
                                    &sparse->attention)) ||
      (status = pf_cuda_find_plan(call, device, &sparse->plans)))
    return status;
  sparse->patterns = patterns;
  return PREFILL_OK;
}

prefill_status pf_cuda_build_lists(const pf_call *call,
                                   const pf_cuda_device *device,
                                   const pf_cuda_sparse *sparse,
                                   pf_cuda_workspace *workspace, int64_t count,
                                   prefill_cuda_attention *args) {
  const prefill_plan *plan = call->desc->plan;
  prefill_cuda_index x = {.q = args->q,
                          .k = args->k,
                          .v = args->v,
                          .q_batch = args->q_batch,
                          .q_head = args->q_head,
                          .q_row = args->q_row,
                          .k_batch = args->k_batch,
                          .k_head = args->k_head,
                          .k_row = args->k_row,
                          .v_batch = args->v_batch,
                          .v_head = args->v_head,
                          .v_row = args->v_row,
                          .position = args->position,
                          .window_left = args->window_left,
                          .q_len = args->q_len,
                          .kv_len = args->kv_len,
                          .batch = (int32_t)count,
                          .heads = args->heads,
                          .group = args->group,
                          .head_dim = (int32_t)call->d,
                          .v_head_dim = (int32_t)call->e,
                          .dtype = call->desc->dtype,
                          .block_q = sparse->attention.image->block_q,
                          .block_k = sparse->attention.image->block_k,
                          .scale = args->scale,
                          .softcap = args->softcap,
                          .dense_below = dense_below(plan),
                          .kv_lengths = args->kv_lengths,
                          .positions = args->positions,
                          .key_mask = args->key_mask,
                          .key_mask_batch = args->key_mask_batch,
                          .plans = sparse->plans};
  /* Lists are counted in int32. */
  const int64_t rows =
      pf_ceil_div(x.q_len, x.block_q) * (int64_t)x.heads * count;
  const int64_t most = most_columns(plan, args->kv_len);
  prefill_cuda_index_rooms(
      &x, pf_min(most, pf_max(INT32_MAX / rows - x.block_k, 0)));
  if (x.block_room > INT32_MAX)
    return pf_fail(call, PREFILL_UNSUPPORTED,
                   "%lld blocks to list at most, more than 2^31: run fewer "
                   "prompts at a time, or dense",
                   (long long)x.block_room);
  prefill_status status = PREFILL_OK;
  const int64_t bytes = prefill_cuda_index_layout(&x, sparse->patterns, NULL);
  void *memory = pf_cuda_take(call, device, workspace, bytes, 1, &status);
  if (status)
    return status;
  prefill_cuda_index_layout(&x, sparse->patterns, memory);
  prefill_cuda_index_launch launches[PREFILL_CUDA_INDEX_LAUNCHES];
  const int total = prefill_cuda_index_launches(&x, sparse->patterns, launches);
  for (int i = 0; i < total; ++i) {
    const prefill_cuda_index_launch *next = &launches[i];
    const int kind = next->kernel ? PREFILL_CUDA_INDEX
                     : next->sums ? PREFILL_CUDA_LINE_SUMS
                                  : PREFILL_CUDA_ROW_SUMS;
    pf_cuda_kernel kernel;
    if ((status =
             pf_cuda_find_kernel(call, device, kind, next->kernel, &kernel)) ||
        (status = pf_cuda_launch(
             call, device, &kernel, next->kernel ? next->kernel : "sums kernel",
             next->grid[0], next->grid[1], next->grid[2], &x)))
      return status;
  }
  args->block_begin = x.block_begin;
  args->full_count = x.full_count;
  args->block_ids = x.block_ids;
  args->col_begin = x.col_begin;
  args->col_pos = x.col_pos;
  return PREFILL_OK;
}
