/*===- ort_rows.h - The ops on rows of the plug-in ----------------*- C -*-===*\
|*
|* ort_custom_op.c registers them beside Attention.
|*
\*===----------------------------------------------------------------------===*/
#ifndef PREFILL_RUNTIME_ORT_ROWS_H
#define PREFILL_RUNTIME_ORT_ROWS_H

#include "ort_abi.h"

/* Adds ProtectRows, SelectRows and FindRows to the domain. */
OrtStatus *pf_add_row_ops(const OrtApi *api, OrtCustomOpDomain *domain);

#endif
