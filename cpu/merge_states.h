#ifndef WAVEKV_CPU_MERGE_STATES_H_
#define WAVEKV_CPU_MERGE_STATES_H_

#include "compute/merge_states.h"

namespace wavekv::cpu {

// One worker's share of Backend::MergeStates.
void MergeStates(const MergeStatesTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_MERGE_STATES_H_
