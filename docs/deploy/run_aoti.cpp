// Runs an AOTInductor package (NAME.aoti.pt2) without Python.
//
//     run_aoti NAME.aoti.pt2 float32:1,16,16,16 float32:1,16,16 ... bool:1,3
//
// One argument an input, dtype and sizes, in the order of the manifest's `inputs`. All are filled with ones; put your tensors there.
// A package is machine code: check its SHA-256 against yours before this, and its inputs against the manifest. Nothing here does.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

namespace {

at::ScalarType dtype_of(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "int64") return at::kLong;
  if (name == "uint8") return at::kByte;
  if (name == "bool") return at::kBool;
  throw std::invalid_argument("dtype: expected float32, int64, uint8 or bool, got " + name);
}

at::Tensor ones_like_spec(const std::string& spec) {
  const auto colon = spec.find(':');
  if (colon == std::string::npos) throw std::invalid_argument("input: expected DTYPE:SIZE,SIZE,..., got " + spec);
  std::vector<int64_t> shape;
  std::stringstream sizes(spec.substr(colon + 1));
  for (std::string size; std::getline(sizes, size, ',');) shape.push_back(std::stoll(size));
  return at::ones(shape, dtype_of(spec.substr(0, colon)));  // contiguous, as the package wants it
}

}  // namespace

int main(int count, char** arguments) try {
  if (count < 3) throw std::invalid_argument("usage: run_aoti NAME.aoti.pt2 DTYPE:SIZES ...");
  const c10::InferenceMode no_gradients;
  at::set_num_threads(1);
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  std::vector<at::Tensor> inputs;
  for (int i = 2; i < count; ++i) inputs.push_back(ones_like_spec(arguments[i]));

  std::vector<double> took_ms;
  std::vector<at::Tensor> outputs;
  for (int i = 0; i < 50; ++i) {
    const auto started = std::chrono::steady_clock::now();
    outputs = model.run(inputs);
    took_ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - started).count());
  }
  for (const auto& output : outputs) {
    std::printf("[");
    for (int64_t axis = 0; axis < output.dim(); ++axis) std::printf(axis ? ", %ld" : "%ld", long(output.size(axis)));
    std::printf("] sum of magnitudes %.6f\n", output.to(at::kDouble).abs().sum().item<double>());
  }
  std::sort(took_ms.begin(), took_ms.end());
  std::printf("median %.3f ms\n", took_ms[took_ms.size() / 2]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
