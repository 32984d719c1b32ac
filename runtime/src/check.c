/*===- check.c - Arguments of a kernel, before memory is touched --*- C -*-===*\
|*
|* Every tensor is looked at here and nowhere else: presence, device, element
|* type, rank, dimensions, strides, alignment. What leaves this file is pointers
|* and strides in which nothing can overflow. Messages are one line:
|*   kernel 'name': input K: expected [2,3,?,64], got [2,4,128,64]
|*
\*===----------------------------------------------------------------------===*/
#include "internal.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const input_names[PREFILL_IN_COUNT] = {
    "Q",          "K",      "V",           "BIAS",           "KEY_MASK",
    "KV_LENGTHS", "SINKS",  "Q_SEGMENT",   "K_SEGMENT",      "Q_OFFSET",
    "COS",        "SIN",    "Q_POSITIONS", "SEGMENT_STARTS", "MODALITY",
    "PAST_K",     "PAST_V", "CACHE_SLOTS", "SCORE_ROWS",     "CONTEXT_SLOTS",
    "KEPT_ROWS"};
static const char *const output_names[PREFILL_OUT_COUNT] = {
    "O",         "LSE",       "DENSITY",     "BLOCK_MAP", "ROTATED_K",
    "PRESENT_K", "PRESENT_V", "TOKEN_SCORE", "TOKEN_PEAK"};

/* One tensor under examination. */
typedef struct subject {
  pf_call *call;
  const DLTensor *tensor;
  bool output;
  int slot;
  int64_t stride[8]; /* of every dimension, compact ones filled in */
} subject;

enum { MAX_RANK = 8 };

static const char *kind(const subject *x) {
  return x->output ? "output" : "input";
}
static const char *slot_name(const subject *x) {
  return x->output ? output_names[x->slot] : input_names[x->slot];
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

static prefill_status wrong_shape(const subject *x, const int64_t *expected,
                                  int rank) {
  char want[112], have[112];
  print_dims(want, sizeof(want), expected, rank);
  print_dims(have, sizeof(have), x->tensor->shape,
             x->tensor->ndim > MAX_RANK ? MAX_RANK : x->tensor->ndim);
  return pf_fail(x->call, PREFILL_INVALID_SHAPE, "%s %s: expected %s, got %s",
                 kind(x), slot_name(x), want, have);
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

static prefill_status wrong_type(const subject *x, const char *expected) {
  char have[32];
  return pf_fail(x->call, PREFILL_INVALID_TYPE, "%s %s: expected %s, got %s",
                 kind(x), slot_name(x), expected,
                 print_type(have, sizeof(have), x->tensor->dtype));
}

static bool is_type(DLDataType type, int code, int bits) {
  return type.code == code && type.bits == bits && type.lanes == 1;
}
/* NumPy and older DLPack have no bool of their own: bytes are accepted. */
static bool is_bool(DLDataType type) {
  return is_type(type, PF_DL_BOOL, 8) || is_type(type, kDLUInt, 8);
}
/* PREFILL_F32, F16 or BF16; -1: another type. */
static int float_dtype(DLDataType type) {
  if (is_type(type, kDLFloat, 32))
    return PREFILL_F32;
  if (is_type(type, kDLFloat, 16))
    return PREFILL_F16;
  if (is_type(type, kDLBfloat, 16))
    return PREFILL_BF16;
  return -1;
}
static const char *const dtype_names[] = {"float32", "float16", "bfloat16"};

/* Rank, device, strides and address of any tensor. Fills x->stride. */
static prefill_status check_any(subject *x) {
  const DLTensor *tensor = x->tensor;
  const pf_call *call = x->call;
  if (tensor->ndim < 0 || tensor->ndim > MAX_RANK)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "%s %s: expected rank 0 to %d, got %d", kind(x),
                   slot_name(x), MAX_RANK, (int)tensor->ndim);
  if (tensor->ndim && !tensor->shape)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s %s: expected a shape, got null", kind(x), slot_name(x));
  const int device = (int)tensor->device.device_type;
  const bool on_host = device == kDLCPU || device == kDLCUDAHost;
  if (!call->cuda && !on_host)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s %s: expected device cpu (1), got device type %d",
                   kind(x), slot_name(x), device);
  /* Beside CUDA tensors, small inputs may be on the host: cuda.c says which. */
  const bool small = !x->output && x->slot > PREFILL_IN_V;
  if (call->cuda && !(small && on_host) &&
      (device != kDLCUDA || tensor->device.device_id != call->device))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s %s: expected device cuda (2) number %d as Q's, got "
                   "device type %d number %d",
                   kind(x), slot_name(x), (int)call->device, device,
                   (int)tensor->device.device_id);
  const int64_t bytes = tensor->dtype.bits / 8;
  if (bytes < 1 || tensor->dtype.bits % 8 || tensor->dtype.lanes != 1)
    return wrong_type(x, "elements of whole bytes, one lane");
  bool empty = false;
  for (int i = 0; i < tensor->ndim; ++i) {
    if (tensor->shape[i] < 0)
      return pf_fail(call, PREFILL_INVALID_SHAPE,
                     "%s %s: dimension %d is negative (%lld)", kind(x),
                     slot_name(x), i, (long long)tensor->shape[i]);
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
                     kind(x), slot_name(x), i, (long long)x->stride[i]);
    if (tensor->strides && !empty && x->output && dim > 1 && x->stride[i] == 0)
      return pf_fail(call, PREFILL_INVALID_SHAPE,
                     "%s %s: stride of dimension %d is 0", kind(x),
                     slot_name(x), i);
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
                   "%s %s: dimensions overflow the address space", kind(x),
                   slot_name(x));
  if (!tensor->data)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s %s: expected data, got null", kind(x), slot_name(x));
  uintptr_t address = (uintptr_t)tensor->data + tensor->byte_offset;
  if (address % (uintptr_t)bytes)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s %s: data is not aligned to its %lld-byte elements",
                   kind(x), slot_name(x), (long long)bytes);
  return PREFILL_OK;
}

