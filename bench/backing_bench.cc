// Random reads of blocks of a backing file, next to reading it from begin to end: what a miss can
// cost at best. By io_uring and by the file's threads, at queue depths 1, 16 and 64, with direct
// I/O and through the page cache (which holds all of it).
//
//   --directory=PATH   on the device to measure (default: TMPDIR, or /tmp)
//   --mib=N            size of the file
//   --block_bytes=N    bytes of a block, a multiple of 512
//   --run_blocks=N     blocks that follow each other at each random place, as those of a cluster do
//   --batch=N          blocks of a submission: the misses of a step
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/bench_main.h"
#include "buffer/backing_file.h"
#include "buffer/checksum.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

constexpr int64_t kSequentialBytes = int64_t{4} << 20;

struct Deleter {
  void operator()(std::byte* data) const { std::free(data); }
};
using AlignedMemory = std::unique_ptr<std::byte, Deleter>;

AlignedMemory Allocate(int64_t bytes) {
  return AlignedMemory(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)));
}

struct Settings {
  std::string directory;
  std::vector<int64_t> mib = {1024};
  std::vector<int64_t> block_bytes = {4096};
  std::vector<int64_t> run_blocks = {1};
  std::vector<int64_t> batch = {1024};
};

// A file full of blocks, some bytes of each different.
struct FullFile {
  std::unique_ptr<BackingFile> file;
  int64_t block_bytes = 0;
  int64_t run_blocks = 0;
  int64_t batch = 0;
  std::vector<uint32_t> checksums;             // of blocks
  std::vector<uint32_t> sequential_checksums;  // of kSequentialBytes each
};

absl::StatusOr<FullFile> MakeFullFile(const Settings& settings, bool direct) {
  FullFile full;
  full.block_bytes = settings.block_bytes[0];
  full.run_blocks = settings.run_blocks[0];
  full.batch = settings.batch[0];
  BackingOptions options;
  options.direct = direct;
  WAVEKV_ASSIGN_OR_RETURN(full.file, BackingFile::Create(settings.directory, options));
  const int64_t part_bytes = kSequentialBytes / full.block_bytes * full.block_bytes;
  const int64_t num_parts = (settings.mib[0] << 20) / kSequentialBytes;
  WAVEKV_ASSIGN_OR_RETURN(const int64_t offset, full.file->Allocate(num_parts * part_bytes));
  const AlignedMemory memory = Allocate(kSequentialBytes);
  std::mt19937_64 engine(1);
  for (int64_t at = 0; at < kSequentialBytes; at += 8) {
    *reinterpret_cast<uint64_t*>(memory.get() + at) = engine();
  }
  const int64_t blocks_per_part = part_bytes / full.block_bytes;
  std::vector<uint32_t> checksums(blocks_per_part);
  for (int64_t part = 0; part < num_parts; ++part) {
    for (int64_t i = 0; i < blocks_per_part; ++i) {
      *reinterpret_cast<int64_t*>(memory.get() + i * full.block_bytes) = part;
    }
    const absl::Span<const std::byte> bytes(memory.get(), part_bytes);
    BlockChecksums(bytes, full.block_bytes, absl::MakeSpan(checksums));
    full.checksums.insert(full.checksums.end(), checksums.begin(), checksums.end());
    full.sequential_checksums.push_back(BlockChecksum(bytes));
    WAVEKV_RETURN_IF_ERROR(full.file->Write(offset + part * part_bytes, bytes));
  }
  return full;
}

// Submits the reads and waits for all; an error's words, or nothing.
std::string ReadAll(BlockReader& reader, const std::vector<BlockRead>& reads,
                    std::vector<BlockCompletion>& completions) {
  if (const absl::Status status = reader.Submit(reads); !status.ok()) return status.ToString();
  while (reader.num_pending() > 0) {
    const int64_t count = reader.Wait(1, absl::MakeSpan(completions));
    for (int64_t i = 0; i < count; ++i) {
      if (!completions[i].status.ok()) return completions[i].status.ToString();
    }
  }
  return {};
}

