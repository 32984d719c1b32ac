/*===- sparse.h - From a kernel's plan to indices -----------------*- C -*-===*/
#ifndef PREFILL_RUNTIME_SPARSE_H
#define PREFILL_RUNTIME_SPARSE_H

#include "internal.h"

/* Decides for every head of the call whether it runs dense, estimates what
 * sparse ones visit, and fills call->index and call->most_columns. Leaves
 * call->index NULL when every head is dense. */
prefill_status pf_build_index(pf_call *call);

#endif
