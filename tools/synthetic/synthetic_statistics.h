// What the generator's heads look like, measured on the tokens themselves.
#ifndef WAVEKV_TOOLS_SYNTHETIC_SYNTHETIC_STATISTICS_H_
#define WAVEKV_TOOLS_SYNTHETIC_SYNTHETIC_STATISTICS_H_

#include <string>

#include "tools/synthetic/synthetic_head.h"

namespace wavekv::synthetic {

// Means over the queries measured; needle queries are left out but for needle_mass.
struct SyntheticStatistics {
  double sink_mass = 0.0;        // share of all
  double local_mass = 0.0;       // of the rest, on the last 64 tokens
  double top_mass = 0.0;         // of the rest, on its heaviest 1 %
  double tokens_for_90 = 0.0;    // share of the tokens that hold 90 % of the rest
  double logit_deviation = 0.0;  // of all but the sinks
  double step_overlap = 0.0;     // of the 100 heaviest tokens, from one query to the next
  double needle_mass = 0.0;      // of all; 0 without needles
  double sink_cosine = 0.0;      // of the sinks' keys with the mean key
  double query_cosine = 0.0;     // of the mean query with the mean key
  double group_cosine = 0.0;     // between query heads of the group, the mean query taken off
  double norm_variation = 0.0;   // of keys' lengths: standard deviation / mean
  // Cosine of keys, the mean key taken off, at a distance of 1, 64 and 8192 tokens.
  double key_cosine_1 = 0.0;
  double key_cosine_64 = 0.0;
  double key_cosine_8192 = 0.0;  // 0 for shorter streams
};

// Reads all keys twice, in blocks; the logits of at most max_queries queries of one query head are
// kept.
SyntheticStatistics MeasureStatistics(const SyntheticHead& head, int64_t max_queries = 16);

// A table, one statistic a line, with what is aimed at beside it.
std::string StatisticsTable(const SyntheticHeadSpec& spec, const SyntheticStatistics& statistics);

}  // namespace wavekv::synthetic

#endif  // WAVEKV_TOOLS_SYNTHETIC_SYNTHETIC_STATISTICS_H_
