/*===- cuda.c - Attention on a GPU --------------------------------*- C -*-===*\
|*
|* What check.c cannot know of a call with CUDA tensors, and the launch. Nothing
|* here waits for the device or allocates but in the order of the stream: after
|* the first call in a context, which loads the code, calls can be captured into
|* CUDA graphs.
|*
|* Small inputs (lengths, offset) may lie on the host or on the device. On the
|* host they are read, and batch entries that differ get a launch each. On the
|* device they are handed to the kernel, which wants them in one type.
|*
\*===----------------------------------------------------------------------===*/
#include "cuda.h"
#include "prefill/cuda_abi.h"
#include <stdio.h>

/* Bytes that a row's pieces are read in (cuda_abi.h). */
enum { PIECE = 16 };

static bool on_device(const DLTensor *tensor) {
  return tensor && tensor->device.device_type == kDLCUDA;
}

/* Strides and address of Q, K, V or O fit the kernel's accesses: `bytes` each,
 * of 16-bit elements. */
static prefill_status check_pieces(const pf_call *call, const char *name,
                                   const pf_rows *x, int bytes,
                                   const int64_t dims[3]) {
  const struct {
    const char *what;
    int64_t stride, count;
  } strides[] = {{"batches", x->batch, dims[0]},
                 {"heads", x->head, dims[1]},
                 {"rows", x->row, dims[2]}};
  if ((uintptr_t)x->data % (uintptr_t)bytes)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "%s: data is not aligned to %d bytes, as GPUs need", name,
                   bytes);
  for (int i = 0; i < 3; ++i)
    if (strides[i].count > 1 && strides[i].stride % (bytes / 2))
      return pf_fail(call, PREFILL_INVALID_SHAPE,
                     "%s: expected a stride of %s that is a multiple of %d, "
                     "as GPUs need, got %lld",
                     name, strides[i].what, bytes / 2,
                     (long long)strides[i].stride);
  return PREFILL_OK;
}

/* What the CPU's kernels take and these do not. */
static prefill_status check_features(const pf_call *call,
                                     const DLTensor *const *inputs) {
  static const struct {
    int slot;
    const char *name, *remedy;
  } refused[] = {
      {PREFILL_IN_BIAS, "BIAS", "use CPU tensors"},
      {PREFILL_IN_Q_SEGMENT, "Q_SEGMENT", "use CPU tensors"},
      {PREFILL_IN_Q_POSITIONS, "Q_POSITIONS",
       "compile with -row-liveness=off, or use CPU tensors"},
      {PREFILL_IN_SEGMENT_STARTS, "SEGMENT_STARTS", "use CPU tensors"},
  };
  for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); ++i)
    if (inputs[refused[i].slot])
      return pf_fail(call, PREFILL_UNSUPPORTED, "input %s: not on GPUs; %s",
                     refused[i].name, refused[i].remedy);
  if (call->density.data || call->block_map.data || call->token_score.data)
    return pf_fail(call, PREFILL_UNSUPPORTED,
                   "outputs DENSITY, BLOCK_MAP and TOKEN_SCORE: not on GPUs; "
                   "use CPU tensors");
  return PREFILL_OK;
}

/* A small input on the device has the one type that the kernel reads, in
 * adjacent elements. */
static prefill_status check_small(const pf_call *call, const char *name,
                                  const DLTensor *tensor, int code, int bits,
                                  const char *type) {
  if (tensor->dtype.code != code || tensor->dtype.bits != bits)
    return pf_fail(call, PREFILL_INVALID_TYPE, "input %s: expected %s on a GPU",
                   name, type);
  const int last = tensor->ndim - 1;
  if (last >= 0 && tensor->shape[last] > 1 && pf_stride_of(tensor, last) != 1)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "input %s: expected adjacent elements, got stride %lld",
                   name, (long long)pf_stride_of(tensor, last));
  return PREFILL_OK;
}

static const void *data_of(const DLTensor *tensor) {
  return (const char *)tensor->data + tensor->byte_offset;
}

/* Number b of a host tensor [b] or []. */
static int64_t per_batch(const DLTensor *tensor, int64_t b) {
  const int64_t entry = tensor->ndim && tensor->shape[0] > 1 ? b : 0;
  return pf_read_int(tensor,
                     entry * (tensor->ndim ? pf_stride_of(tensor, 0) : 0));
}

