#ifndef WAVEKV_CPU_ATTEND_MANY_QUERIES_H_
#define WAVEKV_CPU_ATTEND_MANY_QUERIES_H_

#include "compute/attend_rows.h"

namespace wavekv::cpu {

// Queries that share the conversion of a tile of rows.
inline constexpr int kManyQueries = 192;

// AttendRows for at most kManyQueries queries, a prefill's: limited by arithmetic, so tiles of keys
// and values are converted to fp32 in the cache and multiplied as matrices.
void AttendManyQueries(const AttendRowsTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ATTEND_MANY_QUERIES_H_
