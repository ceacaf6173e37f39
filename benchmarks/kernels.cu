// The kernels of cross entropy with class indices, each that can take the rows, beside a read and copies of as many
// bytes: without JAX, for whoever tunes one. From the repository's root:
//
//   nvcc -std=c++17 -O3 --expt-relaxed-constexpr -gencode=arch=compute_90a,code=sm_90a -Icuda benchmarks/kernels.cu
//     -o kernels && ./kernels "bf16 [8192, 128256]"
//
// The argument is a part of the names of the rows wanted. With `--options` these are rows with options, with
// `--divergences` rows with a teacher's logits. With `--once` each kernel runs once, for a profiler, such as
//   ncu --clock-control none --kernel-name regex:cross_entropy --set full ./kernels "[8192, 128256]" --once
//
// Times are medians of seven loops of some 8 ms, the programs taking turns; a ratio is to the fastest read or copy, and
// to so much more for labels.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "gpu/cross_entropy/dispatch.cuh"
#include "gpu/divergence/dispatch.cuh"
#include "gpu/options/dispatch.cuh"

namespace jaxloss::gpu {
namespace {

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// ---- data -----------------------------------------------------------------------------------------------------------

__device__ uint32_t hash(uint64_t x) {
  x = (x + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  return static_cast<uint32_t>(((x ^ (x >> 27)) * 0x94d049bb133111ebu) >> 32);
}

// Logits of deviation 3.
template <class Logit>
__global__ void fill_logits(Logit* x, int64_t count) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const float u = (hash(2 * i) >> 8) * 0x1p-24f + 1e-7f, v = (hash(2 * i + 1) >> 8) * 0x1p-24f;
    x[i] = stored<Logit>(3 * sqrtf(-2 * logf(u)) * cospif(2 * v));
  }
}

__global__ void fill_labels(int32_t* index, int64_t rows, int64_t classes) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < rows;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    index[i] = static_cast<int32_t>(hash(i) % classes);
  }
}

enum Option { z_loss, smoothing, softcap, temperature };
constexpr float kOptions[] = {1e-4f, 0.1f, 30, 0.7f};
constexpr int64_t kMostClasses = 262144;
constexpr int64_t kMostBytes = 4400000000, kMostRows = int64_t{1} << 28, kParts = 8192;

struct Memory {
  char *logits, *gradient;
  int32_t* index;
  float *loss, *weight, *one_half, *sums;
  float *numbers, *class_weights;  // of options, in the order of `Option`; and of the classes

  Memory() {
    const auto allocate = [](auto& pointer, int64_t bytes) { require(cudaMalloc(&pointer, bytes), "cudaMalloc"); };
    allocate(logits, kMostBytes);
    allocate(gradient, kMostBytes);
    allocate(index, kMostRows * sizeof(int32_t));
    allocate(loss, kMostRows * sizeof(float));
    allocate(weight, sizeof(float));
    allocate(one_half, sizeof(float));
    allocate(sums, 2 * kMostRows * sizeof(float));
    allocate(numbers, sizeof(kOptions));
    require(cudaMemcpy(numbers, kOptions, sizeof(kOptions), cudaMemcpyHostToDevice), "options");
    allocate(class_weights, kMostClasses * sizeof(float));
    const std::vector<float> ones(kMostClasses, 1.0f);
    require(cudaMemcpy(class_weights, ones.data(), kMostClasses * sizeof(float), cudaMemcpyHostToDevice), "weights");
    const float one_of_many = 1.0f / 8192;
    require(cudaMemcpy(weight, &one_of_many, sizeof(float), cudaMemcpyHostToDevice), "weight");
    const float half = 0.5f;
    require(cudaMemcpy(one_half, &half, sizeof(float), cudaMemcpyHostToDevice), "half");
  }
};

// ---- limits ---------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256, kReadByThread = 8, kLimitThreads = 512;

