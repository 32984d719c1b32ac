/*===- cuda_fill.c - Rows without keys on a GPU -------------------*- C -*-===*\
|*
|* Attention kernels give 0 for a row that sees no key. Models that want another
|* number there (enum prefill_masked_row) get it by a launch behind attention,
|* which finds such rows by their log-sum-exp; so there is always one, in
|* workspace where the host did not ask for it.
|*
\*===----------------------------------------------------------------------===*/
#include "cuda.h"
#include "prefill/cuda_abi.h"

/* Whether any row may see no key, as far as the host knows. */
static bool may_be_empty(const pf_call *call, const DLTensor *const *inputs,
                         const prefill_cuda_attention *args) {
  return call->t > 0 && (inputs[PREFILL_IN_KEY_MASK] ||
                         inputs[PREFILL_IN_KV_LENGTHS] || call->window ||
                         (call->causal &&
                          (inputs[PREFILL_IN_Q_OFFSET] || args->position < 0)));
}

prefill_status pf_cuda_prepare_fill(const pf_call *call,
                                    const pf_cuda_device *device,
                                    const DLTensor *const *inputs,
                                    pf_cuda_workspace *workspace,
                                    prefill_cuda_attention *args) {
  workspace->fill.image = NULL;
  if (call->desc->masked_row == PREFILL_MASKED_ZERO ||
      !may_be_empty(call, inputs, args))
    return PREFILL_OK;
  prefill_status status = pf_cuda_find_kernel(
      call, device, PREFILL_CUDA_INPUTS, "prefill_fill_rows", &workspace->fill);
  if (status || args->lse)
    return status;
  args->lse =
      pf_cuda_take(call, device, workspace, call->b * call->hq * call->s,
                   sizeof(float), &status);
  args->lse_head = call->s;
  args->lse_batch = call->hq * call->s;
  return status;
}

prefill_status pf_cuda_fill_rows(const pf_call *call,
                                 const pf_cuda_device *device,
                                 const pf_cuda_workspace *workspace,
                                 const prefill_cuda_attention *args,
                                 int64_t count) {
  if (!workspace->fill.image)
    return PREFILL_OK;
  prefill_cuda_fill fill = {.q = args->q,
                            .k = args->k,
                            .v = args->v,
                            .o = args->o,
                            .lse = args->lse,
                            .q_batch = args->q_batch,
                            .q_head = args->q_head,
                            .q_row = args->q_row,
                            .k_batch = args->k_batch,
                            .k_head = args->k_head,
                            .k_row = args->k_row,
                            .v_batch = args->v_batch,
                            .v_head = args->v_head,
                            .v_row = args->v_row,
                            .o_batch = args->o_batch,
                            .o_head = args->o_head,
                            .o_row = args->o_row,
                            .lse_batch = args->lse_batch,
                            .lse_head = args->lse_head,
                            .q_len = args->q_len,
                            .keys = (int32_t)call->t,
                            .head_dim = (int32_t)call->d,
                            .v_head_dim = (int32_t)call->e,
                            .group = args->group,
                            .masked_row = call->desc->masked_row,
                            .element = call->desc->dtype,
                            .scale = args->scale,
                            .softcap = args->softcap};
  return pf_cuda_launch(call, device, &workspace->fill, "prefill_fill_rows",
                        pf_ceil_div(call->s, PREFILL_CUDA_FILL_ROWS), call->hq,
                        count, &fill);
}
