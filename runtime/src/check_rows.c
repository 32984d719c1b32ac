/*===- check_rows.c - Inputs that say which rows are which --------*- C -*-===*\
|*
|* Scores of keys, positions and packs of prompts, caches written in place and
|* contexts: types, shapes and which go together. The numbers are looked at
where
|* they are used.
|*
\*===----------------------------------------------------------------------===*/
#include "check.h"

/* A score of every key: [b,t] float32. */
static prefill_status check_key_scores(pf_subject *out, pf_rows *scores) {
  const pf_call *call = out->call;
  prefill_status status = pf_check_any(out);
  if (status)
    return status;
  if (!pf_is_type(out->tensor->dtype, kDLFloat, 32))
    return pf_wrong_type(out, "float32");
  const int64_t expected[2] = {call->b, call->t};
  if ((status = pf_check_shape(out, expected, 2)))
    return status;
  *scores = (pf_rows){.data = pf_data_of(out->tensor),
                      .batch = out->stride[0],
                      .row = out->stride[1]};
  return PREFILL_OK;
}

/* SCORE_ROWS and TOKEN_PEAK, which come together. */
prefill_status pf_check_score_rows(pf_subject *in, pf_subject *out) {
  pf_subject *rows = &in[PREFILL_IN_SCORE_ROWS];
  pf_subject *peak = &out[PREFILL_OUT_TOKEN_PEAK];
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
  prefill_status status = pf_check_any(rows);
  if (status)
    return status;
  if (!pf_is_bool(rows->tensor->dtype))
    return pf_wrong_type(rows, "bool");
  const int64_t expected[2] = {call->b, call->s};
  if ((status = pf_check_shape(rows, expected, 2)))
    return status;
  call->score_rows = (pf_rows){.data = pf_data_of(rows->tensor),
                               .batch = rows->stride[0],
                               .row = rows->stride[1]};
  return check_key_scores(peak, &call->token_peak);
}

/* TOKEN_SCORE, and that the call is one that it is defined for. */
prefill_status pf_check_token_score(pf_subject *out, const pf_subject *in) {
  pf_call *call = out->call;
  static const int refused[] = {PREFILL_IN_BIAS, PREFILL_IN_SINKS,
                                PREFILL_IN_Q_SEGMENT, PREFILL_IN_PAST_K};
  for (size_t i = 0; i < sizeof(refused) / sizeof(int); ++i)
    if (in[refused[i]].tensor)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "output TOKEN_SCORE: not with input %s",
                     pf_input_names[refused[i]]);
  static const int either[] = {PREFILL_IN_SEGMENT_STARTS,
                               PREFILL_IN_SCORE_ROWS};
  for (size_t i = 0; i < sizeof(either) / sizeof(int); ++i)
    if (in[PREFILL_IN_Q_POSITIONS].tensor && in[either[i]].tensor)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "output TOKEN_SCORE: with input Q_POSITIONS only without "
                     "%s",
                     pf_input_names[either[i]]);
  if (!call->causal)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "output TOKEN_SCORE: the kernel is not causal");
  return check_key_scores(out, &call->token_score);
}

/* Q_POSITIONS and SEGMENT_STARTS: types and shapes; pf_prepare_ragged looks at
 * the numbers. */
prefill_status pf_check_ragged(pf_call *call, pf_subject *in) {
  pf_subject *positions = &in[PREFILL_IN_Q_POSITIONS];
  pf_subject *starts = &in[PREFILL_IN_SEGMENT_STARTS];
  static const int alone[] = {PREFILL_IN_BIAS, PREFILL_IN_KEY_MASK,
                              PREFILL_IN_KV_LENGTHS, PREFILL_IN_Q_SEGMENT};
  for (size_t i = 0; starts->tensor && i < sizeof(alone) / sizeof(int); ++i)
    if (in[alone[i]].tensor)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "input SEGMENT_STARTS: not together with %s",
                     pf_slot_name(&in[alone[i]]));
  prefill_status status;
  if (positions->tensor) {
    if ((status = pf_check_any(positions)))
      return status;
    const DLTensor *tensor = positions->tensor;
    if (!pf_is_type(tensor->dtype, kDLInt, 64))
      return pf_wrong_type(positions, "int64");
    const bool shared = tensor->ndim == 2 && tensor->shape[0] == 1;
    const int64_t expected[2] = {shared ? 1 : call->b, call->s};
    const bool flat = tensor->ndim == 1;
    if ((status = pf_check_shape(positions, expected + flat, flat ? 1 : 2)))
      return status;
    call->q_positions = tensor;
  }
  if (!starts->tensor)
    return PREFILL_OK;
  if ((status = pf_check_any(starts)))
    return status;
  if (!pf_is_type(starts->tensor->dtype, kDLInt, 64))
    return pf_wrong_type(starts, "int64");
  const int64_t any = starts->tensor->ndim == 1 && starts->tensor->shape[0] > 0
                          ? starts->tensor->shape[0]
                          : -1;
  if ((status = pf_check_shape(starts, &any, 1)))
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
prefill_status pf_check_cache_slots(pf_call *call, pf_subject *in,
                                    pf_subject *out) {
  pf_subject *parts[] = {&in[PREFILL_IN_PAST_K], &in[PREFILL_IN_PAST_V],
                         &in[PREFILL_IN_CACHE_SLOTS],
                         &out[PREFILL_OUT_PRESENT_K],
                         &out[PREFILL_OUT_PRESENT_V]};
  pf_subject *kept = &in[PREFILL_IN_KEPT_ROWS];
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
                     pf_slot_kind(parts[i]), pf_slot_name(parts[i]));
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
    if (rows[i] &&
        (status = pf_check_rows(parts[i], PREFILL_BHSD, call->hk,
                                i % 3 ? call->e : call->d, 4, &call->b,
                                &call->cache_rows, rows[i])))
      return status;
  if ((status = pf_check_any(parts[2])))
    return status;
  if (!pf_is_type(parts[2]->tensor->dtype, kDLInt, 64))
    return pf_wrong_type(parts[2], "int64");
  const int64_t expected[2] = {call->segment_starts->shape[0] - 1, 2};
  if ((status = pf_check_shape(parts[2], expected, 2)))
    return status;
  call->cache_slots = parts[2]->tensor;
  if (!kept->tensor)
    return PREFILL_OK;
  if ((status = pf_check_any(kept)))
    return status;
  if (!pf_is_type(kept->tensor->dtype, kDLInt, 64))
    return pf_wrong_type(kept, "int64");
  const int64_t rows_kept[2] = {1, -1};
  const bool flat = kept->tensor->ndim == 1;
  if ((status = pf_check_shape(kept, rows_kept + flat, flat ? 1 : 2)))
    return status;
  call->kept_rows = kept->tensor;
  return PREFILL_OK;
}

/* CONTEXT_SLOTS, and that the call is one that it is defined for; contexts.c
 * looks at the numbers. */
prefill_status pf_check_context_slots(pf_call *call, pf_subject *in,
                                      const pf_subject *out) {
  pf_subject *slots = &in[PREFILL_IN_CONTEXT_SLOTS];
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
  prefill_status status = pf_check_any(slots);
  if (status)
    return status;
  if (!pf_is_type(slots->tensor->dtype, kDLInt, 64))
    return pf_wrong_type(slots, "int64");
  const int64_t expected[2] = {call->segment_starts->shape[0] - 1, 2};
  if ((status = pf_check_shape(slots, expected, 2)))
    return status;
  call->context_slots = slots->tensor;
  return PREFILL_OK;
}
