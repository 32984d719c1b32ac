/*===- check_tensor.c - One tensor of a call ----------------------*- C -*-===*\
|*
|* Presence aside, what can be wrong with any tensor, and the messages that say
|* so: rank, device, strides, address, type, shape.
|*
\*===----------------------------------------------------------------------===*/
#include "check.h"
#include <stdio.h>

const char *const pf_input_names[PREFILL_IN_COUNT] = {
    "Q",          "K",      "V",           "BIAS",           "KEY_MASK",
    "KV_LENGTHS", "SINKS",  "Q_SEGMENT",   "K_SEGMENT",      "Q_OFFSET",
    "COS",        "SIN",    "Q_POSITIONS", "SEGMENT_STARTS", "MODALITY",
    "PAST_K",     "PAST_V", "CACHE_SLOTS", "SCORE_ROWS",     "CONTEXT_SLOTS",
    "KEPT_ROWS"};
static const char *const output_names[PREFILL_OUT_COUNT] = {
    "O",         "LSE",       "DENSITY",     "BLOCK_MAP", "ROTATED_K",
    "PRESENT_K", "PRESENT_V", "TOKEN_SCORE", "TOKEN_PEAK"};

const char *pf_slot_kind(const pf_subject *x) {
  return x->output ? "output" : "input";
}
const char *pf_slot_name(const pf_subject *x) {
  return x->output ? output_names[x->slot] : pf_input_names[x->slot];
}

/* "[2,?,64]"; -1 prints as "?". */
static const char *print_dims(char *text, size_t size, const int64_t *dims,
                              int rank) {
  size_t used = (size_t)snprintf(text, size, "[");
  for (int i = 0; i < rank && used + 24 < size; ++i)
    used += dims[i] < 0 ? (size_t)snprintf(text + used, size - used, "%s?",
                                           i ? "," : "")
                        : (size_t)snprintf(text + used, size - used, "%s%lld",
                                           i ? "," : "", (long long)dims[i]);
  snprintf(text + used, size - used, "]");
  return text;
}

prefill_status pf_wrong_shape(const pf_subject *x, const int64_t *expected,
                              int rank) {
  char want[112], have[112];
  print_dims(want, sizeof(want), expected, rank);
  print_dims(have, sizeof(have), x->tensor->shape,
             x->tensor->ndim > PF_MAX_RANK ? PF_MAX_RANK : x->tensor->ndim);
  return pf_fail(x->call, PREFILL_INVALID_SHAPE, "%s %s: expected %s, got %s",
                 pf_slot_kind(x), pf_slot_name(x), want, have);
}

/* "float32", "bool", "int64", ... */
static const char *print_type(char *text, size_t size, DLDataType type) {
  const char *base = "type";
  switch (type.code) {
  case kDLInt:
    base = "int";
    break;
  case kDLUInt:
    base = "uint";
    break;
  case kDLFloat:
    base = "float";
    break;
  case kDLBfloat:
    base = "bfloat";
    break;
  case PF_DL_BOOL:
    base = "bool";
    break;
  default:
    break;
  }
  if (type.lanes == 1)
    snprintf(text, size, "%s%u", base, (unsigned)type.bits);
  else
    snprintf(text, size, "%s%ux%u", base, (unsigned)type.bits,
             (unsigned)type.lanes);
  return text;
}

prefill_status pf_wrong_type(const pf_subject *x, const char *expected) {
  char have[32];
  return pf_fail(x->call, PREFILL_INVALID_TYPE, "%s %s: expected %s, got %s",
                 pf_slot_kind(x), pf_slot_name(x), expected,
                 print_type(have, sizeof(have), x->tensor->dtype));
}

const char *const pf_dtype_names[] = {"float32", "float16", "bfloat16"};

