/*===- check.c - Arguments of a kernel, before memory is touched --*- C -*-===*\
|*
|* Every tensor is looked at here (one alone in check_tensor.c, attention's
|* operands in check_operands.c, inputs about rows in check_rows.c) and nowhere
|* else: presence, device, element type, rank, dimensions, strides, alignment.
|* What leaves these files is pointers and strides, of which none can overflow.
|* Messages are one line:
|*   kernel 'name': input K: expected [2,3,?,64], got [2,4,128,64]
|*
\*===----------------------------------------------------------------------===*/
#include "check.h"
#include <math.h>

/* The description comes from the code generator; a damaged one must not lead
 * anywhere. */
static prefill_status check_desc(pf_call *call) {
  const prefill_attention_desc *desc = call->desc;
  if (desc->abi != PREFILL_KERNEL_ABI)
    return pf_fail(call, PREFILL_UNSUPPORTED,
                   "built for kernel ABI %u, the runtime has %d", desc->abi,
                   PREFILL_KERNEL_ABI);
  const bool sane =
      desc->dtype >= PREFILL_F32 && desc->dtype <= PREFILL_BF16 &&
      desc->q_heads > 0 && desc->kv_heads > 0 &&
      desc->q_heads % desc->kv_heads == 0 && desc->head_dim > 0 &&
      desc->v_head_dim > 0 && desc->block_q > 0 && desc->block_k > 0 &&
      desc->block_q <= PF_MAX_BLOCK && desc->block_k <= PF_MAX_BLOCK &&
      (desc->o_rank == 4 || (desc->o_rank == 3 && desc->o_layout)) &&
      desc->window_left >= 0 && desc->window_right >= 0 &&
      desc->variant_count >= 0 && (desc->variants || !desc->variant_count) &&
      (!desc->rotary || (desc->rotary_dim > 0 && desc->rotary_dim % 2 == 0 &&
                         desc->rotary_dim <= desc->head_dim)) &&
      (desc->masked_row != PREFILL_MASKED_SCORES ||
       !(desc->features & (PREFILL_TILE_BIAS | PREFILL_TILE_SEGMENTS))) &&
      (!desc->plan ||
       (desc->plan->head_count == desc->q_heads && desc->plan->heads));
  if (!sane)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "the kernel's description is inconsistent");
  call->hq = desc->q_heads;
  call->hk = desc->kv_heads;
  call->group = call->hq / call->hk;
  call->d = desc->head_dim;
  call->e = desc->v_head_dim;
  call->bq = desc->block_q;
  call->bk = desc->block_k;
  call->element = desc->dtype == PREFILL_F32 ? 4 : 2;
  call->causal = desc->features & PREFILL_TILE_CAUSAL;
  call->window = desc->features & PREFILL_TILE_WINDOW;
  /* Bounds longer than any sequence are none. A causal kernel without a
   * number is an ordinary causal one. */
  call->window_left =
      desc->window_left > PF_MAX_LENGTH ? PF_UNBOUNDED : desc->window_left;
  call->window_right =
      desc->window_right > PF_MAX_LENGTH
          ? (desc->window_right >= PF_UNBOUNDED ? 0 : PF_MAX_LENGTH)
          : desc->window_right;
  if (!call->causal)
    call->window_right = PF_UNBOUNDED;
  if (!call->window || call->window_left == PF_UNBOUNDED) {
    call->window_left = PF_UNBOUNDED;
    call->window = false;
  }
  call->scale =
      isnan(desc->scale) ? 1.0f / __builtin_sqrtf((float)call->d) : desc->scale;
  return PREFILL_OK;
}

/* The best variant for this machine and the context's limit. */
static prefill_status choose_variant(pf_call *call) {
  uint32_t isa = pf_cpu_isa();
  uint32_t limit = call->context->isa_limit;
  if (limit && limit < isa)
    isa = limit;
  call->hot = pf_hot_for(isa);
  for (int64_t i = 0; i < call->desc->variant_count; ++i)
    if (call->desc->variants[i].isa <= isa) {
      call->variant = &call->desc->variants[i];
      return PREFILL_OK;
    }
  return pf_fail(call, PREFILL_UNSUPPORTED,
                 "no variant for this machine (x86-64-v%u)", isa);
}