static char *data_of(const DLTensor *tensor) {
  return tensor->data ? (char *)tensor->data + tensor->byte_offset : NULL;
}

/* Compares the shape with `expected` (-1: any). */
static prefill_status check_shape(const subject *x, const int64_t *expected,
                                  int rank) {
  if (x->tensor->ndim != rank)
    return wrong_shape(x, expected, rank);
  for (int i = 0; i < rank; ++i)
    if (expected[i] >= 0 && x->tensor->shape[i] != expected[i])
      return wrong_shape(x, expected, rank);
  return PREFILL_OK;
}

/* Q, K, V or O: type, layout, heads and width; *batch and *rows are checked if
 * >= 0 and filled in otherwise. rank 0: 3 or 4, as the layout allows. */
static prefill_status check_rows(subject *x, int layout, int64_t heads,
                                 int64_t width, int rank, int64_t *batch,
                                 int64_t *rows, pf_rows *result) {
  pf_call *call = x->call;
  prefill_status status = check_any(x);
  if (status)
    return status;
  const DLTensor *tensor = x->tensor;
  if (float_dtype(tensor->dtype) != call->desc->dtype)
    return wrong_type(x, dtype_names[call->desc->dtype]);
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
  if ((status = check_shape(x, expected, flat ? 3 : 4)))
    return status;
  const int row_dim = seq_first ? 1 : 2, head_dim = seq_first ? 2 : 1;
  const int last = flat ? 2 : 3;
  *batch = tensor->shape[0];
  *rows = tensor->shape[row_dim];
  if (*rows > PF_MAX_LENGTH)
    return pf_fail(call, PREFILL_UNSUPPORTED,
                   "%s %s: expected at most %lld rows, got %lld", kind(x),
                   slot_name(x), (long long)PF_MAX_LENGTH, (long long)*rows);
  if (tensor->shape[last] > 1 && x->stride[last] != 1 && *batch && *rows)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "%s %s: expected adjacent elements in the last dimension, "
                   "got stride %lld",
                   kind(x), slot_name(x), (long long)x->stride[last]);
  result->data = data_of(tensor);
  result->batch = x->stride[0];
  result->row = x->stride[row_dim];
  result->head = flat ? width : x->stride[head_dim];
  return PREFILL_OK;
}

