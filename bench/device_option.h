// The --device option of benchmarks that open an engine.
#ifndef WAVEKV_BENCH_DEVICE_OPTION_H_
#define WAVEKV_BENCH_DEVICE_OPTION_H_

#include "absl/status/status.h"
#include "bench/bench_main.h"
#include "wavekv/types.h"

namespace wavekv::bench {

Option DeviceOption(Device* device);

// What Engine::Open says of the device: UNIMPLEMENTED or UNAVAILABLE without it. For `prepare` of
// BenchMain, so that it is said once and before data are drawn.
absl::Status CheckDevice(Device device);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_DEVICE_OPTION_H_
