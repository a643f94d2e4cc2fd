#include "api/engine_test_peer.h"

#include "api/engine_impl.h"
#include "buffer/row_tiers.h"
#include "storage/arena.h"

namespace wavekv {

void EngineTestPeer::UseGpu(std::shared_ptr<Gpu> gpu) { GpuForTests() = std::move(gpu); }

void EngineTestPeer::FailAllocations(Engine& engine, int64_t after, int64_t count) {
  // What kernels were reading is free by now: else a refused call would try again behind it.
  if (count > 0 && engine.impl_->gpu != nullptr) engine.impl_->gpu->context().CollectAll();
  engine.impl_->context->arena->FailAllocations(after, count);
}

bool EngineTestPeer::FreeBytesAreZero(const Engine& engine) {
  return engine.impl_->context->arena->FreeBlocksAreZero();
}

BackingFaults& EngineTestPeer::Faults(Engine& engine) {
  return engine.impl_->row_tiers->file().faults();
}

void EngineTestPeer::WaitUntilAdmitted(const Engine& engine) {
  if (engine.impl_->row_tiers != nullptr) engine.impl_->row_tiers->WaitUntilAdmitted();
  if (engine.impl_->gpu != nullptr) engine.impl_->gpu->context().CollectAll();
}

int64_t EngineTestPeer::BackingBytesUsed(const Engine& engine, const std::string& tenant_id) {
  std::lock_guard<std::mutex> lock(engine.impl_->mutex);
  const TenantStore& tenant = *engine.impl_->tenants.at(tenant_id);
  return static_cast<const TenantRowTier&>(*tenant.row_tier()).backing_bytes_used();
}

void EngineTestPeer::EmptyCache(Engine& engine) {
  WaitUntilAdmitted(engine);
  for (const auto& tenant : engine.impl_->AllTenants()) {
    for (const auto& sequence : tenant->sequences()) {
      for (int layer = 0; layer < sequence->num_layers(); ++layer) {
        for (const auto& segment : sequence->layer(layer).Snapshot().segments) {
          const Segment::Pin pin = segment->Read();
          if (pin.sealed == nullptr) continue;
          for (const SealedHead& head : pin.sealed->heads) {
            engine.impl_->row_tiers->cache().Drop(
                static_cast<const TieredRows&>(*head.rows).table());
          }
        }
      }
    }
  }
}

absl::Span<std::byte> EngineTestPeer::ArenaMemory(Engine& engine) {
  const class ArenaMemory& memory = engine.impl_->context->arena->memory();
  return absl::MakeSpan(memory.data(), static_cast<size_t>(memory.bytes()));
}

void EngineTestPeer::PauseBuilds(Engine& engine, bool paused) {
  engine.impl_->builds->SetPaused(paused);
}

std::vector<std::pair<int64_t, int64_t>> EngineTestPeer::SealedRuns(const Sequence& sequence,
                                                                    int layer) {
  std::vector<std::pair<int64_t, int64_t>> runs;
  const auto stored = Engine::Stored({&sequence, 1});
  for (const auto& segment : stored[0]->layer(layer).Snapshot().segments) {
    if (segment->state() != Segment::State::kSealed) continue;
    runs.emplace_back(segment->begin(), segment->end());
  }
  return runs;
}

}  // namespace wavekv