/* Rank, device, strides and address of any tensor. Fills x->stride. */
prefill_status pf_check_any(pf_subject *x) {
  const DLTensor *tensor = x->tensor;
  const pf_call *call = x->call;
  if (tensor->ndim < 0 || tensor->ndim > PF_MAX_RANK)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "%s %s: expected rank 0 to %d, got %d", pf_slot_kind(x),
                   pf_slot_name(x), PF_MAX_RANK, (int)tensor->ndim);
  if (tensor->ndim && !tensor->shape)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s %s: expected a shape, got null", pf_slot_kind(x),
                   pf_slot_name(x));
  const int device = (int)tensor->device.device_type;
  const bool on_host = device == kDLCPU || device == kDLCUDAHost;
  if (!call->cuda && !on_host)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s %s: expected device cpu (1), got device type %d",
                   pf_slot_kind(x), pf_slot_name(x), device);
  /* Beside CUDA tensors, small inputs may be on the host: cuda.c says which. */
  const bool small = !x->output && x->slot > PREFILL_IN_V;
  if (call->cuda && !(small && on_host) &&
      (device != kDLCUDA || tensor->device.device_id != call->device))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s %s: expected device cuda (2) number %d as Q's, got "
                   "device type %d number %d",
                   pf_slot_kind(x), pf_slot_name(x), (int)call->device, device,
                   (int)tensor->device.device_id);
  const int64_t bytes = tensor->dtype.bits / 8;
  if (bytes < 1 || tensor->dtype.bits % 8 || tensor->dtype.lanes != 1)
    return pf_wrong_type(x, "elements of whole bytes, one lane");
  bool empty = false;
  for (int i = 0; i < tensor->ndim; ++i) {
    if (tensor->shape[i] < 0)
      return pf_fail(call, PREFILL_INVALID_SHAPE,
                     "%s %s: dimension %d is negative (%lld)", pf_slot_kind(x),
                     pf_slot_name(x), i, (long long)tensor->shape[i]);
    empty |= tensor->shape[i] == 0;
  }
  /* last: offset of the last element; compact: size so far. */
  int64_t last = 0, compact = 1, step;
  bool overflow = false;
  for (int i = tensor->ndim - 1; i >= 0; --i) {
    int64_t dim = tensor->shape[i];
    x->stride[i] = tensor->strides ? tensor->strides[i] : compact;
    if (tensor->strides && !empty && dim > 1 && x->stride[i] < 0)
      return pf_fail(call, PREFILL_INVALID_SHAPE,
                     "%s %s: stride of dimension %d is negative (%lld)",
                     pf_slot_kind(x), pf_slot_name(x), i,
                     (long long)x->stride[i]);
    if (tensor->strides && !empty && x->output && dim > 1 && x->stride[i] == 0)
      return pf_fail(call, PREFILL_INVALID_SHAPE,
                     "%s %s: stride of dimension %d is 0", pf_slot_kind(x),
                     pf_slot_name(x), i);
    /* A dimension of 1 is never stepped along: any stride will do. */
    if (dim <= 1)
      x->stride[i] = 0;
    overflow |= __builtin_mul_overflow(compact, dim, &compact);
    if (dim > 1)
      overflow |= __builtin_mul_overflow(dim - 1, x->stride[i], &step) ||
                  __builtin_add_overflow(last, step, &last);
  }
  if (empty)
    return PREFILL_OK;
  if (overflow || last > INT64_MAX / 8 / bytes ||
      tensor->byte_offset > (uint64_t)INT64_MAX / 8)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "%s %s: dimensions overflow the address space",
                   pf_slot_kind(x), pf_slot_name(x));
  if (!tensor->data)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s %s: expected data, got null", pf_slot_kind(x),
                   pf_slot_name(x));
  uintptr_t address = (uintptr_t)tensor->data + tensor->byte_offset;
  if (address % (uintptr_t)bytes)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s %s: data is not aligned to its %lld-byte elements",
                   pf_slot_kind(x), pf_slot_name(x), (long long)bytes);
  return PREFILL_OK;
}

/* Compares the shape with `expected` (-1: any). */
prefill_status pf_check_shape(const pf_subject *x, const int64_t *expected,
                              int rank) {
  if (x->tensor->ndim != rank)
    return pf_wrong_shape(x, expected, rank);
  for (int i = 0; i < rank; ++i)
    if (expected[i] >= 0 && x->tensor->shape[i] != expected[i])
      return pf_wrong_shape(x, expected, rank);
  return PREFILL_OK;
}

/* Q, K, V or O: type, layout, heads and width; *batch and *rows are checked if
 * >= 0 and filled in otherwise. rank 0: 3 or 4, as the layout allows. */
prefill_status pf_check_rows(pf_subject *x, int layout, int64_t heads,
                             int64_t width, int rank, int64_t *batch,
                             int64_t *rows, pf_rows *result) {
  pf_call *call = x->call;
  prefill_status status = pf_check_any(x);
  if (status)
    return status;
  const DLTensor *tensor = x->tensor;
  if (pf_float_dtype(tensor->dtype) != call->desc->dtype)
    return pf_wrong_type(x, pf_dtype_names[call->desc->dtype]);
  const bool seq_first = layout == PREFILL_BSHD;
  const bool flat =
      seq_first && (rank == 3 || (rank == 0 && tensor->ndim == 3));
  int64_t expected[4] = {*batch, heads, *rows, width};
  if (flat) {
    expected[1] = *rows;
    expected[2] = heads * width;
  } else if (seq_first) {
    expected[1] = *rows;
    expected[2] = heads;
  }
  if ((status = pf_check_shape(x, expected, flat ? 3 : 4)))
    return status;
  const int row_dim = seq_first ? 1 : 2, head_dim = seq_first ? 2 : 1;
  const int last = flat ? 2 : 3;
  *batch = tensor->shape[0];
  *rows = tensor->shape[row_dim];
  if (*rows > PF_MAX_LENGTH)
    return pf_fail(call, PREFILL_UNSUPPORTED,
                   "%s %s: expected at most %lld rows, got %lld",
                   pf_slot_kind(x), pf_slot_name(x), (long long)PF_MAX_LENGTH,
                   (long long)*rows);
  if (tensor->shape[last] > 1 && x->stride[last] != 1 && *batch && *rows)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "%s %s: expected adjacent elements in the last dimension, "
                   "got stride %lld",
                   pf_slot_kind(x), pf_slot_name(x),
                   (long long)x->stride[last]);
  result->data = pf_data_of(tensor);
  result->batch = x->stride[0];
  result->row = x->stride[row_dim];
  result->head = flat ? width : x->stride[head_dim];
  return PREFILL_OK;
}
