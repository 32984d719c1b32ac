/*===- cuda_inputs.c - Inputs in the form that kernels read -------*- C -*-===*\
|*
|* Models have masks of int64, sinks of the type of Q, and rotary tables beside
|* unrotated Q and K; attention kernels read bytes, float32 and rotated rows.
The
|* kernels of runtime/cuda/inputs.c make these in workspace of the host's.
|*
\*===----------------------------------------------------------------------===*/
#include "cuda.h"
#include "prefill/cuda_abi.h"

void *pf_cuda_take(const pf_call *call, const pf_cuda_device *device,
                   pf_cuda_workspace *workspace, int64_t count, int64_t size,
                   prefill_status *status) {
  const prefill_context *context = call->context;
  const pf_cuda_driver *cuda = device->driver;
  int64_t bytes;
  void *memory = NULL;
  const int limit = (int)(sizeof(workspace->memory) / sizeof(void *));
  if (!__builtin_mul_overflow(count, size, &bytes) &&
      workspace->count < limit) {
    bytes = pf_max(bytes, 1);
    CUdeviceptr address = 0;
    if (context->device_alloc)
      memory = context->device_alloc(context->host, (size_t)bytes);
    else if (cuda->MemAllocAsync && cuda->MemFreeAsync &&
             !cuda->MemAllocAsync(&address, (size_t)bytes,
                                  (CUstream)context->stream))
      memory = (void *)(uintptr_t)address;
  }
  if (memory)
    workspace->memory[workspace->count++] = memory;
  else
    *status = pf_fail(call, PREFILL_OUT_OF_MEMORY,
                      "no memory for %lld x %lld bytes of workspace on the GPU",
                      (long long)count, (long long)size);
  return memory;
}

void pf_cuda_release(const pf_call *call, const pf_cuda_device *device,
                     pf_cuda_workspace *workspace, int keep) {
  const prefill_context *context = call->context;
  while (workspace->count > keep) {
    void *memory = workspace->memory[--workspace->count];
    if (!context->device_alloc)
      device->driver->MemFreeAsync((CUdeviceptr)(uintptr_t)memory,
                                   (CUstream)context->stream);
    else if (context->device_free)
      context->device_free(context->host, memory);
  }
}

static const void *data_of(const DLTensor *tensor) {
  return (const char *)tensor->data + tensor->byte_offset;
}

/* The prefill_cuda_element of a tensor of a type that check.c let pass. */
static int element_of(const DLTensor *tensor) {
  const DLDataType type = tensor->dtype;
  if (type.code == kDLBfloat)
    return PREFILL_CUDA_BF16;
  if (type.code == kDLFloat)
    return type.bits == 32 ? PREFILL_CUDA_F32 : PREFILL_CUDA_F16;
  return type.bits == 8    ? PREFILL_CUDA_BYTE
         : type.bits == 32 ? PREFILL_CUDA_I32
                           : PREFILL_CUDA_I64;
}

/* tensor, [rows][columns] or [columns], as `to`; ones for NULL. Its elements
 * are adjacent. */
static const void *convert(const pf_call *call, const pf_cuda_device *device,
                           pf_cuda_workspace *workspace, const DLTensor *tensor,
                           int64_t rows, int64_t columns, int to,
                           prefill_status *status) {
  pf_cuda_kernel kernel;
  if ((*status = pf_cuda_find_kernel(call, device, PREFILL_CUDA_INPUTS,
                                     "prefill_convert", &kernel)))
    return NULL;
  prefill_cuda_convert args = {
      .source = tensor ? data_of(tensor) : NULL,
      .source_row = tensor && tensor->ndim == 2 ? pf_stride_of(tensor, 0) : 0,
      .columns = (int32_t)columns,
      .from = tensor ? element_of(tensor) : to,
      .to = to};
  args.target = pf_cuda_take(call, device, workspace, rows * columns,
                             to == PREFILL_CUDA_F32 ? 4 : 1, status);
  if (args.target && rows && columns)
    *status = pf_cuda_launch(call, device, &kernel, "prefill_convert",
                             pf_ceil_div(columns, PREFILL_CUDA_INPUT_THREADS),
                             rows, 1, &args);
  return args.target;
}

/* A small input that has to be on the GPU, with adjacent elements. */
static prefill_status check_on_gpu(const pf_call *call, const char *name,
                                   const DLTensor *tensor) {
  if (tensor->device.device_type != kDLCUDA)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input %s: expected a tensor on the GPU, got one on the CPU",
                   name);
  const int last = tensor->ndim - 1;
  if (last >= 0 && tensor->shape[last] > 1 && pf_stride_of(tensor, last) != 1)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input %s: expected adjacent elements on a GPU, got stride "
                   "%lld",
                   name, (long long)pf_stride_of(tensor, last));
  return PREFILL_OK;
}

/* What both rotations share. */
static prefill_cuda_rotate rotation(const pf_call *call) {
  return (prefill_cuda_rotate){.cosine = call->cosine.data,
                               .sine = call->sine.data,
                               .cosine_batch = call->cosine.batch,
                               .cosine_row = call->cosine.row,
                               .sine_batch = call->sine.batch,
                               .sine_row = call->sine.row,
                               .dim = (int32_t)call->d,
                               .rotary_dim = call->desc->rotary_dim,
                               .table_rows = (int32_t)call->rotary_rows,
                               .width = (int32_t)call->rotary_width,
                               .interleaved = call->desc->rotary == 2,
                               .element = call->desc->dtype,
                               .table_element = call->rotary_dtype};
}