std::unique_ptr<BlockReader> MakeReader(benchmark::State& state, const FullFile& full,
                                        IoEngine engine, int queue_depth,
                                        absl::Span<std::byte> memory) {
  ReaderOptions options;
  options.engine = engine;
  options.queue_depth = queue_depth;
  options.memory = memory;
  auto reader = full.file->NewReader(options);
  if (!reader.ok()) {
    state.SkipWithError(reader.status().ToString().c_str());
    return nullptr;
  }
  return std::move(*reader);
}

void BM_RandomBlocks(benchmark::State& state, const FullFile& full, IoEngine engine,
                     int queue_depth) {
  const AlignedMemory memory = Allocate(full.batch * full.block_bytes);
  const auto targets = absl::MakeSpan(memory.get(), full.batch * full.block_bytes);
  const auto reader = MakeReader(state, full, engine, queue_depth, targets);
  if (reader == nullptr) return;
  std::mt19937_64 random(7);
  std::vector<BlockRead> reads(full.batch);
  std::vector<BlockCompletion> completions(full.batch);
  for (auto _ : state) {
    size_t block = 0;
    for (int64_t i = 0; i < full.batch; ++i) {
      block = i % full.run_blocks == 0 ? random() % (full.checksums.size() - full.run_blocks)
                                       : block + 1;
      reads[i] = {static_cast<int64_t>(block) * full.block_bytes,
                  targets.subspan(i * full.block_bytes, full.block_bytes), full.checksums[block],
                  static_cast<uint64_t>(i)};
    }
    const std::string error = ReadAll(*reader, reads, completions);
    if (!error.empty()) {
      state.SkipWithError(error.c_str());
      return;
    }
  }
  state.SetItemsProcessed(state.iterations() * full.batch);
  state.SetBytesProcessed(state.iterations() * full.batch * full.block_bytes);
  if (reader->uses_registered_memory()) state.SetLabel("registered memory");
}

// Four reads at a time, in order.
void BM_Sequential(benchmark::State& state, const FullFile& full) {
  constexpr int64_t kBatch = 4;
  const AlignedMemory memory = Allocate(kBatch * kSequentialBytes);
  const auto reader = MakeReader(state, full, IoEngine::kAuto, kBatch, {});
  if (reader == nullptr) return;
  const int64_t part_bytes = kSequentialBytes / full.block_bytes * full.block_bytes;
  const auto num_parts = static_cast<int64_t>(full.sequential_checksums.size());
  std::vector<BlockRead> reads;
  std::vector<BlockCompletion> completions(kBatch);
  for (auto _ : state) {
    for (int64_t part = 0; part < num_parts; part += kBatch) {
      reads.clear();
      for (int64_t i = part; i < std::min(part + kBatch, num_parts); ++i) {
        reads.push_back({i * part_bytes,
                         absl::MakeSpan(memory.get() + (i - part) * kSequentialBytes, part_bytes),
                         full.sequential_checksums[i], 0});
      }
      const std::string error = ReadAll(*reader, reads, completions);
      if (!error.empty()) {
        state.SkipWithError(error.c_str());
        return;
      }
    }
  }
  state.SetBytesProcessed(state.iterations() * num_parts * part_bytes);
}

void BM_Checksum(benchmark::State& state, int64_t block_bytes) {
  // More than the second-level cache holds, as blocks come from the device.
  constexpr int64_t kNumBlocks = 4096;
  const AlignedMemory memory = Allocate(kNumBlocks * block_bytes);
  std::fill_n(memory.get(), kNumBlocks * block_bytes, std::byte{1});
  std::vector<uint32_t> checksums(kNumBlocks);
  for (auto _ : state) {
    BlockChecksums({memory.get(), static_cast<size_t>(kNumBlocks * block_bytes)}, block_bytes,
                   absl::MakeSpan(checksums));
    benchmark::DoNotOptimize(checksums.data());
  }
  state.SetBytesProcessed(state.iterations() * kNumBlocks * block_bytes);
}

