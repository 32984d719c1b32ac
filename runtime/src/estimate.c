#include "index.h"
#include "sparse.h"
prefill_status pf_build_index(pf_call *call) {
  call->index = NULL;
  return PREFILL_OK;
}
void pf_index_row(const pf_head_index *index, const pf_grid *grid, int64_t tile,
                  int64_t begin, int64_t end, uint64_t *kept) {}
int64_t pf_index_columns(const pf_head_index *index, const pf_grid *grid,
                         int64_t begin, int64_t end, const uint64_t *kept,
                         int32_t *out, int64_t *first) {
  return 0;
}
