// Engine options as protobuf. Internal: public headers include no generated code.
#ifndef WAVEKV_API_ENGINE_CONFIG_H_
#define WAVEKV_API_ENGINE_CONFIG_H_

#include "absl/status/statusor.h"
#include "proto/engine_config.pb.h"
#include "wavekv/options.h"

namespace wavekv {

// Fields left out keep the defaults of EngineOptions. INVALID_ARGUMENT as ValidateEngineOptions.
absl::StatusOr<EngineOptions> EngineOptionsFromProto(const v1::EngineConfig& config);

absl::StatusOr<TenantQuota> TenantQuotaFromProto(const v1::TenantQuota& quota);

}  // namespace wavekv

#endif  // WAVEKV_API_ENGINE_CONFIG_H_