__global__ void __launch_bounds__(kThreads) read(const uint4* x, int64_t count, float* largest) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kReadByThread + threadIdx.x;
  uint4 v[kReadByThread];
#pragma unroll
  for (int k = 0; k < kReadByThread; k++) {
    v[k] = first + k * kThreads < count ? __ldcs(x + first + k * kThreads) : make_uint4(0, 0, 0, 0);
  }
  uint32_t most = 0;
#pragma unroll
  for (int k = 0; k < kReadByThread; k++) most = max(most, max(max(v[k].x, v[k].y), max(v[k].z, v[k].w)));
  most = __reduce_max_sync(kAllLanes, most);
  if (threadIdx.x % kWarp == 0) largest[blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp] = most;
}

__global__ void __launch_bounds__(kLimitThreads) negate(const uint4* x, uint4* y, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kLimitThreads + threadIdx.x;
  if (i >= count) return;
  const uint4 v = x[i];
  y[i] = make_uint4(v.x ^ 1u << 31, v.y ^ 1u << 31, v.z ^ 1u << 31, v.w ^ 1u << 31);
}

// Two arrays read, one written, as a gradient with probabilities is made.
__global__ void __launch_bounds__(kLimitThreads) combine(const uint4* x, const uint4* a, uint4* y, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kLimitThreads + threadIdx.x;
  if (i >= count) return;
  const uint4 v = __ldcs(x + i), w = __ldcs(a + i);
  y[i] = make_uint4(v.x ^ w.x, v.y ^ w.y, v.z ^ w.z, v.w ^ w.w);
}

unsigned blocks_for(int64_t count, int64_t a_block) { return static_cast<unsigned>((count + a_block - 1) / a_block); }

// ---- timing ---------------------------------------------------------------------------------------------------------

struct Program {
  std::string name;
  std::function<cudaError_t()> launch;
  std::vector<float> microseconds = {};

