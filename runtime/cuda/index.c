/*===- index.c - All index kernels, as one module -----------------*- C -*-===*/
#include "bytes.c"
#include "keep.c"
#include "pool.c"
#include "prepare.c"
#include "relative.c"
#include "rows.c"
#include "sale.c"
#include "xattention.c"
