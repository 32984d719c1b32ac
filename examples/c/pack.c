/*===- pack.c - Which prompts share a run, from C -----------------*- C -*-===*\
|*
|*   cc -O2 -I ../../runtime/include pack.c -L LIB -lprefill_host -o pack
|*   LD_LIBRARY_PATH=LIB ./pack 100 300 727 64
|*
|* LIB holds libprefill_host.so (build/lib of this repository); a compiled
|* libprefill_model.so has the same functions. Prints the packs of prompts of
|* these lengths and the inputs of each run of a model compiled with -pack.
|*
\*===----------------------------------------------------------------------===*/
#include "prefill/pack.h"
#include <stdio.h>
#include <stdlib.h>

static void print(const char *name, const int64_t *numbers, int64_t count) {
  printf("  %s", name);
  for (int64_t i = 0; i < count; ++i)
    printf(" %lld", (long long)numbers[i]);
  printf("\n");
}

int main(int argc, char **argv) {
  const size_t count = (size_t)argc - 1;
  int64_t *numbers = calloc(4 * (count + 1), sizeof(int64_t));
  if (!numbers)
    return 1;
  int64_t *lengths = numbers, *prompts = lengths + count + 1;
  int64_t *packs = prompts + count + 1, *starts = packs + count + 1;
  for (size_t i = 0; i < count; ++i)
    lengths[i] = atoll(argv[i + 1]);
  prefill_context context = {0};
  prefill_pack_result plan = {.prompts = prompts, .starts = packs};
  if (prefill_pack_plan(&context, lengths, count, NULL, &plan) != PREFILL_OK) {
    fprintf(stderr, "%s\n", context.message);
    return 1;
  }
  printf("%zu packs; a padded batch has %.2f times the rows\n", plan.packs,
         plan.gain);
  for (size_t p = 0; p < plan.packs; ++p) {
    const int64_t *mine = prompts + packs[p];
    const size_t here = (size_t)(packs[p + 1] - packs[p]);
    /* A program fills input_ids and position_ids too, see pack.h. */
    const prefill_pack_inputs inputs = {.segment_starts = starts};
    if (prefill_pack_fill(&context, NULL, lengths, mine, here, &inputs) !=
        PREFILL_OK) {
      fprintf(stderr, "%s\n", context.message);
      return 1;
    }
    printf("pack %zu\n", p);
    print("prompts", mine, (int64_t)here);
    print("segment_starts", starts, (int64_t)here + 1);
  }
  free(numbers);
  return 0;
}