/* BIAS: any lower rank or dimension 1 broadcasts to [b,hq,s,t]. */
static prefill_status check_bias(subject *x, pf_bias *bias) {
  pf_call *call = x->call;
  prefill_status status = check_any(x);
  if (status)
    return status;
  if (!(call->desc->features & PREFILL_TILE_BIAS))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input BIAS: the kernel is compiled without it");
  const DLTensor *tensor = x->tensor;
  bias->dtype = is_bool(tensor->dtype) ? PF_BOOL8 : float_dtype(tensor->dtype);
  if (bias->dtype < 0)
    return wrong_type(x, "bool, float32, float16 or bfloat16");
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
    return wrong_shape(x, full, 4);
  bias->data = data_of(tensor);
  return PREFILL_OK;
}

/* A [b] or [] tensor of int32 or int64. */
static prefill_status check_per_batch(subject *x) {
  prefill_status status = check_any(x);
  if (status)
    return status;
  const DLTensor *tensor = x->tensor;
  if (!is_type(tensor->dtype, kDLInt, 32) &&
      !is_type(tensor->dtype, kDLInt, 64))
    return wrong_type(x, "int32 or int64");
  if (tensor->ndim == 0 || (tensor->ndim == 1 && tensor->shape[0] == 1))
    return PREFILL_OK;
  return check_shape(x, &x->call->b, 1);
}

/* A [b, length] tensor whose type is one of the given. */
static prefill_status check_mask(subject *x, int64_t length, uint32_t feature,
                                 bool bool_or_int) {
  pf_call *call = x->call;
  prefill_status status = check_any(x);
  if (status)
    return status;
  if (!(call->desc->features & feature))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input %s: the kernel is compiled without it", slot_name(x));
  DLDataType type = x->tensor->dtype;
  if (!is_type(type, kDLInt, 64) && !is_type(type, kDLInt, 32) &&
      !(bool_or_int && is_bool(type)))
    return wrong_type(x,
                      bool_or_int ? "bool, int32 or int64" : "int64 or int32");
  const int64_t expected[2] = {call->b, length};
  return check_shape(x, expected, 2);
}

/* MODALITY: [n] or [b|1, n], n keys, or rows. */
static prefill_status check_modality(subject *x) {
  pf_call *call = x->call;
  prefill_status status = check_any(x);
  if (status)
    return status;
  const DLTensor *tensor = x->tensor;
  if (!is_type(tensor->dtype, kDLInt, 64) &&
      !is_type(tensor->dtype, kDLInt, 32) &&
      !is_type(tensor->dtype, kDLUInt, 8) && !is_bool(tensor->dtype))
    return wrong_type(x, "int64, int32, uint8 or bool");
  const int64_t expected[2] = {call->b, call->t};
  const int rank = tensor->ndim == 1 ? 1 : 2;
  const int64_t *dims = tensor->shape;
  const bool fits = tensor->ndim == rank &&
                    (rank == 1 || dims[0] == 1 || dims[0] == call->b) &&
                    (dims[rank - 1] == call->t || dims[rank - 1] == call->s);
  return fits ? PREFILL_OK : wrong_shape(x, expected + 2 - rank, rank);
}

/* SINKS: [hq], float32 or the type of Q; converted here. */
static prefill_status check_sinks(subject *x) {
  pf_call *call = x->call;
  prefill_status status = check_any(x);
  if (status)
    return status;
  if (!(call->desc->features & PREFILL_TILE_SINK))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input SINKS: the kernel is compiled without it");
  int dtype = float_dtype(x->tensor->dtype);
  if (dtype != PREFILL_F32 && dtype != call->desc->dtype)
    return wrong_type(x, dtype_names[call->desc->dtype]);
  if ((status = check_shape(x, &call->hq, 1)) || call->cuda)
    return status;
  float *sinks = pf_alloc(call, call->hq, sizeof(float));
  if (!sinks)
    return PREFILL_OUT_OF_MEMORY;
  call->hot->to_float(sinks, data_of(x->tensor), x->stride[0], call->hq, dtype);
  call->sinks = sinks;
  return PREFILL_OK;
}

/* COS and SIN: [b|1, positions, rotary_dim / 2 or rotary_dim] (or without the
 * first dimension), covering every position that occurs: at least t rows. */
