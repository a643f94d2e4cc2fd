#include "bench/decode_context.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv::bench {
namespace {

// |got - want| / |want|
template <typename Want>
double Distance(const Want* want, const float* got, size_t dim) {
  double difference = 0.0;
  double length = 0.0;
  for (size_t d = 0; d < dim; ++d) {
    difference += std::pow(static_cast<double>(got[d]) - want[d], 2);
    length += std::pow(static_cast<double>(want[d]), 2);
  }
  return std::sqrt(difference / length);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeContext>> DecodeContext::Create(const SyntheticLayerSpec& spec,
                                                                     int num_sequences, int threads,
                                                                     Device device) {
  WAVEKV_ASSIGN_OR_RETURN(SyntheticLayer layer, SyntheticLayer::Create(spec));
  auto context = std::unique_ptr<DecodeContext>(new DecodeContext(std::move(layer)));
  EngineOptions options = context->layer_.Options(device);
  options.arena_bytes = ArenaBytesFor(options, spec.num_tokens * num_sequences, num_sequences);
  options.worker_threads = threads;
  WAVEKV_ASSIGN_OR_RETURN(context->engine_, Engine::Open(options));
  WAVEKV_ASSIGN_OR_RETURN(const Tenant tenant, context->engine_->OpenTenant("bench"));
  for (int i = 0; i < num_sequences; ++i) {
    WAVEKV_ASSIGN_OR_RETURN(const Sequence sequence, tenant.CreateSequence());
    WAVEKV_RETURN_IF_ERROR(context->layer_.AppendTo(*context->engine_, sequence));
    WAVEKV_RETURN_IF_ERROR(context->engine_->BuildSegments(sequence));
    WAVEKV_RETURN_IF_ERROR(context->engine_->WaitForBuilds(sequence));
    context->sequences_.push_back(sequence);
  }
  const std::vector<float>& queries = context->layer_.queries();
  const int64_t rows = spec.num_queries + num_sequences - 1;
  for (int64_t row = 0; row < rows; ++row) {
    const auto first = queries.begin() + row % spec.num_queries * context->query_elements();
    context->queries_.insert(context->queries_.end(), first, first + context->query_elements());
  }
  WAVEKV_RETURN_IF_ERROR(context->CheckExact());
  return context;
}

absl::Status DecodeContext::Step(const AttendOptions& options) {
  return Attend(sequences_, steps_++ % spec().num_queries, 1, options).status();
}

absl::StatusOr<StepQuality> DecodeContext::Measure(const AttendOptions& options) {
  WAVEKV_ASSIGN_OR_RETURN(
      const AttendStats stats,
      Attend({sequences_.data(), 1}, 0, static_cast<int32_t>(spec().num_queries), options));
  double error = 0.0;
  const size_t dim = spec().head_dim;
  for (size_t first = 0; first < exact_.size(); first += dim) {
    error += Distance(exact_.data() + first, output_.data() + first, dim);
  }
  return StepQuality{
      error / static_cast<double>(exact_.size() / dim),
      static_cast<double>(stats.bytes_read) / static_cast<double>(stats.bytes_dense)};
}

absl::StatusOr<AttendStats> DecodeContext::Attend(absl::Span<const Sequence> sequences,
                                                  int64_t first_query, int32_t rows,
                                                  const AttendOptions& options) {
  std::vector<int32_t> cu_seqlens = {0};
  for (size_t i = 0; i < sequences.size(); ++i) cu_seqlens.push_back(cu_seqlens.back() + rows);
  const int64_t all_rows = cu_seqlens.back();
  output_.resize(all_rows * query_elements());
  WAVEKV_ASSIGN_OR_RETURN(const Plan plan, engine_->MakePlan({sequences, cu_seqlens}, options));
  return engine_->Attend(
      plan, 0,
      TensorView::Dense(queries_.data() + first_query * query_elements(), DType::kFloat32, all_rows,
                        spec().num_q_heads(), spec().head_dim),
      MutableTensorView::Dense(output_.data(), DType::kFloat32, all_rows, spec().num_q_heads(),
                               spec().head_dim));
}

// The first group's heads of the last query against naive attention in double precision, and the
// sequences, which hold the same rows, against each other.
absl::Status DecodeContext::CheckExact() {
  for (const Sequence& sequence : sequences_) {
    WAVEKV_RETURN_IF_ERROR(
        Attend({&sequence, 1}, 0, static_cast<int32_t>(spec().num_queries), AttendOptions::Exact())
            .status());
    if (exact_.empty()) exact_ = output_;
    for (size_t first = 0; first < exact_.size(); first += spec().head_dim) {
      if (!(Distance(exact_.data() + first, output_.data() + first, spec().head_dim) < 1e-4)) {
        return absl::InternalError("sequences of the same rows are not answered alike");
      }
    }
  }
  constexpr int64_t kChunk = 65536;
  const int dim = spec().head_dim;
  const int group = spec().gqa_group_size;
  const int64_t last = spec().num_queries - 1;
  const float* const queries = layer_.heads()[0].queries().data() + last * group * dim;
  // Sums relative to a running maximum, which a chunk may raise.
  std::vector<double> max(group, -1e300), mass(group), sum(static_cast<size_t>(group) * dim);
  std::vector<float> keys(kChunk * dim), values(kChunk * dim);
  for (int64_t begin = 0; begin < spec().num_tokens; begin += kChunk) {
    const int64_t count = std::min(kChunk, spec().num_tokens - begin);
    layer_.HeadRows(0, begin, count, keys.data(), values.data());
    for (int64_t token = 0; token < count; ++token) {
      for (int h = 0; h < group; ++h) {
        double logit = 0.0;
        for (int d = 0; d < dim; ++d) {
          logit += static_cast<double>(queries[h * dim + d]) * keys[token * dim + d];
        }
        logit /= std::sqrt(static_cast<double>(dim));
        if (logit > max[h]) {
          const double factor = std::exp(max[h] - logit);
          mass[h] *= factor;
          for (int d = 0; d < dim; ++d) sum[h * dim + d] *= factor;
          max[h] = logit;
        }
        const double weight = std::exp(logit - max[h]);
        mass[h] += weight;
        for (int d = 0; d < dim; ++d) sum[h * dim + d] += weight * values[token * dim + d];
      }
    }
  }
  const float* const got = exact_.data() + last * query_elements();
  for (int h = 0; h < group; ++h) {
    for (int d = 0; d < dim; ++d) sum[h * dim + d] /= mass[h];
    const double error = Distance(sum.data() + h * dim, got + h * dim, dim);
    if (!(error < 1e-4)) {
      return absl::InternalError(fmt::format(
          "exact attention of query head {} is off by {} from naive attention", h, error));
    }
  }
  return absl::OkStatus();
}

}  // namespace wavekv::bench
