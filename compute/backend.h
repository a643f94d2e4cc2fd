// The door to a machine: one method per operation, each taking a batch of independent tasks.
#ifndef WAVEKV_COMPUTE_BACKEND_H_
#define WAVEKV_COMPUTE_BACKEND_H_

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "compute/assign_clusters.h"
#include "compute/attend_rows.h"
#include "compute/centre_rows.h"
#include "compute/choose_tokens.h"
#include "compute/convert_rows.h"
#include "compute/estimate_clusters.h"
#include "compute/list_greatest.h"
#include "compute/merge_states.h"
#include "compute/rotate_rows.h"
#include "compute/score_clusters.h"
#include "compute/score_supers.h"
#include "compute/score_tokens.h"
#include "compute/select_clusters.h"
#include "compute/update_centroids.h"
#include "compute/write_index.h"

namespace wavekv {

// Each operation's contract stands in its own header; here is only what they share.
//
// Tasks of one call are independent: they may run in any order and at once, and results do not
// depend on how many threads there are. Arguments were validated by api/; an operation reports only
// what the machine did wrong (a CPU never does). Threads: all methods may be called concurrently.
// On return the results are in place.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual absl::Status ConvertRows(absl::Span<const ConvertRowsTask> tasks) = 0;
  virtual absl::Status RotateRows(absl::Span<const RotateRowsTask> tasks) = 0;
  virtual absl::Status ScoreSupers(absl::Span<const ScoreSupersTask> tasks) = 0;
  virtual absl::Status ScoreClusters(absl::Span<const ScoreClustersTask> tasks) = 0;
  virtual absl::Status SelectClusters(absl::Span<const SelectClustersTask> tasks) = 0;
  virtual absl::Status ScoreTokens(absl::Span<const ScoreTokensTask> tasks) = 0;
  virtual absl::Status ChooseTokens(absl::Span<const ChooseTokensTask> tasks) = 0;
  virtual absl::Status AttendRows(absl::Span<const AttendRowsTask> tasks) = 0;
  virtual absl::Status EstimateClusters(absl::Span<const EstimateClustersTask> tasks) = 0;
  virtual absl::Status MergeStates(absl::Span<const MergeStatesTask> tasks) = 0;
  virtual absl::Status SumRows(absl::Span<const SumRowsTask> tasks) = 0;
  virtual absl::Status CentreRows(absl::Span<const CentreRowsTask> tasks) = 0;
  virtual absl::Status AssignClusters(absl::Span<const AssignClustersTask> tasks) = 0;
  virtual absl::Status ListGreatest(absl::Span<const ListGreatestTask> tasks) = 0;
  virtual absl::Status UpdateCentroids(absl::Span<const UpdateCentroidsTask> tasks) = 0;
  virtual absl::Status WriteIndex(absl::Span<const WriteIndexTask> tasks) = 0;

  // Called between two pieces of long work that is no operation, and by WriteIndex where a task
  // asks for it. A backend whose caller makes room for others rests here, the rest do nothing.
  virtual void Yield() {}
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_BACKEND_H_
