/*===- model.c - The library's kernels by name --------------------*- C -*-===*/
#include "internal.h"
#include <string.h>

size_t prefill_kernel_count(void) { return (size_t)prefill_model_kernel_count; }

/* NULL past the last kernel. */
const char *prefill_kernel_name(size_t index) {
  return index < (size_t)prefill_model_kernel_count
             ? prefill_model_kernels[index]->name
             : NULL;
}

prefill_status prefill_run(prefill_context *context, const char *name,
                           const DLTensor *const *inputs, size_t input_count,
                           DLTensor *const *outputs, size_t output_count) {
  if (!context ||
      (context->struct_size && context->struct_size < PF_LEAST_CONTEXT))
    return PREFILL_INVALID_ARGUMENT;
  if (!name)
    return pf_fail_context(context, PREFILL_INVALID_ARGUMENT,
                           "expected a kernel's name, got null");
  for (int64_t i = 0; i < prefill_model_kernel_count; ++i)
    if (strcmp(prefill_model_kernels[i]->name, name) == 0)
      return prefill_attention(prefill_model_kernels[i], context, inputs,
                               input_count, outputs, output_count);
  return pf_fail_context(context, PREFILL_NOT_FOUND,
                         "kernel '%.64s': not in this library, which has %lld",
                         name, (long long)prefill_model_kernel_count);
}
