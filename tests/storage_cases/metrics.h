// The numbers that a step of a storage test may expect something of.
#ifndef WAVEKV_TESTS_STORAGE_CASES_METRICS_H_
#define WAVEKV_TESTS_STORAGE_CASES_METRICS_H_

#include <cstdint>
#include <string>

#include "wavekv/stats.h"

namespace wavekv::testing {

// What can be known after a step.
struct StepNumbers {
  EngineStats engine;
  TenantStats tenant;  // zeros once it is closed
  int64_t sequence_length = 0;

  // Of a query.
  double rel_err = 0.0;
  double lse_err = 0.0;
  double estimated_mass = 0.0;
  AttendStats attend;  // sums over the layers
};

struct Metric {
  const char* name;
  bool of_query;
  double (*value)(const StepNumbers& numbers);
};

// nullptr when there is none of that name.
const Metric* FindMetric(const std::string& name);

// All names, for messages.
std::string MetricNames();

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_METRICS_H_