/* Lengths and offsets into the launch's arguments. */
static prefill_status bind_small(const pf_call *call,
                                 const DLTensor *const *inputs,
                                 prefill_cuda_attention *args) {
  const DLTensor *lengths = inputs[PREFILL_IN_KV_LENGTHS],
                 *offset = inputs[PREFILL_IN_Q_OFFSET];
  prefill_status status;
  args->kv_len = (int32_t)call->t;
  args->position =
      call->desc->alignment == PREFILL_ALIGN_END ? call->t - call->s : 0;
  if (on_device(lengths)) {
    if ((status = check_small(call, "KV_LENGTHS", lengths, kDLInt, 32,
                              "int32, or a tensor on the CPU,")))
      return status;
    if (call->b > 1 && (lengths->ndim == 0 || lengths->shape[0] == 1))
      return pf_fail(call, PREFILL_INVALID_SHAPE,
                     "input KV_LENGTHS: expected [%lld] on a GPU",
                     (long long)call->b);
    args->kv_lengths = data_of(lengths);
  }
  if (on_device(offset)) {
    if ((status = check_small(call, "Q_OFFSET", offset, kDLInt, 64,
                              "int64, or a tensor on the CPU,")))
      return status;
    if (call->b > 1 && (offset->ndim == 0 || offset->shape[0] == 1))
      return pf_fail(call, PREFILL_INVALID_SHAPE,
                     "input Q_OFFSET: expected [%lld] on a GPU",
                     (long long)call->b);
    args->positions = data_of(offset);
  }
  return PREFILL_OK;
}

/* The arguments that do not change from launch to launch. */
static void bind_tensors(const pf_call *call, prefill_cuda_attention *args) {
  args->q = call->q.data;
  args->k = call->k.data;
  args->v = call->v.data;
  args->o = call->o.data;
  args->lse = (float *)call->lse.data;
  args->q_batch = call->q.batch, args->q_head = call->q.head;
  args->q_row = call->q.row;
  args->k_batch = call->k.batch, args->k_head = call->k.head;
  args->k_row = call->k.row;
  args->v_batch = call->v.batch, args->v_head = call->v.head;
  args->v_row = call->v.row;
  args->o_batch = call->o.batch, args->o_head = call->o.head;
  args->o_row = call->o.row;
  args->lse_batch = call->lse.batch, args->lse_head = call->lse.head;
  args->window_left = call->window_left;
  args->window_right = call->window_right;
  args->q_len = (int32_t)call->s;
  args->heads = (int32_t)call->hq;
  args->group = (int32_t)call->group;
  args->scale = call->scale;
  args->softcap = call->desc->softcap;
}

prefill_status pf_cuda_launch(const pf_call *call, const pf_cuda_device *device,
                              const pf_cuda_kernel *kernel, const char *what,
                              int64_t x, int64_t y, int64_t z, void *param) {
  return pf_cuda_launch_with(call, device, kernel, what, x, y, z, &param);
}

prefill_status pf_cuda_launch_with(const pf_call *call,
                                   const pf_cuda_device *device,
                                   const pf_cuda_kernel *kernel,
                                   const char *what, int64_t x, int64_t y,
                                   int64_t z, void **params) {
  const prefill_cuda_image *image = kernel->image;
  if (x > INT32_MAX || y > UINT16_MAX || z > UINT16_MAX)
    return pf_fail(call, PREFILL_UNSUPPORTED,
                   "%s: a grid of %lld x %lld x %lld is more than GPUs take",
                   what, (long long)x, (long long)y, (long long)z);
  const CUresult code = device->driver->LaunchKernel(
      kernel->function, (unsigned)x, (unsigned)y, (unsigned)z,
      (unsigned)image->threads, 1, 1, (unsigned)image->shared_bytes,
      (CUstream)call->context->stream, params, NULL);
  return code ? pf_cuda_fail(call, device->driver, what, code) : PREFILL_OK;
}

/* Batch entries [b, b + count) of the call. */
static prefill_status launch(const pf_call *call, const pf_cuda_device *device,
                             const pf_cuda_kernel *dense,
                             const pf_cuda_sparse *sparse,
                             pf_cuda_workspace *workspace,
                             const prefill_cuda_attention *all, int64_t b,
                             int64_t count) {
  prefill_cuda_attention args = *all;
  prefill_cuda_tensor_maps maps;
  void *params[] = {&args, &maps}; /* a kernel without maps has one parameter */
  pf_cuda_kernel kernel = *dense;
  int64_t blocks = 0; /* of a persistent kernel */
  const int64_t bytes = call->element;
  args.q = (const char *)all->q + b * all->q_batch * bytes;
  args.k = (const char *)all->k + b * all->k_batch * bytes;
  args.v = (const char *)all->v + b * all->v_batch * bytes;
  args.o = (char *)all->o + b * all->o_batch * bytes;
  if (all->lse)
    args.lse = all->lse + b * all->lse_batch;
  if (all->kv_lengths)
    args.kv_lengths = all->kv_lengths + b;
  if (all->positions)
    args.positions = all->positions + b;
  if (all->key_mask)
    args.key_mask = all->key_mask + b * all->key_mask_batch;
  prefill_status status = PREFILL_OK;
  const int before = workspace->count;
  if (sparse->patterns) {
    kernel = sparse->attention;
    status = pf_cuda_build_lists(call, device, sparse, workspace, count, &args);
  } else {
    status =
        pf_cuda_prefer_tma(call, device, &args, count, &kernel, &maps, &blocks);
  }
  const int64_t tiles = pf_ceil_div(call->s, kernel.image->block_q);
  args.block_rows = (int32_t)tiles;
  if (!status)
    status = blocks
                 ? pf_cuda_launch_with(call, device, &kernel, "cuLaunchKernel",
                                       blocks, 1, 1, params)
                 : pf_cuda_launch_with(call, device, &kernel, "cuLaunchKernel",
                                       tiles, call->hq, count, params);
  if (!status)
    status = pf_cuda_fill_rows(call, device, workspace, &args, count);
  pf_cuda_release(call, device, workspace, before);
  return status;
}