  float median() const {
    std::vector<float> sorted = microseconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

void run_in_turn(std::vector<Program>& programs, double milliseconds_a_call) {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "event");
  require(cudaEventCreate(&end), "event");
  const int calls = std::max(3, static_cast<int>(8 / milliseconds_a_call));
  for (int repeat = -1; repeat < 7; repeat++) {
    for (Program& program : programs) {
      require(program.launch(), program.name.c_str());
      require(cudaEventRecord(begin), "event");
      for (int i = 0; i < calls; i++) program.launch();
      require(cudaEventRecord(end), "event");
      require(cudaEventSynchronize(end), program.name.c_str());
      float milliseconds = 0;
      require(cudaEventElapsedTime(&milliseconds, begin, end), "time");
      if (repeat >= 0) program.microseconds.push_back(milliseconds * 1e3f / calls);
    }
  }
}

bool once = false;

// Of `programs` the first `limits` move as many bytes; the kernels beside them read `labels` more. Those that this GPU,
// or what the kernels were compiled for, cannot run are left out. That they can is tried, which is all with `--once`.
void compare(const char* name, const char* what, std::vector<Program>& programs, size_t limits, double bytes,
             double labels) {
  const auto cannot_run = [](const Program& program) {
    const cudaError_t error = program.launch();
    if (error != cudaErrorNotSupported) require(error, program.name.c_str());
    return error == cudaErrorNotSupported;
  };
  programs.erase(std::remove_if(programs.begin(), programs.end(), cannot_run), programs.end());
  if (once) return require(cudaDeviceSynchronize(), name);
  run_in_turn(programs, bytes / 3e9);
  float fastest = programs[0].median();
  for (size_t i = 1; i < limits; i++) fastest = std::min(fastest, programs[i].median());
  const double limit = fastest * (1 + labels / bytes);
  std::printf("%-28s %-14s %8.1f us at %.2f TB/s:", name, what, limit, bytes / fastest * 1e-6);
  for (size_t i = limits; i < programs.size(); i++) {
    std::printf("  %s %.3f", programs[i].name.c_str(), programs[i].median() / limit);
  }
  std::printf("\n");
  std::fflush(stdout);
}

Program read_of(const Memory& memory, int64_t bytes) {
  const uint4* from = reinterpret_cast<const uint4*>(memory.logits);
  const int64_t vectors = bytes / kVectorBytes;
  float* largest = memory.sums;
  return {"read", [=] {
            read<<<blocks_for(vectors, kThreads * kReadByThread), kThreads>>>(from, vectors, largest);
            return cudaGetLastError();
          }};
}

Program negation_of(const Memory& memory, int64_t bytes) {
  const uint4* from = reinterpret_cast<const uint4*>(memory.logits);
  uint4* to = reinterpret_cast<uint4*>(memory.gradient);
  const int64_t vectors = bytes / kVectorBytes;
  return {"negation", [=] {
            negate<<<blocks_for(vectors, kLimitThreads), kLimitThreads>>>(from, to, vectors);
            return cudaGetLastError();
          }};
}

// ---- rows -----------------------------------------------------------------------------------------------------------

std::string wanted;
bool with_options = false, divergences = false;

// Without options: the targets are the caller's.
template <class Logit, class Target>
CrossEntropyRows<Logit, Target> plain_rows(int64_t row_count, int64_t classes, const Target& target, bool with_gradient,
                                           const Memory& memory) {
  CrossEntropyRows<Logit, Target> rows{};
  rows.logits = reinterpret_cast<Logit*>(memory.logits);
  rows.target = target;
  rows.row_weight = memory.weight;
  rows.loss = memory.loss;
  rows.gradient = with_gradient ? reinterpret_cast<Logit*>(memory.gradient) : nullptr;
  rows.rows = rows.rows_per_weight = row_count;
  rows.classes = classes;
  rows.ceiling = INFINITY;
  return rows;
}

template <class Logit>
std::vector<Program> kernels_for(const CrossEntropyRows<Logit, ClassIndices>& rows, const Memory& memory,
                                 const Device& device) {
  std::vector<Program> programs = {{"as chosen", [=] { return launch(nullptr, rows); }}};
  const int64_t row_bytes = rows.classes * sizeof(Logit);
  const RegistersShape registers = registers_shape(rows);
  if (registers.slots > 0) {
    programs.push_back({"registers", [=] { return launch_registers(nullptr, rows, registers); }});
  }
  if (tiles_of(rows, device).rows > 0) {
    programs.push_back({"tiles", [=] { return launch_tiles(nullptr, rows, device, 0); }});
  }
  if (row_bytes <= kLongestTiledRow) {
    auto summed = rows;
    summed.loss = nullptr;
    summed.sums = memory.sums;
    summed.parts = kParts;
    programs.push_back({"sums", [=] { return launch(nullptr, summed); }});
  }
  const ClusterShape cluster = cluster_shape(rows, device);
  if (cluster.blocks > 0 && row_bytes >= 4096) {
    const std::string shape = std::to_string(cluster.blocks) + " x " + std::to_string(cluster.threads) + " threads x " +
                              std::to_string(cluster.held);
    programs.push_back({"cluster " + shape, [=] {
                          return launch_cluster(nullptr, cluster_kernel(rows, cluster.held), rows, device, cluster);
                        }});
  }
  if (row_bytes >= 16384) programs.push_back({"streaming", [=] { return launch_streaming(nullptr, rows); }});
  return programs;
}

template <class Logit>
void measure(const char* type, int64_t row_count, int64_t classes, const Memory& memory, const Device& device) {
  char name[80];
  std::snprintf(name, sizeof(name), "%s [%lld, %lld]", type, static_cast<long long>(row_count),
                static_cast<long long>(classes));
  if (std::strstr(name, wanted.c_str()) == nullptr) return;
  Logit* logits = reinterpret_cast<Logit*>(memory.logits);
  fill_logits<<<4096, kThreads>>>(logits, row_count * classes);
  fill_labels<<<1024, kThreads>>>(memory.index, row_count, classes);
  require(cudaDeviceSynchronize(), "data");
  const int64_t bytes = row_count * classes * sizeof(Logit);
  const uint4* from = reinterpret_cast<const uint4*>(memory.logits);
  uint4* to = reinterpret_cast<uint4*>(memory.gradient);

  for (const bool with_gradient : {false, true}) {
    const auto rows = plain_rows<Logit>(row_count, classes, ClassIndices{memory.index}, with_gradient, memory);
    std::vector<Program> kernels = kernels_for(rows, memory, device), limits;
    if (with_gradient) {
      limits.push_back({"copy", [=] { return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice); }});
      limits.push_back(negation_of(memory, bytes));
    } else {
      limits.push_back(read_of(memory, bytes));
    }
    const size_t limit_count = limits.size();
    limits.insert(limits.end(), kernels.begin(), kernels.end());
    const double moved = static_cast<double>(bytes) * (with_gradient ? 2 : 1);
    compare(name, with_gradient ? "value_and_grad" : "value", limits, limit_count, moved,
            sizeof(int32_t) * static_cast<double>(row_count));
  }
}

