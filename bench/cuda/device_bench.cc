#include "bench/cuda/device_bench.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "storage/float16.h"
#include "storage/status_macros.h"

namespace wavekv::bench {

absl::StatusOr<std::byte*> DeviceArena::AllocateBytes(int64_t bytes) {
  WAVEKV_ASSIGN_OR_RETURN(GpuMemory memory, GpuMemory::Device(gpu_, std::max<int64_t>(bytes, 1)));
  memory_.push_back(std::move(memory));
  return memory_.back().data();
}

absl::StatusOr<std::byte*> DeviceArena::UploadBytes(const void* source, int64_t bytes) {
  WAVEKV_ASSIGN_OR_RETURN(std::byte* const target, AllocateBytes(bytes));
  WAVEKV_RETURN_IF_ERROR(gpu_->Copy(target, source, bytes, stream_));
  // The source may go before the copy is done.
  WAVEKV_ASSIGN_OR_RETURN(const GpuEvent event, GpuEvent::Create(gpu_));
  WAVEKV_RETURN_IF_ERROR(gpu_->Record(event.get(), stream_));
  WAVEKV_RETURN_IF_ERROR(gpu_->Await(event.get()));
  return target;
}

absl::StatusOr<std::unique_ptr<DeviceBench>> DeviceBench::Create(
    std::shared_ptr<Gpu> gpu, const DeviceBenchOptions& options) {
  std::unique_ptr<DeviceBench> bench(new DeviceBench(std::move(gpu), options));
  WAVEKV_ASSIGN_OR_RETURN(bench->stream_, GpuOwnStream::Create(bench->gpu_));
  WAVEKV_ASSIGN_OR_RETURN(bench->start_, GpuEvent::CreateTiming(bench->gpu_));
  WAVEKV_ASSIGN_OR_RETURN(bench->end_, GpuEvent::CreateTiming(bench->gpu_));
  WAVEKV_RETURN_IF_ERROR(bench->MeasureCopy());
  return bench;
}

int64_t DeviceBench::data_bytes_max() const { return gpu_->info().memory_bytes / 10 * 6; }

int DeviceBench::NumLayers(int64_t bytes_read, int64_t bytes_held) const {
  constexpr int64_t kMax = 64;
  const int64_t wanted = (options_.cold_bytes + bytes_read - 1) / bytes_read;
  const int64_t fit = data_bytes_max() / bytes_held;
  return static_cast<int>(std::clamp<int64_t>(std::min(wanted, fit), 1, kMax));
}

absl::StatusOr<const std::byte*> DeviceBench::RandomData(int64_t bytes) {
  if (data_.bytes() >= bytes) return data_.data();
  data_ = GpuMemory();
  WAVEKV_ASSIGN_OR_RETURN(data_, GpuMemory::Device(gpu_, bytes));
  // No multiple of a chunk of rows: heads and layers differ.
  constexpr int64_t kPeriod = (int64_t{16} << 20) - 37 * 256;
  std::mt19937_64 engine(1);
  std::normal_distribution<float> gaussian;
  const int64_t period = std::min(bytes, kPeriod);
  std::vector<uint16_t> pattern(static_cast<size_t>(period / 2));
  for (uint16_t& value : pattern) value = Float32ToBFloat16(gaussian(engine));
  WAVEKV_RETURN_IF_ERROR(gpu_->Copy(data_.data(), pattern.data(), period / 2 * 2, stream()));
  for (int64_t filled = period; filled < bytes;) {
    const int64_t more = std::min(filled, bytes - filled);
    WAVEKV_RETURN_IF_ERROR(gpu_->Copy(data_.data() + filled, data_.data(), more, stream()));
    filled += more;
  }
  WAVEKV_RETURN_IF_ERROR(Synchronize());
  return data_.data();
}

absl::Status DeviceBench::Synchronize() {
  WAVEKV_RETURN_IF_ERROR(gpu_->Record(end_.get(), stream()));
  return gpu_->Await(end_.get());
}

absl::StatusOr<double> DeviceBench::SecondsOf(const std::function<absl::Status()>& queue) {
  WAVEKV_RETURN_IF_ERROR(gpu_->Record(start_.get(), stream()));
  WAVEKV_RETURN_IF_ERROR(queue());
  WAVEKV_RETURN_IF_ERROR(gpu_->Record(end_.get(), stream()));
  WAVEKV_RETURN_IF_ERROR(gpu_->Await(end_.get()));
  return gpu_->ElapsedSeconds(start_.get(), end_.get());
}

absl::Status DeviceBench::MeasureCopy() {
  constexpr int kCopies = 10;
  const int64_t bytes = options_.copy_bytes;
  WAVEKV_ASSIGN_OR_RETURN(const GpuMemory source, GpuMemory::Device(gpu_, bytes));
  WAVEKV_ASSIGN_OR_RETURN(const GpuMemory target, GpuMemory::Device(gpu_, bytes));
  WAVEKV_RETURN_IF_ERROR(gpu_->Fill(source.data(), 1, bytes, stream()));
  const auto copy = [&]() -> absl::Status {
    for (int i = 0; i < kCopies; ++i) {
      WAVEKV_RETURN_IF_ERROR(gpu_->Copy(target.data(), source.data(), bytes, stream()));
    }
    return absl::OkStatus();
  };
  WAVEKV_RETURN_IF_ERROR(SecondsOf(copy).status());
  // As long as any benchmark, as the clocks of an idle device are low; the best, for that reason.
  for (double total = 0.0; total < options_.seconds;) {
    WAVEKV_ASSIGN_OR_RETURN(const double seconds, SecondsOf(copy));
    total += seconds;
    copy_bytes_per_second_ =
        std::max(copy_bytes_per_second_, 2.0 * kCopies * static_cast<double>(bytes) / seconds);
  }
  return absl::OkStatus();
}

double DeviceBench::LastShare(absl::string_view prefix) const {
  double last = -1.0;
  for (const auto& [name, share] : shares_) {
    if (absl::StartsWith(name, prefix)) last = share;
  }
  return last;
}

void DeviceBench::Register(const std::string& name,
                           std::function<absl::StatusOr<Prepared>(DeviceArena& arena)> prepare) {
  benchmark::RegisterBenchmark(
      name.c_str(),
      [this, name, prepare = std::move(prepare)](benchmark::State& state) {
        DeviceArena arena = MakeArena();
        const absl::StatusOr<Prepared> prepared = prepare(arena);
        if (absl::IsCancelled(prepared.status())) {
          // No failure, and no time.
          for (auto _ : state) state.SetIterationTime(0.0);
          state.SetLabel(std::string(prepared.status().message()));
          return;
        }
        const absl::Status status = prepared.ok() ? Run(state, *prepared, name) : prepared.status();
        if (!status.ok()) state.SkipWithError(std::string(status.message()).c_str());
      })
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond)
      // Google Benchmark would prepare the inputs again for each of its guesses.
      ->Iterations(1);
}

