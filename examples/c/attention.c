/*===- attention.c - Call a compiled attention kernel from C ------*- C -*-===*\
|*
|*   cc -O2 -I ../../runtime/include attention.c -o attention -ldl -lm
|*   ./attention out/libprefill_model.so               lists the kernels
|*   ./attention out/libprefill_model.so KERNEL q_heads kv_heads head_dim tokens
|*               [LAYOUT] [threads]
|*
|* LAYOUT: bhsd, bshd or flat ([b,s,h*d]), one for all or one each for Q, K, V
|* and O, as in bhsd,bhsd,bshd,flat.
|*
|* Runs a float32 causal kernel on random numbers, prints the time, and compares
|* one row with a plain loop. Needs prefill.h (runtime/include) and dlpack.h
|* (Debian: libdlpack-dev) on the include path, and at run time nothing but the
|* library.
|*
\*===----------------------------------------------------------------------===*/
#include "prefill/prefill.h"
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The functions of prefill.h, found in the library. A program that links the
 * library (cc attention.c out/libprefill_model.so) just calls them. */
static size_t (*kernel_count)(void);
static const char *(*kernel_name)(size_t index);
static prefill_status (*run)(prefill_context *, const char *,
                             const DLTensor *const *, size_t, DLTensor *const *,
                             size_t);
static prefill_pool *(*pool_create)(size_t threads);
static void (*pool_destroy)(prefill_pool *pool);
static prefill_parallel_for_fn pool_parallel_for;

/* Finds `name` in the library or ends the program. */
static void *find(void *library, const char *name) {
  void *symbol = dlsym(library, name);
  if (!symbol) {
    fprintf(stderr, "%s\n", dlerror());
    exit(1);
  }
  return symbol;
}

/* Q, K, V or O of one sequence, in the layout of the kernel. */
typedef struct array {
  float *data;
  int64_t shape[4];
  DLTensor tensor;
  int64_t head, row; /* strides in elements */
} array;

/* Entry `index` of a comma-separated list of layouts; a single one is for all.
 */
static const char *layout_of(const char *list, int index, char entry[8]) {
  for (; index && strchr(list, ','); --index)
    list = strchr(list, ',') + 1;
  snprintf(entry, 8, "%.*s", (int)strcspn(list, ","), list);
  return entry;
}

/* Allocates; `random` fills with numbers in [-1, 1). */
static void make(array *a, const char *layout, int64_t heads, int64_t rows,
                 int64_t width, int random) {
  const int bhsd = strcmp(layout, "bhsd") == 0;
  const int flat = strcmp(layout, "flat") == 0;
  const int64_t count = heads * rows * width;
  a->data = malloc((size_t)count * sizeof(float));
  if (!a->data) {
    fprintf(stderr, "out of memory\n");
    exit(1);
  }
  for (int64_t i = 0; random && i < count; ++i)
    a->data[i] = (float)rand() / (float)RAND_MAX * 2 - 1;
  a->shape[0] = 1;
  a->shape[1] = bhsd ? heads : rows;
  a->shape[2] = bhsd ? rows : flat ? heads * width : heads;
  a->shape[3] = width;
  a->head = bhsd ? rows * width : width;
  a->row = bhsd ? width : heads * width;
  memset(&a->tensor, 0, sizeof(a->tensor));
  a->tensor.data = a->data;
  a->tensor.device.device_type = kDLCPU;
  a->tensor.ndim = flat ? 3 : 4;
  a->tensor.dtype.code = kDLFloat;
  a->tensor.dtype.bits = 32;
  a->tensor.dtype.lanes = 1;
  a->tensor.shape = a->shape; /* strides NULL: compact */
}

