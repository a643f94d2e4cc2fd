// Reading blocks of the backing file, many at a time.
#ifndef WAVEKV_BUFFER_BLOCK_READER_H_
#define WAVEKV_BUFFER_BLOCK_READER_H_

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "buffer/backing_faults.h"

namespace wavekv {

// How reads reach the device.
enum class IoEngine : uint8_t {
  kAuto,     // io_uring where the kernel lets us, else kPread
  kIoUring,  // one system call for a batch, completions in memory shared with the kernel
  kPread,    // threads of the file, one pread each at a time
};

struct BlockRead {
  int64_t offset = 0;            // in the file
  absl::Span<std::byte> target;  // where the bytes go; its size is the block's
  uint32_t checksum = 0;         // BlockChecksum of what was written there
  uint64_t tag = 0;              // the caller's, comes back with the completion
};

struct BlockCompletion {
  uint64_t tag = 0;
  // OK: the target holds the block. DATA_LOSS: it does not, because the bytes do not match their
  // checksum (the message has the offset) or are not in the file. UNAVAILABLE: the device reports
  // an error. In either case the target's contents are undefined; other reads are not affected.
  absl::Status status;
};

struct ReaderOptions {
  IoEngine engine = IoEngine::kAuto;  // kAuto: as the file chose at Create
  // Reads in the device at once (joined ones count once); more wait in the reader. In [1, 4096].
  int queue_depth = 64;
  // Reads that may be pending without the reader allocating memory. More make it grow.
  int64_t reserved_reads = 1024;
  // Memory that most targets lie in, told to the kernel once (io_uring only). It must outlive the
  // reader, and is resident from then on. Whether the kernel took it: uses_registered_memory().
  absl::Span<std::byte> memory;
};

// A queue of reads. They end in any order, and each is checked against its checksum.
//
//   Submit(misses);  ...attend to the hits...;  while (reader.num_pending() > 0) Wait(1, ...);
//
// Any number may be submitted. The device has at most queue_depth of them; every call of Submit and
// Wait (also Wait(0, ...), which never blocks) hands over more as others end. Reads go in the order
// of submission, but a slow one holds up nobody else's completion. A short read goes on where it
// stopped. Reads that follow each other in submission and in the file go to the device as one, up
// to kRunBlocksMax of them: submit the blocks of a cluster in order.
//
// Memory: a target belongs to the reader from Submit until its completion was returned or the
// reader is destroyed. The destructor waits for reads in the device and forgets the rest.
// Alignment: offset, target address and target size are multiples of kAlignmentBytes, with direct
// I/O or without.
// Threads: one at a time; it may be handed from one to another.
class BlockReader {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  static constexpr int64_t kAlignmentBytes = 512;
  static constexpr int kRunBlocksMax = 8;
  static constexpr int64_t kRunBytesMax = int64_t{256} << 10;

  BlockReader(const BlockReader&) = delete;
  BlockReader& operator=(const BlockReader&) = delete;
  virtual ~BlockReader() = default;

  // Queues all of `reads`. INVALID_ARGUMENT, and none queued, when one is misaligned, empty or
  // beyond the file's end (the message has its place in `reads`). Does not block.
  absl::Status Submit(absl::Span<const BlockRead> reads);

  // Fills the front of `completions` with reads that ended and returns their number: at least
  // `at_least` of them (or as many as are pending or fit) unless `deadline` passes first, in which
  // case the others stay pending.
  int64_t Wait(int64_t at_least, absl::Span<BlockCompletion> completions,
               TimePoint deadline = TimePoint::max());

  // Submitted and not yet returned by Wait.
  int64_t num_pending() const { return num_pending_; }
  // Of those, handed to the device and not known to have ended; those that go as one count once.
  int64_t num_in_flight() const { return num_in_flight_; }

  virtual IoEngine engine() const = 0;  // never kAuto
  virtual bool uses_registered_memory() const { return false; }

 protected:
  // Of the file that is read. All outlive the reader.
  struct Source {
    int fd = -1;
    const std::atomic<int64_t>* size_bytes = nullptr;  // end of the last extent
    BackingFaults* faults = nullptr;
  };
  friend class BackingFile;  // makes the Source

  // One read of the device: of one block, or of several that follow each other in the file.
  struct Run {
    int id = 0;
    int64_t offset = 0;
    int num_parts = 0;  // of memory
  };
  using Parts = std::array<iovec, kRunBlocksMax>;

  BlockReader(const Source& source, const ReaderOptions& options);

  // Takes what has ended (calls Ended), then hands over waiting reads (TakeRun). Never blocks.
  virtual void Pump() = 0;
  // Returns when about `at_least` more runs have ended, or at `deadline`; may return early.
  // REQUIRES: num_in_flight() > 0.
  virtual void Block(int64_t at_least, TimePoint deadline) = 0;

  // For destructors of implementations: forgets waiting reads, waits for those in the device.
  void Drain();

  // For Pump: reads that have not been handed over. TakeRun gives the first ones, fills in where
  // their bytes go, and counts them as one in flight.
  bool has_waiting() const { return waiting_.first != kNone; }
  Run TakeRun(Parts& parts);
  // A run in flight ended with `result`: bytes, or a negated errno. Queues what is missing.
  void Ended(int id, int64_t result);
  // A run in flight will not be done.
  void Failed(int id, const absl::Status& status);

  const Source source_;
  const int queue_depth_;

 private:
  static constexpr int kNone = -1;

  struct Request {
    BlockRead read;
    int64_t done_bytes = 0;
    int num_retries = 0;
    bool is_alone = false;  // not to be joined with others: one of them failed
    int next = kNone;       // in the list or the run it is in
    absl::Status status;
    // Of a read that a test delays.
    TimePoint delayed_until;
    int64_t delayed_result = 0;
  };
  struct List {
    int first = kNone;
    int last = kNone;
  };

  absl::Status Check(const BlockRead& read, int64_t size_bytes) const;
  void Append(List& list, int id);
  int PopFront(List& list);
  void BlockEnded(int id, int64_t result);
  // Gives the read its status or queues its rest.
  void Settle(int id, int64_t result);
  void Finish(int id, absl::Status status);
  // Delayed reads whose time has come are finished; returns when the next one's comes.
  TimePoint FinishDelayed();
  std::string Where(const Request& request) const;

  std::vector<Request> requests_;  // by id
  List free_;
  List waiting_;
  List finished_;
  std::vector<int> delayed_;
  int64_t num_pending_ = 0;
  int64_t num_in_flight_ = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_BLOCK_READER_H_
