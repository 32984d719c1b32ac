/*===- check.h - Private to check*.c ------------------------------*- C -*-===*\
|*
|* Checks return PREFILL_OK, or a status with the message in the call.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_CHECK_H
#define PREFILL_RUNTIME_CHECK_H

#include "internal.h"

enum { PF_MAX_RANK = 8 };

/* One tensor under examination. */
typedef struct pf_subject {
  pf_call *call;
  const DLTensor *tensor;
  bool output;
  int slot;
  int64_t stride[PF_MAX_RANK]; /* of every dimension, compact ones filled in */
} pf_subject;

/*===-- check_tensor.c ---------------------------------------------------===*/

extern const char *const pf_input_names[PREFILL_IN_COUNT];
/* By PREFILL_F32, F16 and BF16. */
extern const char *const pf_dtype_names[];

/* "input" or "output", and the name of its slot. */
const char *pf_slot_kind(const pf_subject *x);
const char *pf_slot_name(const pf_subject *x);
prefill_status pf_wrong_shape(const pf_subject *x, const int64_t *expected,
                              int rank);
prefill_status pf_wrong_type(const pf_subject *x, const char *expected);

static inline bool pf_is_type(DLDataType type, int code, int bits) {
  return type.code == code && type.bits == bits && type.lanes == 1;
}
/* NumPy and older DLPack have no bool of their own: bytes are accepted. */
static inline bool pf_is_bool(DLDataType type) {
  return pf_is_type(type, PF_DL_BOOL, 8) || pf_is_type(type, kDLUInt, 8);
}
/* PREFILL_F32, F16 or BF16; -1: another type. */
static inline int pf_float_dtype(DLDataType type) {
  if (pf_is_type(type, kDLFloat, 32))
    return PREFILL_F32;
  if (pf_is_type(type, kDLFloat, 16))
    return PREFILL_F16;
  if (pf_is_type(type, kDLBfloat, 16))
    return PREFILL_BF16;
  return -1;
}
static inline char *pf_data_of(const DLTensor *tensor) {
  return tensor->data ? (char *)tensor->data + tensor->byte_offset : NULL;
}

/* Rank, device, strides and address of any tensor. Fills x->stride. */
prefill_status pf_check_any(pf_subject *x);
/* Compares the shape with `expected` (-1: any). */
prefill_status pf_check_shape(const pf_subject *x, const int64_t *expected,
                              int rank);
/* Q, K, V or O: type, layout, heads and width; *batch and *rows are checked if
 * >= 0 and filled in otherwise. rank 0: 3 or 4, as the layout allows. */
prefill_status pf_check_rows(pf_subject *x, int layout, int64_t heads,
                             int64_t width, int rank, int64_t *batch,
                             int64_t *rows, pf_rows *result);

/*===-- check_operands.c -------------------------------------------------===*/

prefill_status pf_check_bias(pf_subject *x, pf_bias *bias);
prefill_status pf_check_per_batch(pf_subject *x);
/* [b, length] of integers, or booleans, too; kernels with `feature` read it. */
prefill_status pf_check_mask(pf_subject *x, int64_t length, uint32_t feature,
                             bool bool_or_int);
prefill_status pf_check_modality(pf_subject *x);
prefill_status pf_check_sinks(pf_subject *x);
prefill_status pf_check_rotary(pf_subject *x, pf_rows *table);
prefill_status pf_check_statistics(pf_subject *x);

/*===-- check_rows.c -----------------------------------------------------===*/

/* `in` and `out` are all inputs and outputs, by their slots. */
prefill_status pf_check_score_rows(pf_subject *in, pf_subject *out);
prefill_status pf_check_token_score(pf_subject *out, const pf_subject *in);
prefill_status pf_check_ragged(pf_call *call, pf_subject *in);
prefill_status pf_check_cache_slots(pf_call *call, pf_subject *in,
                                    pf_subject *out);
prefill_status pf_check_context_slots(pf_call *call, pf_subject *in,
                                      const pf_subject *out);

#endif
