#include "api/engine_test_peer.h"

#include "api/engine_impl.h"
#include "storage/arena.h"

namespace wavekv {

void EngineTestPeer::FailAllocations(Engine& engine, int64_t after, int64_t count) {
  engine.impl_->context->arena->FailAllocations(after, count);
}

bool EngineTestPeer::FreeBytesAreZero(const Engine& engine) {
  return engine.impl_->context->arena->FreeBlocksAreZero();
}

}  // namespace wavekv
