/*===- check_operands.c - What an attention reads beside Q, K, V --*- C -*-===*\
|*
|* Biases, masks, lengths, sinks, rotary tables and kinds of tokens, and what is
|* told of a call: LSE, DENSITY, BLOCK_MAP.
|*
\*===----------------------------------------------------------------------===*/
#include "check.h"

/* BIAS: any lower rank or dimension 1 broadcasts to [b,hq,s,t]. */
prefill_status pf_check_bias(pf_subject *x, pf_bias *bias) {
  pf_call *call = x->call;
  prefill_status status = pf_check_any(x);
  if (status)
    return status;
  if (!(call->desc->features & PREFILL_TILE_BIAS))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input BIAS: the kernel is compiled without it");
  const DLTensor *tensor = x->tensor;
  bias->dtype =
      pf_is_bool(tensor->dtype) ? PF_BOOL8 : pf_float_dtype(tensor->dtype);
  if (bias->dtype < 0)
    return pf_wrong_type(x, "bool, float32, float16 or bfloat16");
  bias->bytes = tensor->dtype.bits / 8;
  const int64_t full[4] = {call->b, call->hq, call->s, call->t};
  const int lead = 4 - tensor->ndim;
  bool fits = lead >= 0;
  for (int i = 0; i < 4; ++i) {
    bias->stride[i] = 0;
    if (i < lead || !fits)
      continue;
    int64_t dim = tensor->shape[i - lead];
    if (dim != 1 || full[i] == 1)
      bias->stride[i] = x->stride[i - lead];
    fits = dim == 1 || dim == full[i];
  }
  if (!fits)
    return pf_wrong_shape(x, full, 4);
  bias->data = pf_data_of(tensor);
  return PREFILL_OK;
}

/* A [b] or [] tensor of int32 or int64. */
prefill_status pf_check_per_batch(pf_subject *x) {
  prefill_status status = pf_check_any(x);
  if (status)
    return status;
  const DLTensor *tensor = x->tensor;
  if (!pf_is_type(tensor->dtype, kDLInt, 32) &&
      !pf_is_type(tensor->dtype, kDLInt, 64))
    return pf_wrong_type(x, "int32 or int64");
  if (tensor->ndim == 0 || (tensor->ndim == 1 && tensor->shape[0] == 1))
    return PREFILL_OK;
  return pf_check_shape(x, &x->call->b, 1);
}

/* A [b, length] tensor whose type is one of the given. */
prefill_status pf_check_mask(pf_subject *x, int64_t length, uint32_t feature,
                             bool bool_or_int) {
  pf_call *call = x->call;
  prefill_status status = pf_check_any(x);
  if (status)
    return status;
  if (!(call->desc->features & feature))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input %s: the kernel is compiled without it",
                   pf_slot_name(x));
  DLDataType type = x->tensor->dtype;
  if (!pf_is_type(type, kDLInt, 64) && !pf_is_type(type, kDLInt, 32) &&
      !(bool_or_int && pf_is_bool(type)))
    return pf_wrong_type(x, bool_or_int ? "bool, int32 or int64"
                                        : "int64 or int32");
  const int64_t expected[2] = {call->b, length};
  return pf_check_shape(x, expected, 2);
}

/* MODALITY: [n] or [b|1, n], n keys, or rows. */
prefill_status pf_check_modality(pf_subject *x) {
  pf_call *call = x->call;
  prefill_status status = pf_check_any(x);
  if (status)
    return status;
  const DLTensor *tensor = x->tensor;
  if (!pf_is_type(tensor->dtype, kDLInt, 64) &&
      !pf_is_type(tensor->dtype, kDLInt, 32) &&
      !pf_is_type(tensor->dtype, kDLUInt, 8) && !pf_is_bool(tensor->dtype))
    return pf_wrong_type(x, "int64, int32, uint8 or bool");
  const int64_t expected[2] = {call->b, call->t};
  const int rank = tensor->ndim == 1 ? 1 : 2;
  const int64_t *dims = tensor->shape;
  const bool fits = tensor->ndim == rank &&
                    (rank == 1 || dims[0] == 1 || dims[0] == call->b) &&
                    (dims[rank - 1] == call->t || dims[rank - 1] == call->s);
  return fits ? PREFILL_OK : pf_wrong_shape(x, expected + 2 - rank, rank);
}