/* Everything after the checks, in runs of batch entries that agree in what the
 * host knows. */
static prefill_status launch_all(pf_call *call, const pf_cuda_device *device,
                                 const pf_cuda_kernel *kernel,
                                 const pf_cuda_sparse *sparse,
                                 const DLTensor *const *in,
                                 prefill_cuda_attention *args,
                                 pf_cuda_workspace *workspace) {
  prefill_status status;
  if ((status = pf_cuda_prepare_inputs(call, device, in, workspace, args)) ||
      (status = pf_cuda_prepare_fill(call, device, in, workspace, args)))
    return status;
  const DLTensor *lengths = in[PREFILL_IN_KV_LENGTHS],
                 *offset = in[PREFILL_IN_Q_OFFSET];
  const bool read_length = lengths && !on_device(lengths);
  const bool read_offset = offset && !on_device(offset);
  const int64_t most = UINT16_MAX;
  for (int64_t b = 0; b < call->b;) {
    const int64_t length = read_length ? per_batch(lengths, b) : args->kv_len;
    const int64_t position =
        read_offset ? per_batch(offset, b) : args->position;
    int64_t count = 1;
    while (b + count < call->b && count < most &&
           (!read_length || per_batch(lengths, b + count) == length) &&
           (!read_offset || per_batch(offset, b + count) == position))
      ++count;
    prefill_cuda_attention here = *args;
    here.kv_len = (int32_t)pf_max(0, pf_min(length, call->t));
    here.position = pf_clamp_offset(call, position);
    if ((call->rotary &&
         (status = pf_cuda_rotate_queries(call, device, workspace, args,
                                          position, b, count))) ||
        (status =
             launch(call, device, kernel, sparse, workspace, &here, b, count)))
      return status;
    b += count;
  }
  return PREFILL_OK;
}

prefill_status pf_cuda_run(pf_call *call, const DLTensor *const *inputs,
                           size_t input_count) {
  const prefill_context *context = call->context;
  const DLTensor *in[PREFILL_IN_COUNT] = {NULL};
  for (size_t i = 0; i < input_count && i < PREFILL_IN_COUNT; ++i)
    in[i] = inputs[i];
  if (context->struct_size < sizeof(prefill_context))
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "CUDA tensors: expected context.struct_size of %zu, got %u",
                   sizeof(prefill_context), context->struct_size);
  prefill_status status;
  pf_cuda_device device;
  pf_cuda_kernel kernel;
  const int64_t q_dims[] = {call->b, call->hq, call->s},
                k_dims[] = {call->b, call->hk, call->t};
  if ((status = check_features(call, in)) ||
      (status = pf_cuda_find_device(call, &device)))
    return status;
  if (device.number != call->device)
    return pf_fail(call, PREFILL_INVALID_ARGUMENT,
                   "input Q: is on GPU %d, but GPU %d is current on this "
                   "thread",
                   (int)call->device, (int)device.number);
  if ((status = pf_cuda_find_kernel(call, &device, PREFILL_CUDA_DENSE, NULL,
                                    &kernel)) ||
      (status = check_pieces(call, "input Q", &call->q, PIECE, q_dims)) ||
      (status = check_pieces(call, "input K", &call->k, PIECE, k_dims)) ||
      (status = check_pieces(call, "input V", &call->v, PIECE, k_dims)) ||
      (status = check_pieces(call, "output O", &call->o, 4, q_dims)))
    return status;
  if (call->lse.data && call->s > 1 && call->lse.row != 1)
    return pf_fail(call, PREFILL_INVALID_SHAPE,
                   "output LSE: expected adjacent rows on a GPU, got stride "
                   "%lld",
                   (long long)call->lse.row);
  prefill_cuda_attention args = {0};
  bind_tensors(call, &args);
  if ((status = bind_small(call, in, &args)) || !call->s || !call->b)
    return status;
  pf_cuda_sparse sparse;
  if ((status = pf_cuda_prepare_sparse(call, &device, &sparse)))
    return status;
  pf_cuda_workspace workspace = {.count = 0};
  status = launch_all(call, &device, &kernel, &sparse, in, &args, &workspace);
  pf_cuda_release(call, &device, &workspace, 0);
  return status;
}