absl::Status DeviceBench::Run(benchmark::State& state, const Prepared& prepared,
                              const std::string& name) {
  const auto pass = [&]() -> absl::Status {
    for (int layer = 0; layer < prepared.num_layers; ++layer) {
      WAVEKV_RETURN_IF_ERROR(prepared.launch(layer));
    }
    return absl::OkStatus();
  };
  const auto timed_pass = [&]() -> absl::StatusOr<double> {
    if (prepared.before) WAVEKV_RETURN_IF_ERROR(prepared.before());
    return SecondsOf(pass);
  };
  WAVEKV_RETURN_IF_ERROR(timed_pass().status());
  // Timed by the pass, so that the events cost nothing; the median, as clocks change.
  constexpr size_t kPassesMin = 5;
  std::vector<double> passes;
  double total = 0.0;
  while (total < options_.seconds || passes.size() < kPassesMin) {
    WAVEKV_ASSIGN_OR_RETURN(const double seconds, timed_pass());
    passes.push_back(seconds);
    total += seconds;
  }
  const auto median = passes.begin() + static_cast<int64_t>(passes.size() / 2);
  std::nth_element(passes.begin(), median, passes.end());
  const double seconds = *median / prepared.num_layers;
  for (auto _ : state) state.SetIterationTime(seconds);

  const auto bytes = static_cast<double>(prepared.bytes);
  state.SetBytesProcessed(state.iterations() * prepared.bytes);
  state.counters["bytes"] = bytes;
  state.counters["launches"] =
      static_cast<double>(passes.size()) * static_cast<double>(prepared.num_layers);
  shares_.emplace_back(name, bytes / seconds / copy_bytes_per_second_);
  state.counters["copy_share"] = shares_.back().second;
  for (const auto& [counter, value] : prepared.counters) state.counters[counter] = value;
  return absl::OkStatus();
}

}  // namespace wavekv::bench