static prefill_status rotate(const pf_call *call, const pf_cuda_device *device,
                             const pf_cuda_workspace *workspace,
                             prefill_cuda_rotate *args, int64_t heads,
                             int64_t batch) {
  if (!args->rows || !batch)
    return PREFILL_OK;
  return pf_cuda_launch(call, device, &workspace->rotate, "prefill_rotate",
                        pf_ceil_div((int64_t)args->rows * args->dim / 2,
                                    PREFILL_CUDA_INPUT_THREADS),
                        heads, batch, args);
}

/* Q's copy, to be filled by pf_cuda_rotate_queries, and K's, filled here: the
 * output ROTATED_K if it is asked for. */
static prefill_status prepare_rotation(pf_call *call,
                                       const pf_cuda_device *device,
                                       const DLTensor *const *inputs,
                                       pf_cuda_workspace *workspace,
                                       prefill_cuda_attention *args) {
  prefill_status status;
  if ((status = check_on_gpu(call, "COS", inputs[PREFILL_IN_COS])) ||
      (status = check_on_gpu(call, "SIN", inputs[PREFILL_IN_SIN])) ||
      (status = pf_cuda_find_kernel(call, device, PREFILL_CUDA_INPUTS,
                                    "prefill_rotate", &workspace->rotate)))
    return status;
  args->q = pf_cuda_take(call, device, workspace, call->b * call->hq * call->s,
                         call->d * call->element, &status);
  args->q_row = call->d;
  args->q_head = call->s * call->d;
  args->q_batch = call->hq * args->q_head;
  if (status)
    return status;
  if (!call->rotated_k.data) {
    call->rotated_k =
        (pf_rows){.data = pf_cuda_take(call, device, workspace,
                                       call->b * call->hk * call->t,
                                       call->d * call->element, &status),
                  .batch = call->hk * call->t * call->d,
                  .head = call->t * call->d,
                  .row = call->d};
    if (status)
      return status;
  }
  prefill_cuda_rotate keys = rotation(call);
  keys.x = call->k.data;
  keys.x_batch = call->k.batch, keys.x_head = call->k.head;
  keys.x_row = call->k.row;
  keys.y = call->rotated_k.data;
  keys.y_batch = call->rotated_k.batch, keys.y_head = call->rotated_k.head;
  keys.y_row = call->rotated_k.row;
  keys.rows = (int32_t)call->t;
  args->k = call->rotated_k.data;
  args->k_batch = keys.y_batch, args->k_head = keys.y_head;
  args->k_row = keys.y_row;
  return rotate(call, device, workspace, &keys, call->hk, call->b);
}

prefill_status pf_cuda_rotate_queries(const pf_call *call,
                                      const pf_cuda_device *device,
                                      const pf_cuda_workspace *workspace,
                                      const prefill_cuda_attention *args,
                                      int64_t position, int64_t b,
                                      int64_t count) {
  /* On the device they are the kernel's to clamp. */
  if (!args->positions &&
      (position < 0 || position > call->rotary_rows - call->s))
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input COS: has %lld rows, query rows are at positions "
                   "%lld to %lld",
                   (long long)call->rotary_rows, (long long)position,
                   (long long)(position + call->s - 1));
  prefill_cuda_rotate queries = rotation(call);
  const int64_t table = call->rotary_dtype == PREFILL_F32 ? 4 : 2;
  queries.cosine = call->cosine.data + b * call->cosine.batch * table;
  queries.sine = call->sine.data + b * call->sine.batch * table;
  queries.x = call->q.data + b * call->q.batch * call->element;
  queries.x_batch = call->q.batch, queries.x_head = call->q.head;
  queries.x_row = call->q.row;
  queries.y = (char *)args->q + b * args->q_batch * call->element;
  queries.y_batch = args->q_batch, queries.y_head = args->q_head;
  queries.y_row = args->q_row;
  queries.rows = (int32_t)call->s;
  queries.position = position;
  queries.positions = args->positions ? args->positions + b : NULL;
  return rotate(call, device, workspace, &queries, call->hq, count);
}

prefill_status pf_cuda_prepare_inputs(pf_call *call,
                                      const pf_cuda_device *device,
                                      const DLTensor *const *inputs,
                                      pf_cuda_workspace *workspace,
                                      prefill_cuda_attention *args) {
  const DLTensor *mask = inputs[PREFILL_IN_KEY_MASK],
                 *sinks = inputs[PREFILL_IN_SINKS];
  prefill_status status = PREFILL_OK;
  if (call->desc->features & PREFILL_TILE_KEY_MASK) {
    if (mask && (status = check_on_gpu(call, "KEY_MASK", mask)))
      return status;
    const bool ready = mask && mask->dtype.bits == 8;
    args->key_mask = ready ? data_of(mask)
                           : convert(call, device, workspace, mask, call->b,
                                     call->t, PREFILL_CUDA_BYTE, &status);
    args->key_mask_batch = ready ? pf_stride_of(mask, 0) : call->t;
    if (status)
      return status;
  }
  if (call->desc->features & PREFILL_TILE_SINK) {
    if (!sinks)
      return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                     "input SINKS: expected a tensor, got null");
    if ((status = check_on_gpu(call, "SINKS", sinks)))
      return status;
    args->sink = sinks->dtype.bits == 32
                     ? data_of(sinks)
                     : convert(call, device, workspace, sinks, 1, call->hq,
                               PREFILL_CUDA_F32, &status);
    if (status)
      return status;
  }
  return call->rotary ? prepare_rotation(call, device, inputs, workspace, args)
                      : PREFILL_OK;
}
