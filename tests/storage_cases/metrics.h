// The numbers that a step of a storage test may expect something of.
#ifndef WAVEKV_TESTS_STORAGE_CASES_METRICS_H_
#define WAVEKV_TESTS_STORAGE_CASES_METRICS_H_

#include <cstdint>
#include <string>

#include "wavekv/stats.h"

namespace wavekv::testing {

// A mean that grows sample by sample.
struct Mean {
  double sum = 0.0;
  int64_t count = 0;

  void Add(double sample) {
    sum += sample;
    ++count;
  }
  double value(double without_samples) const { return count == 0 ? without_samples : sum / count; }
};

// What can be known after a step.
struct StepNumbers {
  EngineStats engine;
  TenantStats tenant;  // zeros once it is closed
  int64_t sequence_length = 0;
  int64_t sealed_kv_bytes = 0;
  int64_t sealed_index_bytes = 0;
  bool free_bytes_are_zero = false;  // read only when a step expects something of it

  // Of a query.
  double rel_err = 0.0;
  Mean rel_errs;
  double lse_err = 0.0;
  Mean estimated_masses;
  AttendStats attend;  // sums over the calls
  // Of a query or a retrieve.
  Mean recalls;
  Mean masses;
  int64_t retrieved_tokens = 0;
};

// After which steps a metric exists.
enum class MetricOf : uint8_t {
  kQuery = 1,
  kQueryOrRetrieve = 2,
  kRetrieval =
      3,         // of those, the ones that stand alone: what is retrieved must not change meanwhile
  kAnyStep = 4,  // that stands alone
};

struct Metric {
  const char* name;
  MetricOf of;
  double (*value)(const StepNumbers& numbers);
};

// nullptr when there is none of that name.
const Metric* FindMetric(const std::string& name);

// All names, for messages.
std::string MetricNames();

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_METRICS_H_
