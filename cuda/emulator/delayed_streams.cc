#include "cuda/emulator/delayed_streams.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <utility>

namespace wavekv::emulator {
namespace {

// Devices are numbered from 1; 0 is none.
std::atomic<int> next_id{1};
thread_local int entered = 0;

}  // namespace

DelayedStreams::DelayedStreams() : id_(next_id.fetch_add(1)), random_(id_) {}

int DelayedStreams::Enter() { return std::exchange(entered, id_); }

void DelayedStreams::Leave(int before) { entered = before; }

void DelayedStreams::CheckLaunch(const char* kernel) {
  if (entered == id_) return;
  std::fprintf(stderr, "emulated GPU: %s: launched on a device that is not the thread's\n", kernel);
  std::abort();
}

void DelayedStreams::Submit(Stream& stream, std::function<void()> work) {
  std::lock_guard<std::mutex> lock(mutex_);
  steps_[&stream].push_back({std::move(work), nullptr});
}

std::shared_ptr<Ticket> DelayedStreams::Record(Stream& stream) {
  auto ticket = std::make_shared<Ticket>();
  ticket->stream = &stream;
  std::lock_guard<std::mutex> lock(mutex_);
  steps_[&stream].push_back({[this, ticket] {
                               std::lock_guard<std::mutex> done_lock(mutex_);
                               ticket->done = true;
                             },
                             nullptr});
  return ticket;
}

void DelayedStreams::WaitFor(const std::shared_ptr<Ticket>& ticket, Stream& stream) {
  if (ticket == nullptr) return;
  std::lock_guard<std::mutex> lock(mutex_);
  steps_[&stream].push_back({[] {}, ticket});
}

bool DelayedStreams::IsDone(const std::shared_ptr<Ticket>& ticket) {
  if (ticket == nullptr || IsPast(*ticket)) return true;
  if (Draw(2) == 0) return false;
  std::lock_guard<std::mutex> run_lock(run_mutex_);
  for (int64_t i = Draw(4); i > 0; --i) RunAny();
  return IsPast(*ticket);
}

void DelayedStreams::Await(const std::shared_ptr<Ticket>& ticket) {
  if (ticket == nullptr) return;
  std::lock_guard<std::mutex> run_lock(run_mutex_);
  RunUntil(*ticket);
}

void DelayedStreams::Drain(Stream& stream) {
  Await(Record(stream));
  std::lock_guard<std::mutex> lock(mutex_);
  steps_.erase(&stream);
}

void DelayedStreams::DrainAll() {
  std::vector<Stream*> streams;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [stream, steps] : steps_) streams.push_back(stream);
  }
  for (Stream* stream : streams) Await(Record(*stream));
}

void DelayedStreams::RunUntil(const Ticket& ticket) {
  const bool only_what_is_needed = Draw(2) == 0;
  while (!IsPast(ticket)) {
    if (!only_what_is_needed && Draw(2) == 0) RunAny();
    std::shared_ptr<Ticket> waits_for;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const std::deque<Step>& steps = steps_[ticket.stream];
      if (steps.empty()) continue;  // it was done meanwhile
      waits_for = steps.front().waits_for;
      if (waits_for != nullptr && waits_for->done) waits_for.reset();
    }
    if (waits_for != nullptr) RunUntil(*waits_for);
    RunOne(*ticket.stream);
  }
}

bool DelayedStreams::RunOne(Stream& stream) {
  std::function<void()> work;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = steps_.find(&stream);
    if (found == steps_.end() || found->second.empty()) return false;
    Step& step = found->second.front();
    if (step.waits_for != nullptr && !step.waits_for->done) return false;
    work = std::move(step.work);
    found->second.pop_front();
  }
  work();
  return true;
}

void DelayedStreams::RunAny() {
  Stream* stream = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (steps_.empty()) return;
    const auto number = static_cast<int64_t>(random_() % steps_.size());
    stream = std::next(steps_.begin(), number)->first;
  }
  RunOne(*stream);
}

bool DelayedStreams::IsPast(const Ticket& ticket) {
  std::lock_guard<std::mutex> lock(mutex_);
  return ticket.done;
}

int64_t DelayedStreams::Draw(int64_t below) {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(random_() % static_cast<uint64_t>(below));
}

}  // namespace wavekv::emulator
