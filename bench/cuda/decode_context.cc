#include "bench/cuda/decode_context.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/synthetic_layer.h"
#include "storage/float16.h"
#include "storage/status_macros.h"

namespace wavekv::bench {
namespace {

constexpr int64_t kAppendTokens = 8192;
// The first tokens of the stream begin every context, as they draw half of the attention; more than
// the rows of a decode step, so that they count as a prompt.
constexpr int64_t kFirstTokens = 64;
// That steps append to a sequence.
constexpr int64_t kStepTokensMax = 64;
// Outputs are rounded to bf16, which costs 0.002.
constexpr double kOutputErrorMax = 0.01;
// More than any cache has.
constexpr int64_t kFlushBytes = int64_t{256} << 20;

// Emulated devices do not say how much memory they have, and have no cache.
int64_t FlushBytes(const Gpu& gpu) {
  return gpu.info().memory_bytes == 0 ? 4096 : std::min(kFlushBytes, gpu.info().memory_bytes / 64);
}

TensorView OnDevice(const uint16_t* data, int64_t num_rows, int num_heads, int head_dim) {
  TensorView view = TensorView::Dense(data, DType::kBFloat16, num_rows, num_heads, head_dim);
  view.memory = Memory::kDevice;
  return view;
}

// The mean of |got - want| / |want| over rows of `dim` elements.
double MeanRelativeError(const std::vector<float>& want, const std::vector<float>& got,
                         size_t dim) {
  double error = 0.0;
  for (size_t first = 0; first < want.size(); first += dim) {
    double difference = 0.0, length = 0.0;
    for (size_t d = first; d < first + dim; ++d) {
      difference += std::pow(double{got[d]} - double{want[d]}, 2);
      length += std::pow(double{want[d]}, 2);
    }
    error += std::sqrt(difference / length);
  }
  return error / static_cast<double>(want.size() / dim);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeData>> DecodeData::Create(DeviceBench& bench,
                                                               const DecodeShape& shape) {
  std::unique_ptr<DecodeData> data(new DecodeData(bench, shape));
  SyntheticLayerSpec spec;
  spec.num_tokens = shape.num_tokens;
  spec.num_kv_heads = shape.num_kv_heads;
  spec.gqa_group_size = shape.gqa_group_size;
  spec.head_dim = shape.head_dim;
  spec.num_queries = shape.num_queries;
  WAVEKV_ASSIGN_OR_RETURN(const SyntheticLayer layer, SyntheticLayer::Create(spec));
  const int64_t head_elements = shape.num_tokens * shape.head_dim;
  std::vector<uint16_t> keys(static_cast<size_t>(shape.num_kv_heads * head_elements));
  std::vector<uint16_t> values(keys.size());
  const auto draw = [&](int head) {
    std::vector<float> key_rows(static_cast<size_t>(kAppendTokens * shape.head_dim));
    std::vector<float> value_rows(key_rows.size());
    for (int64_t begin = 0; begin < shape.num_tokens; begin += kAppendTokens) {
      const int64_t rows = std::min(kAppendTokens, shape.num_tokens - begin);
      layer.HeadRows(head, begin, rows, key_rows.data(), value_rows.data());
      const int64_t at = head * head_elements + begin * shape.head_dim;
      for (int64_t i = 0; i < rows * shape.head_dim; ++i) {
        keys[at + i] = Float32ToBFloat16(key_rows[i]);
        values[at + i] = Float32ToBFloat16(value_rows[i]);
      }
    }
  };
  std::vector<std::thread> threads;
  for (int head = 0; head < shape.num_kv_heads; ++head) threads.emplace_back(draw, head);
  for (std::thread& thread : threads) thread.join();
  WAVEKV_ASSIGN_OR_RETURN(data->keys_, data->arena_.Upload(keys));
  WAVEKV_ASSIGN_OR_RETURN(data->values_, data->arena_.Upload(values));

  // As the device has them.
  const size_t row = static_cast<size_t>(shape.num_q_heads()) * shape.head_dim;
  std::vector<uint16_t> queries;
  for (int64_t i = 0; i < kBatchMax; ++i) {
    // The last position first.
    const size_t first = (layer.queries().size() / row - 1 - i % shape.num_queries) * row;
    for (size_t e = 0; e < row; ++e) {
      queries.push_back(Float32ToBFloat16(layer.queries()[first + e]));
      data->host_queries_.push_back(BFloat16ToFloat32(queries.back()));
    }
  }
  WAVEKV_ASSIGN_OR_RETURN(data->queries_, data->arena_.Upload(queries));
  return data;
}

TensorView DecodeData::keys(int64_t begin, int64_t num_rows) const {
  TensorView view =
      OnDevice(keys_ + begin * shape_.head_dim, num_rows, shape_.num_kv_heads, shape_.head_dim);
  view.row_stride = shape_.head_dim;
  view.head_stride = shape_.num_tokens * shape_.head_dim;
  return view;
}

TensorView DecodeData::values(int64_t begin, int64_t num_rows) const {
  TensorView view = keys(begin, num_rows);
  view.data = values_ + begin * shape_.head_dim;
  return view;
}

TensorView DecodeData::queries(int64_t batch) const {
  return OnDevice(queries_, batch, shape_.num_q_heads(), shape_.head_dim);
}

TensorView DecodeData::host_queries(int64_t batch) const {
  return TensorView::Dense(host_queries_.data(), DType::kFloat32, batch, shape_.num_q_heads(),
                           shape_.head_dim);
}

EngineOptions DecodeContext::Options(const DecodeShape& shape, int layers, int64_t batch,
                                     int64_t tokens) {
  EngineOptions options;
  options.device = Device::kCuda;
  options.model = {.num_layers = layers,
                   .num_q_heads = shape.num_q_heads(),
                   .num_kv_heads = shape.num_kv_heads,
                   .head_dim_k = shape.head_dim};
  options.index = shape.index;
  options.build_threads = 2;
  options.arena_bytes = ArenaBytesFor(options, batch * (tokens + kStepTokensMax), batch);
  return options;
}

absl::StatusOr<std::unique_ptr<DecodeContext>> DecodeContext::Create(DeviceBench& bench,
                                                                     const DecodeData& data,
                                                                     int layers, int64_t batch,
                                                                     int64_t tokens) {
  std::unique_ptr<DecodeContext> context(new DecodeContext(bench, data, tokens));
  const DecodeShape& shape = data.shape();
  WAVEKV_ASSIGN_OR_RETURN(context->engine_, Engine::Open(Options(shape, layers, batch, tokens)));
  context->batch_max_ = batch;
  const int64_t outputs = layers * batch * shape.num_q_heads() * shape.head_dim;
  WAVEKV_ASSIGN_OR_RETURN(context->outputs_, context->arena_.Allocate<uint16_t>(outputs));
  WAVEKV_ASSIGN_OR_RETURN(context->flushed_,
                          context->arena_.Allocate<std::byte>(FlushBytes(bench.gpu())));
  WAVEKV_ASSIGN_OR_RETURN(const Tenant tenant, context->engine_->OpenTenant("bench"));
  for (int64_t i = 0; i < batch; ++i) {
    WAVEKV_ASSIGN_OR_RETURN(Sequence sequence, tenant.CreateSequence());
    for (int layer = 0; layer < layers; ++layer) {
      WAVEKV_RETURN_IF_ERROR(context->AppendTokens(sequence, layer));
    }
    WAVEKV_RETURN_IF_ERROR(context->engine_->BuildSegments(sequence));
    context->sequences_.push_back(std::move(sequence));
  }
  for (const Sequence& sequence : context->sequences_) {
    WAVEKV_RETURN_IF_ERROR(context->engine_->WaitForBuilds(sequence));
  }
  return context;
}

absl::Status DecodeContext::AppendTokens(const Sequence& sequence, int layer) {
  // The stream's first tokens, and then its last ones, which the queries look at.
  const int64_t gap = data_.shape().num_tokens - num_tokens_;
  for (int64_t done = 0; done < num_tokens_;) {
    const int64_t rows = done == 0 ? std::min(kFirstTokens, num_tokens_)
                                   : std::min(kAppendTokens, num_tokens_ - done);
    const int64_t begin = done == 0 ? 0 : gap + done;
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(rows)};
    const auto append = [&] {
      return engine_->Append({{&sequence, 1}, cu_seqlens}, layer, data_.keys(begin, rows),
                             data_.values(begin, rows), bench_.stream());
    };
    absl::Status status = append();
    if (absl::IsResourceExhausted(status)) {
      // Rows that wait to be sealed fill the arena.
      WAVEKV_RETURN_IF_ERROR(engine_->WaitForBuilds(sequence));
      status = append();
    }
    WAVEKV_RETURN_IF_ERROR(status);
    done += rows;
  }
  return absl::OkStatus();
}

absl::StatusOr<Plan> DecodeContext::MakePlan(const AttendOptions& options, int64_t batch) const {
  std::vector<int32_t> cu_seqlens;
  for (int32_t i = 0; i <= batch; ++i) cu_seqlens.push_back(i);
  return engine_->MakePlan(
      {absl::MakeConstSpan(sequences_).first(static_cast<size_t>(batch)), cu_seqlens}, options);
}

MutableTensorView DecodeContext::output(int layer, int64_t batch) const {
  const DecodeShape& shape = data_.shape();
  const int64_t row = int64_t{shape.num_q_heads()} * shape.head_dim;
  MutableTensorView view =
      MutableTensorView::Dense(outputs_ + layer * batch_max_ * row, DType::kBFloat16, batch,
                               shape.num_q_heads(), shape.head_dim);
  view.memory = Memory::kDevice;
  return view;
}

std::function<absl::Status()> DecodeContext::FlushCache() const {
  return
      [this] { return bench_.gpu().Fill(flushed_, 0, FlushBytes(bench_.gpu()), bench_.stream()); };
}

absl::StatusOr<AttendStats> DecodeContext::AttendOnHost(const AttendOptions& options, int64_t batch,
                                                        std::vector<float>& output) {
  const DecodeShape& shape = data_.shape();
  output.resize(static_cast<size_t>(batch * shape.num_q_heads() * shape.head_dim));
  WAVEKV_ASSIGN_OR_RETURN(const Plan plan, MakePlan(options, batch));
  return engine_->Attend(plan, 0, data_.host_queries(batch),
                         MutableTensorView::Dense(output.data(), DType::kFloat32, batch,
                                                  shape.num_q_heads(), shape.head_dim));
}

absl::StatusOr<DecodeQuality> DecodeContext::Measure(const AttendOptions& options, int64_t batch) {
  std::vector<float> exact, got;
  WAVEKV_RETURN_IF_ERROR(AttendOnHost(AttendOptions::Exact(), batch, exact).status());
  WAVEKV_ASSIGN_OR_RETURN(const AttendStats stats, AttendOnHost(options, batch, got));
  DecodeQuality quality;
  quality.rel_err_mean = MeanRelativeError(exact, got, data_.shape().head_dim);
  quality.bytes_read = stats.bytes_read;
  quality.bytes_dense = stats.bytes_dense;
  return quality;
}

absl::Status DecodeContext::CheckOutput(const AttendOptions& options, int64_t batch) {
  WAVEKV_RETURN_IF_ERROR(bench_.Synchronize());
  std::vector<float> want;
  WAVEKV_RETURN_IF_ERROR(AttendOnHost(options, batch, want).status());
  WAVEKV_ASSIGN_OR_RETURN(const std::vector<uint16_t> written,
                          bench_.Download(outputs_, static_cast<int64_t>(want.size())));
  std::vector<float> got;
  for (const uint16_t element : written) got.push_back(BFloat16ToFloat32(element));
  const double error = MeanRelativeError(want, got, data_.shape().head_dim);
  if (error < kOutputErrorMax) return absl::OkStatus();  // a NaN is not
  return absl::InternalError(
      absl::StrCat("wrong: a step differs by ", error, " from the same call with host tensors"));
}

// Between BeginStep and EndStep.
class DecodeContext::Step {
 public:
  Step(DecodeContext& context, Plan plan) : context_(context), plan_(std::move(plan)) {}
  ~Step() {
    DeviceBench& bench = context_.bench_;
    // Nothing could be done about an error here; the next step would meet it.
    bench.Synchronize().IgnoreError();
    if (graph_ != nullptr) bench.gpu().DestroyGraph(graph_);
    if (begun_) context_.engine_->EndStep(plan_, bench.stream()).IgnoreError();
  }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  absl::Status Capture(int64_t batch) {
    DeviceBench& bench = context_.bench_;
    WAVEKV_RETURN_IF_ERROR(context_.engine_->BeginStep(plan_, bench.stream()));
    begun_ = true;
    WAVEKV_RETURN_IF_ERROR(bench.gpu().BeginCapture(bench.stream()));
    const absl::Status queued = Queue(batch);
    absl::StatusOr<void*> graph = bench.gpu().EndCapture(bench.stream());
    WAVEKV_RETURN_IF_ERROR(queued);
    WAVEKV_RETURN_IF_ERROR(graph.status());
    graph_ = *graph;
    return Launch();
  }

