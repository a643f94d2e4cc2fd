// The engine of a storage test, the names that steps use, and what each sequence should hold.
#ifndef WAVEKV_TESTS_STORAGE_CASES_CASE_WORLD_H_
#define WAVEKV_TESTS_STORAGE_CASES_CASE_WORLD_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/metadata.pb.h"
#include "proto/storage_test.pb.h"
#include "tests/storage_cases/metrics.h"
#include "tests/testing/model_sequence.h"
#include "wavekv/engine.h"

namespace wavekv::testing {

// What a query got for a layer, kept until it can be compared.
struct QueryAnswer {
  std::string sequence;
  int layer = 0;
  int64_t num_rows = 0;
  std::vector<float> queries;
  std::vector<float> output;
  std::vector<float> lse;
  // The sequence's length was one of its lengths [first_length, last_length] since StartHistory.
  size_t first_length = 0;
  size_t last_length = 0;
};

// Calls the engine for the steps of a case, and follows what they store.
//
// Threads: Do may run in several at once as long as steps that change one sequence's tokens come
// one after another; everything else alone.
class CaseWorld {
 public:
  explicit CaseWorld(std::unique_ptr<Engine> engine);

  // Opens the step's tenant, or creates its sequence, if nobody named it before.
  absl::Status ResolveTenant(const v1::Step& step);
  absl::Status ResolveSequence(const v1::Step& step);

  // Takes the step once: no group, its names resolved. What it measures is added to `numbers`,
  // what it answers to `answers`. With `in_group` nothing is measured that others may change
  // meanwhile.
  absl::Status Do(const v1::Step& step, bool in_group, StepNumbers& numbers,
                  std::vector<QueryAnswer>& answers);

  // From here on the lengths of all sequences are remembered: before each step that stands alone.
  void StartHistory();

  // Compares with naive attention, and adds the errors to `numbers`. An answer from among several
  // lengths counts with the one that suits it best.
  void Compare(const std::vector<QueryAnswer>& answers, StepNumbers& numbers) const;

  // Everything that can be known about the step's tenant and sequence and the engine now.
  void Collect(const v1::Step& step, StepNumbers& numbers) const;

 private:
  struct NamedSequence {
    Sequence handle;
    ModelSequence expected;
    std::vector<std::vector<int64_t>> lengths;  // per layer, since StartHistory
  };

  // NOT_FOUND for a name that nothing has, as a step of the group that should have given it failed.
  absl::Status CheckNames(const v1::Step& step) const;
  absl::Status PlantFault(const v1::Fault& fault);
  absl::Status OpenTenant(const v1::Step& step);
  absl::Status Create(const v1::Step& step);
  absl::Status Append(const std::string& name, const v1::Append& append);
  absl::Status AppendToLayer(const std::string& name, const v1::Append& append, int layer);
  absl::Status Fork(const v1::Step& step);
  absl::Status Truncate(const v1::Step& step);
  absl::Status Query(const v1::Step& step, bool in_group, StepNumbers& numbers,
                     std::vector<QueryAnswer>& answers);
  absl::StatusOr<QueryAnswer> QueryLayer(const Plan& plan, const std::string& name,
                                         const v1::Query& query, int layer, StepNumbers& numbers);
  absl::Status Retrieve(const v1::Step& step, bool in_group, StepNumbers& numbers);
  absl::Status MeasureRetrieval(const std::string& name, int layer, int64_t num_rows,
                                const std::vector<float>& queries, int64_t recall_tokens,
                                const std::vector<RetrievedTokens>& retrieved,
                                StepNumbers& numbers) const;
  absl::StatusOr<std::vector<float>> Queries(const v1::TensorSource& source, int layer,
                                             int64_t num_rows) const;

  absl::StatusOr<v1::SequenceMetadata> Describe(const Sequence& sequence) const;
  // So that what is sealed does not change while retrieval is measured.
  void AwaitBuilds(const Sequence& sequence);
  // REQUIRES: mutex_ is held.
  NamedSequence& Named(const std::string& name) { return sequences_.at(name); }
  Tenant TenantNamed(const v1::Step& step) const;
  Sequence Handle(const std::string& name) const;

  const std::unique_ptr<Engine> engine_;
  const ModelSpec model_;

  mutable std::mutex mutex_;
  // Guarded by mutex_, not held while the engine is called.
  std::map<std::string, Tenant> tenants_;
  std::map<std::string, NamedSequence> sequences_;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_CASE_WORLD_H_
