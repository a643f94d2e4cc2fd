#ifndef WAVEKV_CPU_WRITE_INDEX_H_
#define WAVEKV_CPU_WRITE_INDEX_H_

#include "compute/write_index.h"

namespace wavekv::cpu {

// One worker's share of Backend::WriteIndex.
void WriteIndex(const WriteIndexTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_WRITE_INDEX_H_