  // Writes the same token again.
  absl::Status Launch() {
    return context_.bench_.gpu().LaunchGraph(graph_, context_.bench_.stream());
  }

 private:
  absl::Status Queue(int64_t batch) {
    const DecodeData& data = context_.data_;
    const GpuStream stream = context_.bench_.stream();
    for (int layer = 0; layer < context_.num_layers(); ++layer) {
      WAVEKV_RETURN_IF_ERROR(context_.engine_->AppendStep(plan_, layer, data.keys(64, batch),
                                                          data.values(64, batch), stream));
      WAVEKV_RETURN_IF_ERROR(context_.engine_
                                 ->Attend(plan_, layer, data.queries(batch),
                                          context_.output(layer, batch), {}, {}, stream)
                                 .status());
    }
    return absl::OkStatus();
  }

  DecodeContext& context_;
  const Plan plan_;
  bool begun_ = false;
  void* graph_ = nullptr;
};

absl::StatusOr<DeviceBench::Prepared> DecodeContext::CaptureStep(const AttendOptions& options,
                                                                 int64_t batch) {
  AttendOptions reserving = options;
  reserving.reserve_tokens = num_tokens_ + kStepTokensMax;
  WAVEKV_ASSIGN_OR_RETURN(Plan plan, MakePlan(reserving, batch));
  auto step = std::make_shared<Step>(*this, std::move(plan));
  WAVEKV_RETURN_IF_ERROR(step->Capture(batch));
  WAVEKV_RETURN_IF_ERROR(CheckOutput(options, batch));
  DeviceBench::Prepared prepared;
  prepared.before = FlushCache();
  prepared.num_layers = num_layers();
  // One launch does all layers of a round.
  prepared.launch = [step = step.get()](int layer) {
    return layer == 0 ? step->Launch() : absl::OkStatus();
  };
  prepared.owner = std::move(step);
  return prepared;
}

absl::StatusOr<DeviceBench::Prepared> DecodeContext::CallAttend(const AttendOptions& options,
                                                                int64_t batch) {
  WAVEKV_ASSIGN_OR_RETURN(Plan made, MakePlan(options, batch));
  auto plan = std::make_shared<Plan>(std::move(made));
  DeviceBench::Prepared prepared;
  prepared.before = FlushCache();
  prepared.num_layers = num_layers();
  prepared.launch = [this, plan = plan.get(), batch](int layer) {
    return engine_
        ->Attend(*plan, layer, data_.queries(batch), output(layer, batch), {}, {}, bench_.stream())
        .status();
  };
  WAVEKV_RETURN_IF_ERROR(prepared.launch(0));
  WAVEKV_RETURN_IF_ERROR(CheckOutput(options, batch));
  prepared.owner = std::move(plan);
  return prepared;
}

absl::StatusOr<double> MeasureBuild(DeviceBench& bench, const DecodeData& data) {
  // What a context's creation does in its time, but for opening the engine; the first one finds
  // kernels that were never loaded.
  double best = 0.0;
  for (int round = 0; round < 2; ++round) {
    const EngineOptions options =
        DecodeContext::Options(data.shape(), 1, 1, data.shape().num_tokens);
    WAVEKV_ASSIGN_OR_RETURN(const auto engine, Engine::Open(options));
    WAVEKV_ASSIGN_OR_RETURN(const Tenant tenant, engine->OpenTenant("bench"));
    WAVEKV_ASSIGN_OR_RETURN(const Sequence sequence, tenant.CreateSequence());
    const auto start = std::chrono::steady_clock::now();
    for (int64_t begin = 0; begin < data.shape().num_tokens; begin += kAppendTokens) {
      const int64_t rows = std::min(kAppendTokens, data.shape().num_tokens - begin);
      const int32_t cu_seqlens[] = {0, static_cast<int32_t>(rows)};
      WAVEKV_RETURN_IF_ERROR(engine->Append({{&sequence, 1}, cu_seqlens}, 0, data.keys(begin, rows),
                                            data.values(begin, rows), bench.stream()));
    }
    WAVEKV_RETURN_IF_ERROR(engine->BuildSegments(sequence));
    WAVEKV_RETURN_IF_ERROR(engine->WaitForBuilds(sequence));
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = round == 0 ? elapsed.count() : std::min(best, elapsed.count());
  }
  return best;
}

}  // namespace wavekv::bench
