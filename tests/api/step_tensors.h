// The tensors of a step's layers, where the engine's device reads them, and a stream.
#ifndef WAVEKV_TESTS_API_STEP_TENSORS_H_
#define WAVEKV_TESTS_API_STEP_TENSORS_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "cuda/gpu.h"
#include "gtest/gtest.h"
#include "wavekv/model_spec.h"
#include "wavekv/tensor_view.h"

namespace wavekv::testing {

class StepTensors {
 public:
  // `gpu`: the engine's, nullptr for the processor.
  StepTensors(std::shared_ptr<Gpu> gpu, const ModelSpec& model, int64_t rows)
      : model_(model), rows_(rows), gpu_(std::move(gpu)) {
    if (gpu_ == nullptr) {
      host_.resize(model.num_layers * floats());
    } else {
      memory_ = *GpuMemory::Device(gpu_, model.num_layers * floats() * int64_t{sizeof(float)});
      stream_ = *GpuOwnStream::Create(gpu_);
      event_ = *GpuEvent::Create(gpu_);
    }
  }
  ~StepTensors() {
    if (graph_ != nullptr) gpu_->DestroyGraph(graph_);
  }
  StepTensors(const StepTensors&) = delete;
  StepTensors& operator=(const StepTensors&) = delete;

  GpuStream stream() const { return stream_.get(); }
  TensorView keys(int layer) const {
    return View(layer, 0, model_.num_kv_heads, model_.head_dim_k);
  }
  TensorView values(int layer) const {
    return View(layer, num_keys(), model_.num_kv_heads, model_.head_dim_v);
  }
  TensorView queries(int layer) const {
    return View(layer, num_keys() + num_values(), model_.num_q_heads, model_.head_dim_k);
  }
  MutableTensorView output(int layer) const {
    MutableTensorView view =
        MutableTensorView::Dense(At(layer, num_keys() + num_values() + num_queries()),
                                 DType::kFloat32, rows_, model_.num_q_heads, model_.head_dim_v);
    view.memory = memory();
    return view;
  }
  PerHeadView lse(int layer) const {
    return PerHeadView::Dense(At(layer, num_keys() + num_values() + num_queries() + num_outputs()),
                              rows_, model_.num_q_heads);
  }

  // Queued on the stream, once what is there has been read.
  void Set(int layer, const std::vector<float>& keys, const std::vector<float>& values,
           const std::vector<float>& queries) {
    std::vector<float> all(keys);
    all.insert(all.end(), values.begin(), values.end());
    all.insert(all.end(), queries.begin(), queries.end());
    if (gpu_ == nullptr) {
      std::copy(all.begin(), all.end(), At(layer, 0));
      return;
    }
    const auto bytes = static_cast<int64_t>(all.size() * sizeof(float));
    EXPECT_TRUE(gpu_->Copy(At(layer, 0), all.data(), bytes, stream()).ok());
    Await();
  }
  std::vector<float> ReadOutput(int layer) {
    std::vector<float> output(num_outputs());
    const auto* from = static_cast<const float*>(this->output(layer).data);
    if (gpu_ == nullptr) {
      std::copy(from, from + num_outputs(), output.begin());
      return output;
    }
    EXPECT_TRUE(
        gpu_->Copy(output.data(), from, num_outputs() * int64_t{sizeof(float)}, stream()).ok());
    Await();
    return output;
  }

  // Captures what queue() queues if `first`, and launches what was captured. On the processor
  // queue() does the work at once.
  void CaptureOrRun(bool first, absl::FunctionRef<void()> queue) {
    if (gpu_ == nullptr) return queue();
    if (first) {
      ASSERT_TRUE(gpu_->BeginCapture(stream()).ok());
      queue();
      auto graph = gpu_->EndCapture(stream());
      ASSERT_TRUE(graph.ok()) << graph.status();
      graph_ = *graph;
    }
    const absl::Status status = gpu_->LaunchGraph(graph_, stream());
    ASSERT_TRUE(status.ok()) << status;
  }

 private:
  int64_t num_keys() const { return rows_ * model_.num_kv_heads * model_.head_dim_k; }
  int64_t num_values() const { return rows_ * model_.num_kv_heads * model_.head_dim_v; }
  int64_t num_queries() const { return rows_ * model_.num_q_heads * model_.head_dim_k; }
  int64_t num_outputs() const { return rows_ * model_.num_q_heads * model_.head_dim_v; }
  int64_t floats() const {
    return num_keys() + num_values() + num_queries() + num_outputs() + rows_ * model_.num_q_heads;
  }
  Memory memory() const { return gpu_ == nullptr ? Memory::kHost : Memory::kDevice; }
  float* At(int layer, int64_t offset) const {
    float* const base = gpu_ == nullptr ? const_cast<float*>(host_.data())
                                        : reinterpret_cast<float*>(memory_.data());
    return base + layer * floats() + offset;
  }
  TensorView View(int layer, int64_t offset, int64_t heads, int64_t dim) const {
    TensorView view = TensorView::Dense(At(layer, offset), DType::kFloat32, rows_, heads, dim);
    view.memory = memory();
    return view;
  }
  void Await() {
    EXPECT_TRUE(gpu_->Record(event_.get(), stream()).ok());
    EXPECT_TRUE(gpu_->Await(event_.get()).ok());
  }

  const ModelSpec model_;
  const int64_t rows_;
  const std::shared_ptr<Gpu> gpu_;
  std::vector<float> host_;
  GpuMemory memory_;
  GpuOwnStream stream_;
  GpuEvent event_;
  void* graph_ = nullptr;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_STEP_TENSORS_H_
