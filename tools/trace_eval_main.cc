// wavekv-trace-eval: what wavekv reads, and how far its answers are off, on recorded attention.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "storage/status_macros.h"
#include "tools/progress_bar.h"
#include "tools/trace/access_log.h"
#include "tools/trace/error_plot.h"
#include "tools/trace/eval_arguments.h"
#include "tools/trace/eval_report.h"
#include "tools/trace/trace_eval.h"
#include "tools/trace/trace_file.h"

namespace wavekv {
namespace {

bool Contains(const std::vector<std::pair<int64_t, int64_t>>& ranges, int64_t number) {
  if (ranges.empty()) return true;
  return std::any_of(ranges.begin(), ranges.end(), [&](const std::pair<int64_t, int64_t>& range) {
    return number >= range.first && number <= range.second;
  });
}

// A head that was asked for, in which file, and its queries.
struct Job {
  const TraceFile* trace = nullptr;
  size_t head = 0;
  std::optional<std::vector<int64_t>> queries;
  int64_t num_queries = 0;
};

absl::StatusOr<std::vector<Job>> SelectJobs(const EvalArguments& arguments,
                                            const std::vector<TraceFile>& traces) {
  std::vector<Job> jobs;
  std::vector<std::string> types;
  bool any_query = false;
  for (const TraceFile& trace : traces) {
    Job job;
    job.trace = &trace;
    job.num_queries = trace.num_queries();
    if (!arguments.query_type.empty()) {
      job.queries = trace.QueriesOfType(arguments.query_type);
      job.num_queries = static_cast<int64_t>(job.queries->size());
      types.insert(types.end(), trace.query_types().begin(), trace.query_types().end());
    }
    if (job.num_queries == 0) continue;
    any_query = true;
    for (job.head = 0; job.head < trace.heads().size(); ++job.head) {
      const TraceFile::HeadName& name = trace.heads()[job.head];
      if (!Contains(arguments.layers, name.layer) || !Contains(arguments.kv_heads, name.kv_head)) {
        continue;
      }
      jobs.push_back(job);
    }
  }
  if (!any_query) {
    return absl::NotFoundError(
        absl::StrCat("no query is of type '", arguments.query_type,
                     "'; types recorded: ", types.empty() ? "none" : absl::StrJoin(types, ", ")));
  }
  if (jobs.empty()) return absl::NotFoundError("no head matches --layers and --heads");
  return jobs;
}

absl::Status WritePlot(const EvalArguments& arguments, const EvalReport& report,
                       const TraceSamples& samples) {
  std::ofstream file(arguments.plot, std::ios::binary);
  file << FormatErrorPlot(absl::StrCat(std::filesystem::path(report.rows[0].file).stem().string(),
                                       ": ", BudgetTitle(arguments, 0)),
                          samples.rel_errors, samples.error_estimates);
  if (file.close(); !file) {
    return absl::InvalidArgumentError(absl::StrCat("cannot write ", arguments.plot));
  }
  return absl::OkStatus();
}

// Writes as it goes: long recordings need not fit into memory.
class AccessFile {
 public:
  explicit AccessFile(const std::string& path) : path_(path) {
    if (path_.empty()) return;
    file_.open(path_, std::ios::binary);
    file_ << "wavekv-accesses 1\n";
  }

  // The head's evaluation; what it reads is written.
  absl::StatusOr<std::vector<TraceSamples>> Evaluate(const TraceFile& trace, size_t index,
                                                     TraceEvalOptions options) {
    const TraceHead head = trace.head(index);
    if (path_.empty()) return EvaluateHead(head, options);
    AccessRecorder recorder(head, options);
    auto samples = EvaluateHead(head, options);
    const TraceFile::HeadName& name = trace.heads()[index];
    const BlockShape shape = BlockShapeOf(StoredTokenBytes(head, options));
    file_ << "head " << num_heads_++ << " " << name.layer << " " << name.kv_head << " "
          << shape.token_bytes << " " << shape.block_tokens << " " << shape.block_bytes << " "
          << trace.name() << "\n"
          << FormatAccesses(recorder.Take()[0], shape);
    return samples;
  }

  absl::Status Close() {
    if (path_.empty()) return absl::OkStatus();
    if (file_.close(); file_) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("cannot write ", path_));
  }

 private:
  const std::string path_;
  std::ofstream file_;
  int64_t num_heads_ = 0;
};

absl::StatusOr<EvalReport> Evaluate(const EvalArguments& arguments,
                                    const std::vector<TraceFile>& traces) {
  WAVEKV_ASSIGN_OR_RETURN(const std::vector<Job> jobs, SelectJobs(arguments, traces));
  int64_t num_queries = 0;
  int64_t num_done = 0;
  for (const Job& job : jobs) num_queries += job.num_queries;
  std::optional<ProgressBar> bar;
  if (isatty(STDERR_FILENO) != 0) bar.emplace("evaluating", num_queries, "queries");

  TraceEvalOptions options = arguments.eval;
  options.on_progress = [&](int64_t answered) {
    num_done += answered;
    if (bar.has_value()) bar->Update(num_done);
  };
  EvalReport report;
  std::vector<TraceSamples> all(options.budgets.size());
  AccessFile accesses(arguments.accesses);
  for (const Job& job : jobs) {
    options.queries = job.queries;
    WAVEKV_ASSIGN_OR_RETURN(const std::vector<TraceSamples> results,
                            accesses.Evaluate(*job.trace, job.head, options));
    const TraceFile::HeadName& name = job.trace->heads()[job.head];
    for (size_t budget = 0; budget < results.size(); ++budget) {
      all[budget].Append(results[budget]);
      report.rows.push_back(
          {job.trace->name(), name.layer, name.kv_head, budget, Summarize(results[budget])});
    }
  }
  WAVEKV_RETURN_IF_ERROR(accesses.Close());
  for (const TraceSamples& samples : all) report.budgets.push_back(Summarize(samples));
  if (!arguments.plot.empty()) WAVEKV_RETURN_IF_ERROR(WritePlot(arguments, report, all[0]));
  return report;
}

int Fail(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "wavekv-trace-eval: %s\n", std::string(status.message()).c_str());
  return exit_code;
}

int Main(int argc, char** argv) {
  const auto arguments = ParseEvalArguments(argc, argv);
  if (!arguments.ok()) return Fail(arguments.status(), 2);
  if (arguments->help) {
    std::fputs(EvalHelpText(), stdout);
    return 0;
  }
  std::vector<TraceFile> traces;
  for (const std::string& path : arguments->files) {
    auto trace = TraceFile::Open(path);
    if (!trace.ok()) return Fail(trace.status(), 1);
    traces.push_back(*std::move(trace));
  }
  const auto report = Evaluate(*arguments, traces);
  if (!report.ok()) return Fail(report.status(), 1);
  std::fputs(FormatReport(*arguments, *report).c_str(), stdout);
  return 0;
}

}  // namespace
}  // namespace wavekv

int main(int argc, char** argv) { return wavekv::Main(argc, argv); }