// With options, beside the same without them.
template <class Logit>
void measure_options(const char* type, int64_t row_count, int64_t classes, const Memory& memory) {
  const auto set = [&](const char* options, auto with) {
    char name[120];
    std::snprintf(name, sizeof(name), "%s [%lld, %lld] %s", type, static_cast<long long>(row_count),
                  static_cast<long long>(classes), options);
    if (std::strstr(name, wanted.c_str()) == nullptr) return;
    for (const bool with_gradient : {false, true}) {
      CrossEntropyOptionRows<Logit, ClassIndices> rows{};
      rows.logits = reinterpret_cast<Logit*>(memory.logits);
      rows.target.index = memory.index;
      rows.row_weight.number = memory.weight;
      rows.row_weight.rows_per_number = row_count;
      rows.loss = memory.loss;
      rows.gradient = with_gradient ? reinterpret_cast<Logit*>(memory.gradient) : nullptr;
      rows.rows = row_count;
      rows.classes = rows.smoothed_classes = classes;
      rows.ceiling = 16.1f;
      with(rows);
      const int64_t bytes = row_count * classes * sizeof(Logit);
      const auto plain = plain_rows<Logit>(row_count, classes, ClassIndices{memory.index}, with_gradient, memory);
      std::vector<Program> programs = {with_gradient ? negation_of(memory, bytes) : read_of(memory, bytes)};
      programs.push_back({"with", [=] { return launch(nullptr, rows); }});
      programs.push_back({"without", [=] { return launch(nullptr, plain); }});
      compare(name, with_gradient ? "value_and_grad" : "value", programs, 1,
              static_cast<double>(bytes) * (with_gradient ? 2 : 1), 0);
    }
  };
  fill_logits<<<4096, kThreads>>>(reinterpret_cast<Logit*>(memory.logits), row_count * classes);
  fill_labels<<<1024, kThreads>>>(memory.index, row_count, classes);
  require(cudaDeviceSynchronize(), "data");
  const auto number = [&](Option option) { return RowNumbers<float>{0, memory.numbers + option, row_count}; };
  const auto with_details = [&](auto& rows) {
    rows.nll = memory.sums;
    rows.entropy = memory.sums + row_count;
    rows.predicted = memory.index + row_count;
    rows.rank = memory.index + 2 * row_count;
  };
  set("z-loss", [&](auto& rows) { rows.z_loss = number(z_loss); });
  set("smoothing", [&](auto& rows) { rows.label_smoothing = number(smoothing); });
  set("smoothing without a clip", [&](auto& rows) {
    rows.label_smoothing = number(smoothing);
    rows.ceiling = INFINITY;
  });
  set("softcap", [&](auto& rows) { rows.softcap = number(softcap); });
  set("statistics", [&](auto& rows) { with_details(rows); });
  set("softcap, statistics", [&](auto& rows) {
    rows.softcap = number(softcap);
    with_details(rows);
  });
  const auto with_all = [&](auto& rows) {
    rows.z_loss = number(z_loss);
    rows.label_smoothing = number(smoothing);
    rows.softcap = number(softcap);
    rows.temperature = number(temperature);
    rows.class_weights = memory.class_weights;
    rows.rows_per_class_weights = row_count;
  };
  set("all", with_all);
  set("all without a clip", [&](auto& rows) {
    with_all(rows);
    rows.ceiling = INFINITY;
  });
}