/* Largest difference between row `i` of head `h` of O and causal attention. */
static double check_row(const array *q, const array *k, const array *v,
                        const array *o, int64_t h, int64_t group, int64_t i,
                        int64_t width) {
  const float *qi = q->data + h * q->head + i * q->row;
  const float *oi = o->data + h * o->head + i * o->row;
  double *sum = calloc((size_t)width, sizeof(double)), total = 0, worst = 0;
  for (int64_t j = 0; sum && j <= i; ++j) {
    const float *kj = k->data + h / group * k->head + j * k->row;
    const float *vj = v->data + h / group * v->head + j * v->row;
    double score = 0;
    for (int64_t c = 0; c < width; ++c)
      score += (double)qi[c] * (double)kj[c];
    const double weight = exp(score / sqrt((double)width));
    total += weight;
    for (int64_t c = 0; c < width; ++c)
      sum[c] += weight * (double)vj[c];
  }
  for (int64_t c = 0; sum && c < width; ++c) {
    const double difference = fabs(sum[c] / total - (double)oi[c]);
    worst = difference > worst ? difference : worst;
  }
  free(sum);
  return worst;
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
  if (argc != 2 && argc < 7) {
    fprintf(stderr,
            "usage: %s LIBRARY [KERNEL q_heads kv_heads head_dim tokens "
            "[LAYOUT] [threads]]\n",
            argv[0]);
    return 2;
  }
  void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  *(void **)&kernel_count = find(library, "prefill_kernel_count");
  *(void **)&kernel_name = find(library, "prefill_kernel_name");
  *(void **)&run = find(library, "prefill_run");
  *(void **)&pool_create = find(library, "prefill_pool_create");
  *(void **)&pool_destroy = find(library, "prefill_pool_destroy");
  *(void **)&pool_parallel_for = find(library, "prefill_pool_parallel_for");

  if (argc == 2) {
    for (size_t i = 0; i < kernel_count(); ++i)
      printf("%s\n", kernel_name(i));
    return 0;
  }
  const int64_t q_heads = atoll(argv[3]), kv_heads = atoll(argv[4]);
  const int64_t width = atoll(argv[5]), tokens = atoll(argv[6]);
  const char *layout = argc > 7 ? argv[7] : "bhsd";
  const int threads = argc > 8 ? atoi(argv[8]) : 1;
  if (q_heads < 1 || kv_heads < 1 || width < 1 || tokens < 1 || threads < 1) {
    fprintf(stderr, "sizes must be positive\n");
    return 2;
  }
  array q, k, v, o;
  char entry[8];
  make(&q, layout_of(layout, 0, entry), q_heads, tokens, width, 1);
  make(&k, layout_of(layout, 1, entry), kv_heads, tokens, width, 1);
  make(&v, layout_of(layout, 2, entry), kv_heads, tokens, width, 1);
  make(&o, layout_of(layout, 3, entry), q_heads, tokens, width, 0);

  prefill_context context;
  memset(&context, 0, sizeof(context));
  context.struct_size = sizeof(context);
  prefill_pool *pool = pool_create((size_t)threads);
  context.host = pool;
  context.parallel_for = pool_parallel_for;

  const DLTensor *inputs[] = {&q.tensor, &k.tensor, &v.tensor};
  DLTensor *outputs[] = {&o.tensor};
  double best = 1e30;
  for (int i = 0; i < 3; ++i) {
    const double start = seconds();
    if (run(&context, argv[2], inputs, 3, outputs, 1) != PREFILL_OK) {
      fprintf(stderr, "%s\n", context.message);
      return 1;
    }
    const double taken = seconds() - start;
    best = taken < best ? taken : best;
  }
  printf("%s: %lld tokens, %.3f ms, last row differs by %.1e\n", argv[2],
         (long long)tokens, best * 1e3,
         check_row(&q, &k, &v, &o, q_heads - 1, q_heads / kv_heads, tokens - 1,
                   width));
  pool_destroy(pool);
  free(q.data);
  free(k.data);
  free(v.data);
  free(o.data);
  dlclose(library);
  return 0;
}
