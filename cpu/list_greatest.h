#ifndef WAVEKV_CPU_LIST_GREATEST_H_
#define WAVEKV_CPU_LIST_GREATEST_H_

#include "compute/list_greatest.h"

namespace wavekv::cpu {

// One worker's share of Backend::ListGreatest.
void ListGreatest(const ListGreatestTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_LIST_GREATEST_H_
