// What tests may do to an engine, and see of it, that users may not.
#ifndef WAVEKV_API_ENGINE_TEST_PEER_H_
#define WAVEKV_API_ENGINE_TEST_PEER_H_

#include <cstdint>

#include "wavekv/engine.h"

namespace wavekv {

// Threads: safe, as Engine.
class EngineTestPeer {
 public:
  // After `after` more allocations in the arena, the next `count` are refused as if it was full,
  // whoever makes them: an append or a background build. (0, 0) ends it.
  static void FailAllocations(Engine& engine, int64_t after, int64_t count);

  // Whether every byte of the arena that nobody owns is zero. Reads the whole of it.
  static bool FreeBytesAreZero(const Engine& engine);
};

}  // namespace wavekv

#endif  // WAVEKV_API_ENGINE_TEST_PEER_H_