static prefill_status check_rotary(subject *x, pf_rows *table) {
  pf_call *call = x->call;
  const prefill_attention_desc *desc = call->desc;
  prefill_status status = check_any(x);
  if (status)
    return status;
  if (!desc->rotary)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input %s: the kernel is compiled without it", slot_name(x));
  const DLTensor *tensor = x->tensor;
  int dtype = float_dtype(tensor->dtype);
  if (dtype != PREFILL_F32 && dtype != desc->dtype)
    return wrong_type(x, dtype_names[desc->dtype]);
  const int64_t half = desc->rotary_dim / 2;
  const int64_t expected[3] = {call->b, -1, half};
  if (tensor->ndim != 2 && tensor->ndim != 3)
    return wrong_shape(x, expected, 3);
  const int lead = tensor->ndim - 2;
  const int64_t rows = tensor->shape[lead], width = tensor->shape[lead + 1];
  if ((lead && tensor->shape[0] != 1 && tensor->shape[0] != call->b) ||
      (width != half && width != 2 * half))
    return wrong_shape(x, expected, 3);
  if (rows < call->t)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input %s: expected at least %lld rows, got %lld",
                   slot_name(x), (long long)call->t, (long long)rows);
  if (width > 1 && x->stride[lead + 1] != 1)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input %s: expected adjacent elements in the last "
                   "dimension, got stride %lld",
                   slot_name(x), (long long)x->stride[lead + 1]);
  if (x->slot == PREFILL_IN_SIN &&
      (dtype != call->rotary_dtype || width != call->rotary_width ||
       rows != call->rotary_rows))
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input SIN: expected type and dimensions of COS");
  call->rotary_dtype = dtype;
  call->rotary_width = width;
  call->rotary_rows = rows;
  table->data = data_of(tensor);
  table->batch = lead ? x->stride[0] : 0;
  table->head = 0;
  table->row = x->stride[lead];
  return PREFILL_OK;
}

/* LSE, DENSITY and BLOCK_MAP. */
static prefill_status check_statistics(subject *x) {
  pf_call *call = x->call;
  prefill_status status = check_any(x);
  if (status)
    return status;
  const DLTensor *tensor = x->tensor;
  if (x->slot == PREFILL_OUT_BLOCK_MAP) {
    if (!is_bool(tensor->dtype))
      return wrong_type(x, "uint8");
  } else if (!is_type(tensor->dtype, kDLFloat, 32)) {
    return wrong_type(x, "float32");
  }
  const int64_t expected[4] = {
      call->b, call->hq, x->slot == PREFILL_OUT_LSE ? call->s : call->tiles,
      call->blocks};
  const int rank = x->slot == PREFILL_OUT_LSE       ? 3
                   : x->slot == PREFILL_OUT_DENSITY ? 2
                                                    : 4;
  if ((status = check_shape(x, expected, rank)))
    return status;
  pf_rows *rows = x->slot == PREFILL_OUT_LSE       ? &call->lse
                  : x->slot == PREFILL_OUT_DENSITY ? &call->density
                                                   : &call->block_map;
  rows->data = data_of(tensor);
  rows->batch = x->stride[0];
  rows->head = x->stride[1];
  rows->row = rank > 2 ? x->stride[2] : 0;
  if (rank == 4)
    call->map_block = x->stride[3];
  return PREFILL_OK;
}

/* A score of every key: [b,t] float32. */
static prefill_status check_key_scores(subject *out, pf_rows *scores) {
  const pf_call *call = out->call;
  prefill_status status = check_any(out);
  if (status)
    return status;
  if (!is_type(out->tensor->dtype, kDLFloat, 32))
    return wrong_type(out, "float32");
  const int64_t expected[2] = {call->b, call->t};
  if ((status = check_shape(out, expected, 2)))
    return status;
  *scores = (pf_rows){.data = data_of(out->tensor),
                      .batch = out->stride[0],
                      .row = out->stride[1]};
  return PREFILL_OK;
}

