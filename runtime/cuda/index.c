/*===- index.c - All index kernels, as one module -----------------*- C -*-===*/
#include "pool.c"
#include "prepare.c"
#include "relative.c"
#include "rows.c"