/* SINKS: [hq], float32 or the type of Q; converted here. */
prefill_status pf_check_sinks(pf_subject *x) {
  pf_call *call = x->call;
  prefill_status status = pf_check_any(x);
  if (status)
    return status;
  if (!(call->desc->features & PREFILL_TILE_SINK))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input SINKS: the kernel is compiled without it");
  int dtype = pf_float_dtype(x->tensor->dtype);
  if (dtype != PREFILL_F32 && dtype != call->desc->dtype)
    return pf_wrong_type(x, pf_dtype_names[call->desc->dtype]);
  if ((status = pf_check_shape(x, &call->hq, 1)) || call->cuda)
    return status;
  float *sinks = pf_alloc(call, call->hq, sizeof(float));
  if (!sinks)
    return PREFILL_OUT_OF_MEMORY;
  call->hot->to_float(sinks, pf_data_of(x->tensor), x->stride[0], call->hq,
                      dtype);
  call->sinks = sinks;
  return PREFILL_OK;
}

/* COS and SIN: [b|1, positions, rotary_dim / 2 or rotary_dim] (or without the
 * first dimension), covering every position that occurs: at least t rows. */
prefill_status pf_check_rotary(pf_subject *x, pf_rows *table) {
  pf_call *call = x->call;
  const prefill_attention_desc *desc = call->desc;
  prefill_status status = pf_check_any(x);
  if (status)
    return status;
  if (!desc->rotary)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input %s: the kernel is compiled without it",
                   pf_slot_name(x));
  const DLTensor *tensor = x->tensor;
  int dtype = pf_float_dtype(tensor->dtype);
  if (dtype != PREFILL_F32 && dtype != desc->dtype)
    return pf_wrong_type(x, pf_dtype_names[desc->dtype]);
  const int64_t half = desc->rotary_dim / 2;
  const int64_t expected[3] = {call->b, -1, half};
  if (tensor->ndim != 2 && tensor->ndim != 3)
    return pf_wrong_shape(x, expected, 3);
  const int lead = tensor->ndim - 2;
  const int64_t rows = tensor->shape[lead], width = tensor->shape[lead + 1];
  if ((lead && tensor->shape[0] != 1 && tensor->shape[0] != call->b) ||
      (width != half && width != 2 * half))
    return pf_wrong_shape(x, expected, 3);
  if (rows < call->t)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input %s: expected at least %lld rows, got %lld",
                   pf_slot_name(x), (long long)call->t, (long long)rows);
  if (width > 1 && x->stride[lead + 1] != 1)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input %s: expected adjacent elements in the last "
                   "dimension, got stride %lld",
                   pf_slot_name(x), (long long)x->stride[lead + 1]);
  if (x->slot == PREFILL_IN_SIN &&
      (dtype != call->rotary_dtype || width != call->rotary_width ||
       rows != call->rotary_rows))
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input SIN: expected type and dimensions of COS");
  call->rotary_dtype = dtype;
  call->rotary_width = width;
  call->rotary_rows = rows;
  table->data = pf_data_of(tensor);
  table->batch = lead ? x->stride[0] : 0;
  table->head = 0;
  table->row = x->stride[lead];
  return PREFILL_OK;
}

/* LSE, DENSITY and BLOCK_MAP. */
prefill_status pf_check_statistics(pf_subject *x) {
  pf_call *call = x->call;
  prefill_status status = pf_check_any(x);
  if (status)
    return status;
  const DLTensor *tensor = x->tensor;
  if (x->slot == PREFILL_OUT_BLOCK_MAP) {
    if (!pf_is_bool(tensor->dtype))
      return pf_wrong_type(x, "uint8");
  } else if (!pf_is_type(tensor->dtype, kDLFloat, 32)) {
    return pf_wrong_type(x, "float32");
  }
  const int64_t expected[4] = {
      call->b, call->hq, x->slot == PREFILL_OUT_LSE ? call->s : call->tiles,
      call->blocks};
  const int rank = x->slot == PREFILL_OUT_LSE       ? 3
                   : x->slot == PREFILL_OUT_DENSITY ? 2
                                                    : 4;
  if ((status = pf_check_shape(x, expected, rank)))
    return status;
  pf_rows *rows = x->slot == PREFILL_OUT_LSE       ? &call->lse
                  : x->slot == PREFILL_OUT_DENSITY ? &call->density
                                                   : &call->block_map;
  rows->data = pf_data_of(tensor);
  rows->batch = x->stride[0];
  rows->head = x->stride[1];
  rows->row = rank > 2 ? x->stride[2] : 0;
  if (rank == 4)
    call->map_block = x->stride[3];
  return PREFILL_OK;
}