/* SCORE_ROWS and TOKEN_PEAK, which come together. */
static prefill_status check_score_rows(subject *in, subject *out) {
  subject *rows = &in[PREFILL_IN_SCORE_ROWS];
  subject *peak = &out[PREFILL_OUT_TOKEN_PEAK];
  pf_call *call = rows->call;
  if (!rows->tensor && !peak->tensor)
    return PREFILL_OK;
  if (!rows->tensor || !peak->tensor || !out[PREFILL_OUT_TOKEN_SCORE].tensor)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input SCORE_ROWS: expected exactly with TOKEN_SCORE and "
                   "TOKEN_PEAK");
  if (in[PREFILL_IN_SEGMENT_STARTS].tensor)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input SCORE_ROWS: not together with SEGMENT_STARTS");
  prefill_status status = check_any(rows);
  if (status)
    return status;
  if (!is_bool(rows->tensor->dtype))
    return wrong_type(rows, "bool");
  const int64_t expected[2] = {call->b, call->s};
  if ((status = check_shape(rows, expected, 2)))
    return status;
  call->score_rows = (pf_rows){.data = data_of(rows->tensor),
                               .batch = rows->stride[0],
                               .row = rows->stride[1]};
  return check_key_scores(peak, &call->token_peak);
}

/* TOKEN_SCORE, and that the call is one that it is defined for. */
static prefill_status check_token_score(subject *out, const subject *in) {
  pf_call *call = out->call;
  static const int refused[] = {PREFILL_IN_BIAS, PREFILL_IN_SINKS,
                                PREFILL_IN_Q_SEGMENT, PREFILL_IN_Q_POSITIONS,
                                PREFILL_IN_PAST_K};
  for (size_t i = 0; i < sizeof(refused) / sizeof(int); ++i)
    if (in[refused[i]].tensor)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "output TOKEN_SCORE: not with input %s",
                     input_names[refused[i]]);
  if (!call->causal)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "output TOKEN_SCORE: the kernel is not causal");
  return check_key_scores(out, &call->token_score);
}

/* Q_POSITIONS and SEGMENT_STARTS: types and shapes; pf_prepare_ragged looks at
 * the numbers. */
static prefill_status check_ragged(pf_call *call, subject *in) {
  subject *positions = &in[PREFILL_IN_Q_POSITIONS];
  subject *starts = &in[PREFILL_IN_SEGMENT_STARTS];
  static const int alone[] = {PREFILL_IN_BIAS, PREFILL_IN_KEY_MASK,
                              PREFILL_IN_KV_LENGTHS, PREFILL_IN_Q_SEGMENT};
  for (size_t i = 0; starts->tensor && i < sizeof(alone) / sizeof(int); ++i)
    if (in[alone[i]].tensor)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "input SEGMENT_STARTS: not together with %s",
                     slot_name(&in[alone[i]]));
  prefill_status status;
  if (positions->tensor) {
    if ((status = check_any(positions)))
      return status;
    const DLTensor *tensor = positions->tensor;
    if (!is_type(tensor->dtype, kDLInt, 64))
      return wrong_type(positions, "int64");
    const bool shared = tensor->ndim == 2 && tensor->shape[0] == 1;
    const int64_t expected[2] = {shared ? 1 : call->b, call->s};
    const bool flat = tensor->ndim == 1;
    if ((status = check_shape(positions, expected + flat, flat ? 1 : 2)))
      return status;
    call->q_positions = tensor;
  }
  if (!starts->tensor)
    return PREFILL_OK;
  if ((status = check_any(starts)))
    return status;
  if (!is_type(starts->tensor->dtype, kDLInt, 64))
    return wrong_type(starts, "int64");
  const int64_t any = starts->tensor->ndim == 1 && starts->tensor->shape[0] > 0
                          ? starts->tensor->shape[0]
                          : -1;
  if ((status = check_shape(starts, &any, 1)))
    return status;
  if (call->b > 1)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input SEGMENT_STARTS: a pack is one sequence, got batch "
                   "%lld",
                   (long long)call->b);
  if (!positions->tensor && call->s != call->t)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input SEGMENT_STARTS: expected as many query rows as keys, "
                   "got %lld and %lld",
                   (long long)call->s, (long long)call->t);
  call->segment_starts = starts->tensor;
  return PREFILL_OK;
}

/* PAST_K, PAST_V, CACHE_SLOTS, PRESENT_K and PRESENT_V; cache.c looks at the
 * numbers. */