// Reads two arrays of `count` numbers from the logits on; writes such a gradient of the first, if there is one.
template <class Logit>
Program limit_of_two(const Memory& memory, int64_t count, bool with_gradient) {
  const int64_t bytes = count * sizeof(Logit), vectors = bytes / kVectorBytes;
  if (!with_gradient) return read_of(memory, 2 * bytes);
  const uint4 *x = reinterpret_cast<const uint4*>(memory.logits), *a = x + vectors;
  uint4* to = reinterpret_cast<uint4*>(memory.gradient);
  return {"combination", [=] {
            combine<<<blocks_for(vectors, kLimitThreads), kLimitThreads>>>(x, a, to, vectors);
            return cudaGetLastError();
          }};
}

template <class Logit>
void measure_probabilities(const char* type, int64_t row_count, int64_t classes, const Memory& memory) {
  char name[80];
  std::snprintf(name, sizeof(name), "%s probabilities [%lld, %lld]", type, static_cast<long long>(row_count),
                static_cast<long long>(classes));
  if (std::strstr(name, wanted.c_str()) == nullptr) return;
  Logit* logits = reinterpret_cast<Logit*>(memory.logits);
  const int64_t count = row_count * classes, bytes = count * sizeof(Logit);
  fill_logits<<<4096, kThreads>>>(logits, 2 * count);
  require(cudaDeviceSynchronize(), "data");
  for (const bool with_gradient : {false, true}) {
    const ClassProbabilities<Logit> target{logits + count};
    const auto rows = plain_rows<Logit>(row_count, classes, target, with_gradient, memory);
    std::vector<Program> programs = {limit_of_two<Logit>(memory, count, with_gradient)};
    programs.push_back({"as chosen", [=] { return launch(nullptr, rows); }});
    programs.push_back({"streaming", [=] { return launch_streaming(nullptr, rows); }});
    compare(name, with_gradient ? "value_and_grad" : "value", programs, 1,
            static_cast<double>(bytes) * (with_gradient ? 3 : 2), 0);
  }
}

// A teacher's logits a little off the student's, as those of a teacher are.
template <class Logit>
__global__ void fill_teacher(const Logit* x, Logit* y, int64_t count) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    y[i] = stored<Logit>(number(x[i]) + (hash(i) >> 8) * 0x1p-23f - 1);
  }
}