prefill_status pf_check(pf_call *call, const DLTensor *const *inputs,
                        size_t input_count, DLTensor *const *outputs,
                        size_t output_count) {
  prefill_status status;
  if ((status = check_desc(call)))
    return status;
  if (input_count > PREFILL_IN_COUNT || output_count > PREFILL_OUT_COUNT)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "expected at most %d inputs and %d outputs, got %zu and "
                   "%zu",
                   (int)PREFILL_IN_COUNT, (int)PREFILL_OUT_COUNT, input_count,
                   output_count);
  if ((input_count && !inputs) || (output_count && !outputs))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "expected a list of tensors, got null");
  const DLTensor *q = input_count ? inputs[PREFILL_IN_Q] : NULL;
  call->cuda = q && q->device.device_type == kDLCUDA;
  call->device = call->cuda ? q->device.device_id : 0;
  if (!call->cuda && (status = choose_variant(call)))
    return status;
  pf_subject in[PREFILL_IN_COUNT], out[PREFILL_OUT_COUNT];
  for (int i = 0; i < PREFILL_IN_COUNT; ++i)
    in[i] = (pf_subject){.call = call,
                         .slot = i,
                         .tensor = (size_t)i < input_count ? inputs[i] : NULL};
  for (int i = 0; i < PREFILL_OUT_COUNT; ++i)
    out[i] =
        (pf_subject){.call = call,
                     .slot = i,
                     .output = true,
                     .tensor = (size_t)i < output_count ? outputs[i] : NULL};
  for (int i = PREFILL_IN_Q; i <= PREFILL_IN_V; ++i)
    if (!in[i].tensor)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "input %s: expected a tensor, got null",
                     pf_input_names[i]);
  if (!out[PREFILL_OUT_O].tensor)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "output O: expected a tensor, got null");

  const prefill_attention_desc *desc = call->desc;
  call->b = call->s = call->t = -1;
  if ((status = pf_check_rows(&in[PREFILL_IN_Q], desc->q_layout, call->hq,
                              call->d, 0, &call->b, &call->s, &call->q)) ||
      (status = pf_check_rows(&in[PREFILL_IN_K], desc->k_layout, call->hk,
                              call->d, 0, &call->b, &call->t, &call->k)) ||
      (status = pf_check_rows(&in[PREFILL_IN_V], desc->v_layout, call->hk,
                              call->e, 0, &call->b, &call->t, &call->v)) ||
      (status =
           pf_check_rows(&out[PREFILL_OUT_O], desc->o_layout, call->hq, call->e,
                         desc->o_rank, &call->b, &call->s, &call->o)))
    return status;
  call->tiles = pf_ceil_div(call->s, call->bq);
  call->blocks = pf_ceil_div(call->t, call->bk);
  /* b * hq * tiles items are counted in 64 bits. */
  int64_t items;
  if (__builtin_mul_overflow(call->b, call->hq * (call->tiles + 1), &items))
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input Q: dimensions overflow the address space");

#define OPTIONAL_INPUT(slot, check)                                            \
  if (in[slot].tensor && (status = (check)))                                   \
  return status
  OPTIONAL_INPUT(PREFILL_IN_BIAS,
                 pf_check_bias(&in[PREFILL_IN_BIAS], &call->bias));
  OPTIONAL_INPUT(PREFILL_IN_KEY_MASK,
                 pf_check_mask(&in[PREFILL_IN_KEY_MASK], call->t,
                               PREFILL_TILE_KEY_MASK, true));
  OPTIONAL_INPUT(PREFILL_IN_KV_LENGTHS,
                 pf_check_per_batch(&in[PREFILL_IN_KV_LENGTHS]));
  OPTIONAL_INPUT(PREFILL_IN_SINKS, pf_check_sinks(&in[PREFILL_IN_SINKS]));
  OPTIONAL_INPUT(PREFILL_IN_Q_SEGMENT,
                 pf_check_mask(&in[PREFILL_IN_Q_SEGMENT], call->s,
                               PREFILL_TILE_SEGMENTS, false));
  OPTIONAL_INPUT(PREFILL_IN_K_SEGMENT,
                 pf_check_mask(&in[PREFILL_IN_K_SEGMENT], call->t,
                               PREFILL_TILE_SEGMENTS, false));
  OPTIONAL_INPUT(PREFILL_IN_Q_OFFSET,
                 pf_check_per_batch(&in[PREFILL_IN_Q_OFFSET]));
  OPTIONAL_INPUT(PREFILL_IN_COS,
                 pf_check_rotary(&in[PREFILL_IN_COS], &call->cosine));
  OPTIONAL_INPUT(PREFILL_IN_SIN,
                 pf_check_rotary(&in[PREFILL_IN_SIN], &call->sine));
  OPTIONAL_INPUT(PREFILL_IN_MODALITY,
                 pf_check_modality(&in[PREFILL_IN_MODALITY]));
#undef OPTIONAL_INPUT
  for (int i = PREFILL_OUT_LSE; i <= PREFILL_OUT_BLOCK_MAP; ++i)
    if (out[i].tensor && (status = pf_check_statistics(&out[i])))
      return status;
  if (out[PREFILL_OUT_ROTATED_K].tensor) {
    if (!desc->rotary)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "output ROTATED_K: the kernel does not rotate");
    if ((status =
             pf_check_rows(&out[PREFILL_OUT_ROTATED_K], PREFILL_BHSD, call->hk,
                           call->d, 4, &call->b, &call->t, &call->rotated_k)))
      return status;
  }

  if (out[PREFILL_OUT_TOKEN_SCORE].tensor &&
      (status = pf_check_token_score(&out[PREFILL_OUT_TOKEN_SCORE], in)))
    return status;
  if ((status = pf_check_score_rows(in, out)))
    return status;

  if (!in[PREFILL_IN_Q_SEGMENT].tensor != !in[PREFILL_IN_K_SEGMENT].tensor)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "inputs Q_SEGMENT and K_SEGMENT: expected both or none");
  if (desc->rotary &&
      (!in[PREFILL_IN_COS].tensor || !in[PREFILL_IN_SIN].tensor))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "inputs COS and SIN: expected tensors, got null");
  call->rotary = desc->rotary != 0;
  if (desc->alignment == PREFILL_ALIGN_OPERAND &&
      !in[PREFILL_IN_Q_OFFSET].tensor && !in[PREFILL_IN_Q_POSITIONS].tensor)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input Q_OFFSET: expected a tensor, got null");
  if ((status = pf_check_ragged(call, in)) ||
      (status = pf_check_cache_slots(call, in, out)) ||
      (status = pf_check_context_slots(call, in, out)) || call->cuda)
    return status;
  return pf_prepare_batches(
      call, in[PREFILL_IN_KEY_MASK].tensor, in[PREFILL_IN_KV_LENGTHS].tensor,
      in[PREFILL_IN_Q_SEGMENT].tensor, in[PREFILL_IN_K_SEGMENT].tensor,
      in[PREFILL_IN_Q_OFFSET].tensor, in[PREFILL_IN_MODALITY].tensor);
}