static prefill_status check_cache(pf_call *call, subject *in, subject *out) {
  subject *parts[] = {&in[PREFILL_IN_PAST_K], &in[PREFILL_IN_PAST_V],
                      &in[PREFILL_IN_CACHE_SLOTS], &out[PREFILL_OUT_PRESENT_K],
                      &out[PREFILL_OUT_PRESENT_V]};
  subject *kept = &in[PREFILL_IN_KEPT_ROWS];
  int given = 0;
  for (int i = 0; i < 5; ++i)
    given += parts[i]->tensor != NULL;
  if (!given)
    return kept->tensor ? pf_fail(call, PREFILL_INVALID_ARGUMENT,
                                  "input KEPT_ROWS: only with a cache")
                        : PREFILL_OK;
  for (int i = 0; i < 5; ++i)
    if (!parts[i]->tensor)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "%s %s: expected a tensor, got null: a cache is PAST_K, "
                     "PAST_V, CACHE_SLOTS, PRESENT_K and PRESENT_V",
                     kind(parts[i]), slot_name(parts[i]));
  if (!call->segment_starts)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input CACHE_SLOTS: only together with SEGMENT_STARTS");
  if (call->block_map.data)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "output BLOCK_MAP: not together with CACHE_SLOTS");
  prefill_status status;
  pf_rows *rows[] = {&call->past_k, &call->past_v, NULL, &call->present_k,
                     &call->present_v};
  call->cache_rows = -1;
  for (int i = 0; i < 5; ++i)
    if (rows[i] && (status = check_rows(parts[i], PREFILL_BHSD, call->hk,
                                        i % 3 ? call->e : call->d, 4, &call->b,
                                        &call->cache_rows, rows[i])))
      return status;
  if ((status = check_any(parts[2])))
    return status;
  if (!is_type(parts[2]->tensor->dtype, kDLInt, 64))
    return wrong_type(parts[2], "int64");
  const int64_t expected[2] = {call->segment_starts->shape[0] - 1, 2};
  if ((status = check_shape(parts[2], expected, 2)))
    return status;
  call->cache_slots = parts[2]->tensor;
  if (!kept->tensor)
    return PREFILL_OK;
  if ((status = check_any(kept)))
    return status;
  if (!is_type(kept->tensor->dtype, kDLInt, 64))
    return wrong_type(kept, "int64");
  const int64_t rows_kept[2] = {1, -1};
  const bool flat = kept->tensor->ndim == 1;
  if ((status = check_shape(kept, rows_kept + flat, flat ? 1 : 2)))
    return status;
  call->kept_rows = kept->tensor;
  return PREFILL_OK;
}

/* CONTEXT_SLOTS, and that the call is one that it is defined for; contexts.c
 * looks at the numbers. */
