// Streams whose work is done late, and in any order that streams and events allow.
#ifndef WAVEKV_CUDA_EMULATOR_DELAYED_STREAMS_H_
#define WAVEKV_CUDA_EMULATOR_DELAYED_STREAMS_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "cuda/emulator/simt.h"

namespace wavekv::emulator {

// What an event stands for since it was last recorded.
struct Ticket {
  Stream* stream = nullptr;
  bool done = false;
};

// Nothing that is queued is done before somebody asks for it: a program that frees, reuses or reads
// memory too early, or that forgets to let one stream wait for another, gets wrong numbers sooner
// or later. What is not needed for an answer is now and then done beside it.
//
// Threads: safe. Work is done by the threads that wait, one at a time.
class DelayedStreams final : public Scheduler {
 public:
  DelayedStreams();

  void Submit(Stream& stream, std::function<void()> work) override;
  // Ends the process unless the thread has entered this device.
  void CheckLaunch(const char* kernel) override;
  int Enter();
  void Leave(int before);

  std::shared_ptr<Ticket> Record(Stream& stream);
  void WaitFor(const std::shared_ptr<Ticket>& ticket, Stream& stream);
  // May do a little, so that who asks again and again gets on.
  bool IsDone(const std::shared_ptr<Ticket>& ticket);
  void Await(const std::shared_ptr<Ticket>& ticket);
  // All that was queued before the call, on this stream or on all.
  void Drain(Stream& stream);
  void DrainAll();

 private:
  struct Step {
    std::function<void()> work;
    std::shared_ptr<Ticket> waits_for;
  };

  // REQUIRES: run_mutex_ is held.
  void RunUntil(const Ticket& ticket);
  // False when the stream has nothing, or waits for another.
  bool RunOne(Stream& stream);
  void RunAny();
  bool IsPast(const Ticket& ticket);
  int64_t Draw(int64_t below);

  const int id_;
  std::mutex run_mutex_;  // held while work is done

  std::mutex mutex_;
  // Guarded by mutex_, as are tickets.
  std::map<Stream*, std::deque<Step>> steps_;
  std::mt19937_64 random_;
};

}  // namespace wavekv::emulator

#endif  // WAVEKV_CUDA_EMULATOR_DELAYED_STREAMS_H_
