// How good answers are: errors against naive attention, and what was retrieved against the true
// weights.
#ifndef WAVEKV_TESTS_STORAGE_CASES_ANSWER_QUALITY_H_
#define WAVEKV_TESTS_STORAGE_CASES_ANSWER_QUALITY_H_

#include <cstdint>
#include <vector>

#include "tests/storage_cases/metrics.h"

namespace wavekv::testing {

// |got - reference| / |reference| of each vector of `dim`; absolute where the reference is zero.
std::vector<double> RelativeErrors(const std::vector<float>& got,
                                   const std::vector<double>& reference, int dim);

// The largest; NaN when one is, 0 of none.
double Largest(const std::vector<double>& errors);

// Of |got - reference|; equal infinities differ by 0.
double LargestDifference(const std::vector<float>& got, const std::vector<double>& reference);

// Adds one sample of one query head, all vectors by position; `weights` covers what is visible.
// recall: of the recall_tokens indexed tokens of most weight (all, if fewer) the share that is
// retrieved, ties counting as found; no sample without an indexed token. mass: the weight of all
// that is retrieved or not indexed; no sample where nothing is visible.
void AddRetrievalQuality(const std::vector<double>& weights, const std::vector<bool>& indexed,
                         const std::vector<bool>& retrieved, int64_t recall_tokens, Mean& recall,
                         Mean& mass);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_ANSWER_QUALITY_H_