// `direct` as it was asked for; the name says what the file system made of it.
absl::Status Register(const Settings& settings, std::vector<FullFile>& files) {
  if (settings.block_bytes[0] % BackingFile::kAlignmentBytes != 0) {
    return absl::InvalidArgumentError(
        fmt::format("--block_bytes must be a multiple of {}", BackingFile::kAlignmentBytes));
  }
  for (const bool direct : {true, false}) {
    WAVEKV_ASSIGN_OR_RETURN(FullFile full, MakeFullFile(settings, direct));
    files.push_back(std::move(full));
  }
  if (!files[0].file->direct()) fmt::print("{} takes no direct I/O\n", settings.directory);
  if (!files[0].file->io_uring_status().ok()) {
    fmt::print("no io_uring: {}\n", files[0].file->io_uring_status().ToString());
  }
  for (const FullFile& full : files) {
    const std::string how = full.file->direct() ? "direct" : "cached";
    benchmark::RegisterBenchmark(fmt::format("sequential/{}", how).c_str(), BM_Sequential,
                                 std::cref(full))
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
    for (const IoEngine engine : {IoEngine::kIoUring, IoEngine::kPread}) {
      if (engine == IoEngine::kIoUring && !full.file->io_uring_status().ok()) continue;
      for (const int queue_depth : {1, 16, 64}) {
        benchmark::RegisterBenchmark(
            fmt::format("random/{}/{}/queue_depth:{}",
                        engine == IoEngine::kIoUring ? "io_uring" : "pread", how, queue_depth)
                .c_str(),
            BM_RandomBlocks, std::cref(full), engine, queue_depth)
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  benchmark::RegisterBenchmark("checksum", BM_Checksum, settings.block_bytes[0]);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Settings settings;
  const char* const temporary = std::getenv("TMPDIR");
  settings.directory = temporary == nullptr ? "/tmp" : temporary;
  std::vector<FullFile> files;
  files.reserve(2);
  return bench::BenchMain(
      argc, argv,
      {{"directory", "a folder on the device to measure",
        [&](const std::string& value) {
          settings.directory = value;
          return !value.empty();
        }},
       bench::NumbersOption("mib", "size of the file in MiB", 4, int64_t{1} << 20, &settings.mib),
       bench::NumbersOption("block_bytes", "bytes of a block, a multiple of 512", 512,
                            int64_t{1} << 20, &settings.block_bytes),
       bench::NumbersOption("run_blocks", "blocks that follow each other at a random place", 1, 64,
                            &settings.run_blocks),
       bench::NumbersOption("batch", "blocks of a submission", 1, int64_t{1} << 16,
                            &settings.batch)},
      [&] { return Register(settings, files); },
      [&](const bench::Milliseconds& milliseconds) {
        // A filter may have left some out.
        const auto gb_per_s = [&](const std::string& name, double bytes) {
          const auto found = milliseconds.find(name + "/real_time");
          return found == milliseconds.end() ? 0.0 : bytes / found->second / 1e6;
        };
        const FullFile& direct = files[0];
        const std::string how = direct.file->direct() ? "direct" : "cached";
        const double batch_bytes = static_cast<double>(direct.batch * direct.block_bytes);
        fmt::print(
            "backing direct={:d} sequential_gb_s={:.2f} uring64_gb_s={:.2f} pread64_gb_s={:.2f}\n",
            direct.file->direct(),
            gb_per_s("sequential/" + how,
                     static_cast<double>(direct.checksums.size() * direct.block_bytes)),
            gb_per_s(fmt::format("random/io_uring/{}/queue_depth:64", how), batch_bytes),
            gb_per_s(fmt::format("random/pread/{}/queue_depth:64", how), batch_bytes));
      });
}

}  // namespace
}  // namespace wavekv

int main(int argc, char** argv) { return wavekv::Main(argc, argv); }