static prefill_status check_contexts(pf_call *call, subject *in,
                                     const subject *out) {
  subject *slots = &in[PREFILL_IN_CONTEXT_SLOTS];
  if (!slots->tensor)
    return PREFILL_OK;
  const prefill_attention_desc *desc = call->desc;
  const char *why = NULL;
  if (!call->cache_slots)
    why = "only together with CACHE_SLOTS";
  else if (!(desc->context_temperature > 0) || !(desc->context_scale > 0))
    why = "the kernel is not one for parallel encoding";
  else if (!call->causal || call->window || desc->plan)
    why = "the kernel is not dense and causal without a window";
  else if (in[PREFILL_IN_SINKS].tensor)
    why = "not together with SINKS";
  else if (out[PREFILL_OUT_LSE].tensor)
    why = "not together with the output LSE";
  if (why)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT, "input CONTEXT_SLOTS: %s",
                   why);
  prefill_status status = check_any(slots);
  if (status)
    return status;
  if (!is_type(slots->tensor->dtype, kDLInt, 64))
    return wrong_type(slots, "int64");
  const int64_t expected[2] = {call->segment_starts->shape[0] - 1, 2};
  if ((status = check_shape(slots, expected, 2)))
    return status;
  call->context_slots = slots->tensor;
  return PREFILL_OK;
}

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
  subject in[PREFILL_IN_COUNT], out[PREFILL_OUT_COUNT];
  for (int i = 0; i < PREFILL_IN_COUNT; ++i)
    in[i] = (subject){.call = call,
                      .slot = i,
                      .tensor = (size_t)i < input_count ? inputs[i] : NULL};
  for (int i = 0; i < PREFILL_OUT_COUNT; ++i)
    out[i] = (subject){.call = call,
                       .slot = i,
                       .output = true,
                       .tensor = (size_t)i < output_count ? outputs[i] : NULL};
  for (int i = PREFILL_IN_Q; i <= PREFILL_IN_V; ++i)
    if (!in[i].tensor)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "input %s: expected a tensor, got null", input_names[i]);
  if (!out[PREFILL_OUT_O].tensor)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "output O: expected a tensor, got null");

  const prefill_attention_desc *desc = call->desc;
  call->b = call->s = call->t = -1;
  if ((status = check_rows(&in[PREFILL_IN_Q], desc->q_layout, call->hq, call->d,
                           0, &call->b, &call->s, &call->q)) ||
      (status = check_rows(&in[PREFILL_IN_K], desc->k_layout, call->hk, call->d,
                           0, &call->b, &call->t, &call->k)) ||
      (status = check_rows(&in[PREFILL_IN_V], desc->v_layout, call->hk, call->e,
                           0, &call->b, &call->t, &call->v)) ||
      (status =
           check_rows(&out[PREFILL_OUT_O], desc->o_layout, call->hq, call->e,
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
                 check_bias(&in[PREFILL_IN_BIAS], &call->bias));
  OPTIONAL_INPUT(PREFILL_IN_KEY_MASK,
                 check_mask(&in[PREFILL_IN_KEY_MASK], call->t,
                            PREFILL_TILE_KEY_MASK, true));
  OPTIONAL_INPUT(PREFILL_IN_KV_LENGTHS,
                 check_per_batch(&in[PREFILL_IN_KV_LENGTHS]));
  OPTIONAL_INPUT(PREFILL_IN_SINKS, check_sinks(&in[PREFILL_IN_SINKS]));
  OPTIONAL_INPUT(PREFILL_IN_Q_SEGMENT,
                 check_mask(&in[PREFILL_IN_Q_SEGMENT], call->s,
                            PREFILL_TILE_SEGMENTS, false));
  OPTIONAL_INPUT(PREFILL_IN_K_SEGMENT,
                 check_mask(&in[PREFILL_IN_K_SEGMENT], call->t,
                            PREFILL_TILE_SEGMENTS, false));
  OPTIONAL_INPUT(PREFILL_IN_Q_OFFSET,
                 check_per_batch(&in[PREFILL_IN_Q_OFFSET]));
  OPTIONAL_INPUT(PREFILL_IN_COS,
                 check_rotary(&in[PREFILL_IN_COS], &call->cosine));
  OPTIONAL_INPUT(PREFILL_IN_SIN,
                 check_rotary(&in[PREFILL_IN_SIN], &call->sine));
  OPTIONAL_INPUT(PREFILL_IN_MODALITY, check_modality(&in[PREFILL_IN_MODALITY]));
#undef OPTIONAL_INPUT
  for (int i = PREFILL_OUT_LSE; i <= PREFILL_OUT_BLOCK_MAP; ++i)
    if (out[i].tensor && (status = check_statistics(&out[i])))
      return status;
  if (out[PREFILL_OUT_ROTATED_K].tensor) {
    if (!desc->rotary)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "output ROTATED_K: the kernel does not rotate");
    if ((status =
             check_rows(&out[PREFILL_OUT_ROTATED_K], PREFILL_BHSD, call->hk,
                        call->d, 4, &call->b, &call->t, &call->rotated_k)))
      return status;
  }

  if (out[PREFILL_OUT_TOKEN_SCORE].tensor &&
      (status = check_token_score(&out[PREFILL_OUT_TOKEN_SCORE], in)))
    return status;
  if ((status = check_score_rows(in, out)))
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
  if ((status = check_ragged(call, in)) ||
      (status = check_cache(call, in, out)) ||
      (status = check_contexts(call, in, out)) || call->cuda)
    return status;
  return pf_prepare_batches(
      call, in[PREFILL_IN_KEY_MASK].tensor, in[PREFILL_IN_KV_LENGTHS].tensor,
      in[PREFILL_IN_Q_SEGMENT].tensor, in[PREFILL_IN_K_SEGMENT].tensor,
      in[PREFILL_IN_Q_OFFSET].tensor, in[PREFILL_IN_MODALITY].tensor);
}
