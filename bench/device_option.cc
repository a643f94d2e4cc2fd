#include "bench/device_option.h"

#include <string>

#include "wavekv/engine.h"

namespace wavekv::bench {

Option DeviceOption(Device* device) {
  return {"device", "cpu (default), or cuda: the engine's, on the first GPU",
          [device](const std::string& value) {
            *device = value == "cuda" ? Device::kCuda : Device::kCpu;
            return value == "cpu" || value == "cuda";
          }};
}

absl::Status CheckDevice(Device device) {
  if (device == Device::kCpu) return absl::OkStatus();
  EngineOptions options;
  options.model = {.num_layers = 1, .num_q_heads = 1, .num_kv_heads = 1, .head_dim_k = 64};
  options.index.segment_tokens = options.index.update_tokens = 64;
  options.arena_bytes = int64_t{1} << 20;
  options.device = device;
  return Engine::Open(options).status();
}

}  // namespace wavekv::bench
