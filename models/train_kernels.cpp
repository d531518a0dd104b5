// train_kernels.cpp: the kernels of training in an object file of their own, for programs that are compiled with
// POCKET_SEPARATE_KERNELS: they take longest to compile, and all of these programs share one copy.

#ifndef POCKET_SEPARATE_KERNELS
#define POCKET_SEPARATE_KERNELS  // the kernels of run.cpp have an object file of their own
#endif
#define POCKET_DEFINE_TRAIN_KERNELS
#include "train_kernels.hpp"
#include "megabyte/megabyte_train_kernels.hpp"