template <class Divergence, class Logit>
void measure_divergence(const char* type, int64_t row_count, int64_t classes, const Memory& memory) {
  char name[80];
  std::snprintf(name, sizeof(name), "%s %s [%lld, %lld]", type, Divergence::name, static_cast<long long>(row_count),
                static_cast<long long>(classes));
  if (std::strstr(name, wanted.c_str()) == nullptr) return;
  Logit* logits = reinterpret_cast<Logit*>(memory.logits);
  const int64_t count = row_count * classes, bytes = count * sizeof(Logit);
  fill_logits<<<4096, kThreads>>>(logits, count);
  fill_teacher<<<4096, kThreads>>>(logits, logits + count, count);
  require(cudaDeviceSynchronize(), "data");
  for (const bool with_gradient : {false, true}) {
    RowsOfLogits<Divergence, Logit> rows{};
    rows.logits = logits;
    rows.teacher.logits = logits + count;
    const auto of_all = [&](float* number) { return RowNumbers<float>{0, number, row_count}; };
    rows.row_weight = of_all(memory.weight);
    rows.scale = rows.parameter = of_all(memory.one_half);
    float** const results[] = {&rows.loss, &rows.max, &rows.log_sum, &rows.teacher_max, &rows.teacher_log_sum,
                               &rows.total};
    for (int i = 0; i < 6; i++) *results[i] = memory.loss + i * row_count;
    rows.gradient = with_gradient ? reinterpret_cast<Logit*>(memory.gradient) : nullptr;
    rows.rows = row_count;
    rows.classes = classes;
    std::vector<Program> programs = {limit_of_two<Logit>(memory, count, with_gradient)};
    programs.push_back({"as chosen", [=] { return launch(nullptr, rows); }});
    programs.push_back({"held", [=] { return launch_held(nullptr, rows); }});
    programs.push_back({"teams", [=] { return launch_teams(nullptr, rows); }});
    compare(name, with_gradient ? "value_and_grad" : "value", programs, 1,
            static_cast<double>(bytes) * (with_gradient ? 3 : 2), 0);
  }
}

template <class Logit>
void measure_divergences(const char* type, int64_t row_count, int64_t classes, const Memory& memory) {
  measure_divergence<KullbackLeibler, Logit>(type, row_count, classes, memory);
  measure_divergence<JensenShannon, Logit>(type, row_count, classes, memory);
}

constexpr int64_t kSweptBytes = int64_t{1} << 30;
constexpr int64_t kClasses[] = {2,     3,     4,     8,     10,    16,     31,     32,    33,   64,
                                100,   128,   256,   257,   512,   1000,   1024,   2048,  4096, 8192,
                                16384, 32000, 32001, 50257, 65536, 100003, 151936, 262144};

void measure_all() {
  const Memory memory;
  Device device;
  require(find_current_device(device), "device");
  if (with_options) {
    measure_options<bfloat16>("bf16", 7000, 151936, memory);
    measure_options<bfloat16>("bf16", 16384, 32000, memory);
    measure_options<float>("f32", 8192, 32768, memory);
    measure_options<bfloat16>("bf16", 60000, 1000, memory);
    measure_options<bfloat16>("bf16", 10682, 50257, memory);
    return;
  }
  if (divergences) {
    measure_divergences<bfloat16>("bf16", 7000, 100352, memory);
    measure_divergences<bfloat16>("bf16", 16384, 32000, memory);
    measure_divergences<float>("f32", 8192, 32000, memory);
    measure_divergences<bfloat16>("bf16", 60000, 1000, memory);
    return;
  }
  for (const int64_t classes : kClasses) {
    measure<bfloat16>("bf16", kSweptBytes / 2 / classes, classes, memory, device);
    measure<float>("f32", kSweptBytes / 4 / classes, classes, memory, device);
  }
  measure<bfloat16>("bf16", 8192, 128256, memory, device);
  measure<bfloat16>("bf16", 4096, 262144, memory, device);
  measure<bfloat16>("bf16", 16384, 32000, memory, device);
  measure<bfloat16>("bf16", 32768, 4096, memory, device);
  measure<float>("f32", 8192, 32768, memory, device);
  measure<float>("f32", 65536, 1024, memory, device);
  measure_probabilities<bfloat16>("bf16", 8192, 32768, memory);
  measure_probabilities<float>("f32", 8192, 32768, memory);
}

}  // namespace
}  // namespace jaxloss::gpu

int main(int argc, char** argv) {
  for (int i = 1; i < argc; i++) {
    if (std::strcmp(argv[i], "--once") == 0) {
      jaxloss::gpu::once = true;
    } else if (std::strcmp(argv[i], "--options") == 0) {
      jaxloss::gpu::with_options = true;
    } else if (std::strcmp(argv[i], "--divergences") == 0) {
      jaxloss::gpu::divergences = true;
    } else {
      jaxloss::gpu::wanted = argv[i];
    }
  }
  jaxloss::gpu::measure_all();
}
