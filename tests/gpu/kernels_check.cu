// The CUDA kernels, without JAX, against a double precision reference on the host. From the repository's root:
//
//   nvcc -std=c++17 -O3 --expt-relaxed-constexpr --threads 0 -arch=native -Icuda -o kernels_check
//     tests/gpu/kernels_check.cu cuda/gpu/*/*.cu && ./kernels_check
//
// (sm_90a: -gencode=arch=compute_90a,code=sm_90a for -arch=native.) It starts itself for elementwise losses, for
// divergences, for the gradient of known rows, for options, and once for each kernel of cross entropy, which
// JAXLOSS_CROSS_ENTROPY_KERNEL asks for: `./kernels_check options` is one of these alone. Outputs begin as poison
// between guards of poison, inputs have NaN around them. With JAXLOSS_CHECK_SIZES=few the sizes are so few and small
// that tools which watch every access to memory end in minutes; `make sanitize-gpu` runs them. With
// JAXLOSS_CHECK_TYPES=float only predictions and logits of that type are checked.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gpu/cross_entropy/dispatch.cuh"
#include "gpu/launch.h"
#include "tasks.h"

using namespace jaxloss;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAIL %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// ---- numbers --------------------------------------------------------------------------------------------------------

double wide(float x) { return x; }
double wide(double x) { return x; }
double wide(int32_t x) { return x; }
double wide(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}
double wide(float16 x) {
  __half y;
  std::memcpy(&y, &x, sizeof(y));
  return __half2float(y);
}

template <class Stored>
Stored narrow(double x) {
  return static_cast<Stored>(x);
}
template <>
bfloat16 narrow<bfloat16>(double x) {
  const __nv_bfloat16 y = __float2bfloat16_rn(static_cast<float>(x));
  bfloat16 z;
  std::memcpy(&z, &y, sizeof(z));
  return z;
}
template <>
float16 narrow<float16>(double x) {
  const __half y = __float2half_rn(static_cast<float>(x));
  float16 z;
  std::memcpy(&z, &y, sizeof(z));
  return z;
}

template <class Stored>
struct Traits;
template <>
struct Traits<float> {
  static constexpr const char* name = "float";
  static constexpr double largest = 3.4028234e38, rounding = 6e-8, smallest = 1e-37;
};
template <>
struct Traits<bfloat16> {
  static constexpr const char* name = "bfloat16";
  static constexpr double largest = 3.38e38, rounding = 1.0 / 256 * 1.01, smallest = 1e-37;
};
template <>
struct Traits<float16> {
  static constexpr const char* name = "float16";
  static constexpr double largest = 65504, rounding = 1.0 / 2048 * 1.01, smallest = 6e-8;
};
template <>
struct Traits<double> {
  static constexpr const char* name = "double";
  static constexpr double largest = 1.7e308, rounding = 1.2e-16, smallest = 1e-300;
};

// What a number of float arithmetic, or double, may be off by, relatively: some roundings.
template <class Real>
constexpr double kSlack = std::is_same_v<Real, double> ? 1e-13 : 1e-6;

struct Random {
  uint64_t state;
  uint64_t next() {
    state += 0x9e3779b97f4a7c15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return (next() >> 11) * 0x1p-53; }
  double normal() {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += uniform();
    return sum;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % n); }
};

// ---- device memory with guards --------------------------------------------------------------------------------------

constexpr size_t kGuard = 256;
constexpr unsigned char kNanByte = 0xff, kPoisonByte = 0xa5;

class Buffer {
 public:
  explicit Buffer(size_t most_bytes) : image_(most_bytes + 2 * kGuard + 64) {
    require(cudaMalloc(&base_, image_.size()), "cudaMalloc");
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(base_); }

  // `count` numbers, `shift` numbers behind an aligned address. Null for poison.
  template <class T>
  T* put(const T* numbers, int64_t count, int shift) {
    begin_ = kGuard + shift * sizeof(T);
    bytes_ = count * sizeof(T);
    guard_ = numbers ? kNanByte : kPoisonByte;
    std::memset(image_.data(), guard_, begin_ + bytes_ + kGuard);
    if (numbers && count) std::memcpy(image_.data() + begin_, numbers, bytes_);
    require(cudaMemcpy(base_, image_.data(), begin_ + bytes_ + kGuard, cudaMemcpyHostToDevice), "upload");
    return reinterpret_cast<T*>(base_ + begin_);
  }

  // Whether the guards are whole.
  template <class T>
  bool get(std::vector<T>& numbers) {
    require(cudaMemcpy(image_.data(), base_, begin_ + bytes_ + kGuard, cudaMemcpyDeviceToHost), "download");
    numbers.resize(bytes_ / sizeof(T));
    if (bytes_) std::memcpy(numbers.data(), image_.data() + begin_, bytes_);
    const auto whole = [&](size_t from, size_t to) {
      return std::all_of(image_.begin() + from, image_.begin() + to, [&](unsigned char b) { return b == guard_; });
    };
    return whole(0, begin_) && whole(begin_ + bytes_, begin_ + bytes_ + kGuard);
  }

 private:
  unsigned char* base_ = nullptr;
  std::vector<unsigned char> image_;
  size_t begin_ = 0, bytes_ = 0;
  unsigned char guard_ = 0;
};

constexpr int64_t kMostNumbers = 20'000'000, kMostBytes = 1 << 22;

struct Buffers {
  Buffer prediction{kMostNumbers * 4}, target{kMostBytes}, weight{kMostBytes}, loss{kMostBytes}, max{kMostBytes},
      log_sum{kMostBytes}, target_sum{kMostBytes}, gradient{kMostNumbers * 4};
  Buffer parameters[6] = {Buffer(kMostBytes), Buffer(kMostBytes), Buffer(kMostBytes),
                          Buffer(kMostBytes), Buffer(kMostBytes), Buffer(kMostBytes)};
};

// ---- reports --------------------------------------------------------------------------------------------------------

struct Expected {
  double value, tolerance;
};

// A tolerance of 0 asks for +0, an infinite one for nothing.
bool agrees(double got, Expected want) {
  if (std::isinf(want.tolerance)) return true;
  if (std::isnan(want.value)) return std::isnan(got);
  if (std::isinf(want.value)) return got == want.value;
  if (want.tolerance == 0) return got == 0 && want.value == 0 && !std::signbit(got);
  return std::fabs(got - want.value) <= want.tolerance;
}

// One line for all cases of a kernel and its types.
class Report {
 public:
  explicit Report(std::string name) : name_(std::move(name)) {}
  ~Report() {
    std::printf("%s %s: %d cases%s%s\n", failures_ ? "FAIL" : "PASS", name_.c_str(), cases_, note.empty() ? "" : ", ",
                note.c_str());
    std::fflush(stdout);
    if (failures_) all_passed = false;
  }
  static inline bool all_passed = true;
  std::string note;

  void begin(std::string what) {
    case_ = std::move(what);
    cases_++;
    in_case_ = false;
  }
  void fail(const std::string& how) {
    if (!in_case_ && failures_ < 3) std::printf("  %s, %s: %s\n", name_.c_str(), case_.c_str(), how.c_str());
    if (!in_case_) failures_++;
    in_case_ = true;
  }
  template <class T>
  void check(const char* what, Buffer& buffer, const std::vector<Expected>& want) {
    std::vector<T> got;
    if (!buffer.get(got)) fail(std::string(what) + " was written beyond its ends");
    for (size_t i = 0; i < want.size() && !in_case_; i++) {
      if (agrees(wide(got[i]), want[i])) continue;
      char text[160];
      std::snprintf(text, sizeof(text), "%s[%zu] = %.9g, expected %.9g ± %.2g", what, i, wide(got[i]), want[i].value,
                    want[i].tolerance);
      fail(text);
    }
  }

 private:
  std::string name_, case_;
  int cases_ = 0, failures_ = 0;
  bool in_case_ = false;
};

// ---- elementwise losses ---------------------------------------------------------------------------------------------

double clip = 0;  // of the binary cross entropies

// Whether sizes are few: of each kernel some, that reach its special cases and no more.
bool few_sizes() {
  static const char* sizes = std::getenv("JAXLOSS_CHECK_SIZES");
  return sizes && std::string(sizes) == "few";
}

// Whether numbers of that type are checked.
template <class Stored>
bool is_checked() {
  static const char* type = std::getenv("JAXLOSS_CHECK_TYPES");
  return !type || std::string(type) == Traits<Stored>::name;
}

// Value and derivative of an element with these parameters, and the size of what was added up to the value: errors are
// relative to it.
struct Element {
  double value, derivative, size;
};

double product(double weight, double value) { return weight == 0 ? 0 : weight * value; }
double sign(double x) { return x < 0 ? -1 : x > 0 ? 1 : x; }

Element element(const SquaredError&, double x, double a, const double*) {
  const double value = 0.5 * (x - a) * (x - a);
  return {value, x - a, value};
}
Element element(const AbsoluteError&, double x, double a, const double*) {
  return {std::fabs(x - a), sign(x - a), std::fabs(x - a)};
}
Element element(const Huber&, double x, double a, const double* p) {
  const double error = std::fabs(x - a), delta = p[0];
  const double value = error > delta ? delta * (error - 0.5 * delta) : 0.5 * error * error;
  return {value, error > delta ? sign(x - a) * delta : x - a, value};
}
Element element(const LogCosh&, double x, double a, const double*) {
  const double error = std::fabs(x - a), half = std::expm1(-error);
  const double value =
      error < 1 ? std::log1p(half * half / (2 * (1 + half))) : error + std::log1p(std::exp(-2 * error)) - std::log(2.0);
  return {value, std::tanh(x - a), value};
}
Element element(const Quantile&, double x, double a, const double* p) {
  const double slope = x < a ? -p[0] : 1 - p[0], value = slope * (x - a);
  return {value, std::isnan(x - a) ? kNan : x == a ? 0 : slope, value};
}

struct Nll {
  double if_one, if_zero, sigmoid, one_minus_sigmoid;
  explicit Nll(double x) {
    const double decay = std::exp(-std::fabs(x)), softplus = std::log1p(decay);
    if_one = (x < 0 ? -x : x == x ? 0 : x) + softplus;
    if_zero = (x > 0 ? x : x == x ? 0 : x) + softplus;
    sigmoid = (x < 0 ? decay : 1) / (1 + decay);
    one_minus_sigmoid = (x < 0 ? 1 : decay) / (1 + decay);
  }
};
double clipped(double nll) {
  const double floor = -std::log1p(-clip), ceiling = -std::log(clip);
  return nll < floor ? floor : nll > ceiling ? ceiling : nll;
}

Element element(const BinaryCrossEntropy&, double x, double a, const double*) {
  const Nll nll(x);
  const double value = product(a, clipped(nll.if_one)) + product(1 - a, clipped(nll.if_zero));
  return {value, nll.sigmoid - a, value};
}
Element element(const WeightedBinaryCrossEntropy&, double x, double a, const double* p) {
  const Nll nll(x);
  a += p[2] * (0.5 - a);
  const double value = p[0] * product(a, clipped(nll.if_one)) + p[1] * product(1 - a, clipped(nll.if_zero));
  return {value, p[1] * (1 - a) * nll.sigmoid - p[0] * a * nll.one_minus_sigmoid, value};
}
Element element(const FocalBinaryCrossEntropy&, double x, double a, const double* p) {
  const Nll nll(x);
  const Element weighted = element(WeightedBinaryCrossEntropy(&clip), x, a, p);
  a += p[2] * (0.5 - a);
  const double q = a * nll.one_minus_sigmoid + (1 - a) * nll.sigmoid;
  const double scale = (p[4] * a + p[5] * (1 - a)) * std::pow(q, p[3]);
  const double slope = (1 - 2 * a) * nll.sigmoid * nll.one_minus_sigmoid / q;
  const double exact = p[0] * product(a, nll.if_one) + p[1] * product(1 - a, nll.if_zero);
  const double value = product(scale, weighted.value);
  return {value, scale * (product(p[3] * slope, exact) + weighted.derivative),
          value * (1 + p[3] * std::fabs(std::log(q)))};
}

// Parameters from 0.2 to 0.9: every second one with a number for each feature, every third one the same for all rows.
// (With such an ε, 1 − a′ and q keep their digits.)
template <class Real, int count>
struct TestParameters {
  Parameters<Real, count> parameters{};
  std::vector<Real> numbers[count ? count : 1];

  TestParameters(Random& random, int64_t rows, int64_t width) {
    if constexpr (count > 0) {
      parameters.features = width % 4 ? width : width / 4;
      for (int k = 0; k < count; k++) {
        Parameter<Real>& parameter = parameters.of[k];
        parameter.rows_per_set = k % 3 ? 1 : rows;
        parameter.per_feature = k % 2 == 0 && parameters.features > 0;
        numbers[k].resize((k % 3 ? rows : 1) * (parameter.per_feature ? parameters.features : 1));
        for (Real& number : numbers[k]) number = static_cast<Real>(0.2 + 0.7 * random.uniform());
      }
    }
  }

  void of_element(int64_t row, int64_t offset, double* p) const {
    if constexpr (count > 0) {
      for (int k = 0; k < count; k++) {
        const int64_t set = row / parameters.of[k].rows_per_set;
        const bool per_feature = parameters.of[k].per_feature;
        p[k] = numbers[k][per_feature ? set * parameters.features + offset % parameters.features : set];
      }
    }
  }

  Parameters<Real, count> on_device(Buffers& buffers) const {
    Parameters<Real, count> result = parameters;
    if constexpr (count > 0) {
      for (int k = 0; k < count; k++) {
        result.of[k].numbers = buffers.parameters[k].put(numbers[k].data(), numbers[k].size(), 0);
      }
    }
    return result;
  }
};

template <class Loss, class Prediction, class Target>
void check_elementwise(Buffers& buffers) {
  if (!is_checked<Prediction>()) return;
  using Real = Accumulator<Prediction>;
  Report report(std::string("elementwise ") + Loss::name + " " + Traits<Prediction>::name + "/" + Traits<Target>::name);
  const Loss loss(&clip);
  struct Shape {
    int64_t rows, width, parts;
  };
  const Shape shapes[] = {{1, 1, 1},     {7, 1, 1},     {1000, 1, 1},  {100003, 1, 1}, {33, 2, 1},      {1, 10, 1},
                          {33, 3, 1},    {5, 7, 1},     {1000, 8, 1},  {100, 31, 1},   {64, 64, 1},     {17, 255, 1},
                          {9, 512, 1},   {9, 513, 1},   {3, 1000, 1},  {3, 1023, 1},   {2, 1024, 1},    {3, 1025, 1},
                          {5, 4097, 1},  {1, 16384, 1}, {2, 100, 3},   {3, 50001, 4},  {1, 300000, 19}, {40, 8192, 1},
                          {3001, 33, 1}, {1, 3, 5},     {257, 257, 1}, {4, 0, 1},      {4, 0, 2}};
  int seed = 0;
  for (const Shape shape : shapes) {
    if (few_sizes() && shape.rows * shape.width > 5000) continue;
    Random random{static_cast<uint64_t>(++seed)};
    const int64_t count = shape.rows * shape.width, part_size = part_width(shape.width, shape.parts);
    std::vector<Prediction> prediction(count);
    std::vector<Target> target(count);
    std::vector<Real> weight(shape.rows);
    std::vector<Expected> losses(shape.rows * shape.parts), gradient(count);
    const TestParameters<Real, Loss::parameter_count> parameters(random, shape.rows, shape.width);
    for (int64_t row = 0; row < shape.rows; row++) {
      const int kind = static_cast<int>((row + seed) % 8);  // 0: masked; 1: weight zero, and a NaN; 2: infinities
      weight[row] = static_cast<Real>(kind == 0 ? -0.0 : kind == 1 ? 0.0 : random.normal());
      for (int64_t i = 0; i < shape.width; i++) {
        double x = random.normal() * (random.below(8) ? 3 : 60), a = random.uniform();
        if (kind == 0 || (kind == 1 && random.below(3) == 0)) x = kNan;
        if (kind == 2 && random.below(shape.width + 1) == 0) x = random.below(2) ? kInfinity : -kInfinity;
        if (random.below(3) == 0) a = static_cast<double>(random.below(2));
        prediction[row * shape.width + i] = narrow<Prediction>(x);
        target[row * shape.width + i] = narrow<Target>(kind == 0 ? kNan : a);
      }
      for (int64_t part = 0; part < shape.parts; part++) {
        double sum = 0, size = 0;
        for (int64_t i = part * part_size; i < std::min(shape.width, (part + 1) * part_size); i++) {
          const int64_t at = row * shape.width + i;
          double p[6];
          parameters.of_element(row, at, p);
          const Element e = element(loss, wide(prediction[at]), wide(target[at]), p);
          sum += e.value;
          size += std::fabs(e.size);
          const double w = wide(weight[row]), want = w == 0 ? 0 : w * e.derivative;
          const double size_of_terms = std::fabs(w) * (1 + std::fabs(e.derivative));
          gradient[at] = {want, w == 0 ? 0
                                       : kSlack<Real> * size_of_terms + Traits<Prediction>::rounding * std::fabs(want) +
                                             Traits<Prediction>::smallest};
        }
        losses[row * shape.parts + part] =
            kind == 0 ? Expected{0, 0} : Expected{sum, kSlack<Real> * size + (part_size ? 1e-30 : 0)};
        if (kind != 0 && size == 0) losses[row * shape.parts + part] = {0, 1e-30};
      }
    }
    for (int variant = 0; variant < 5; variant++) {
      // Values only; with gradients; all one number off; each another; in place.
      const bool with_gradient = variant != 0, in_place = variant == 4;
      const int shift[] = {variant >= 2, variant == 3 ? 2 : variant >= 2, variant == 3 ? 3 : variant >= 2};
      char what[120];
      std::snprintf(what, sizeof(what), "rows %lld width %lld parts %lld variant %d", (long long)shape.rows,
                    (long long)shape.width, (long long)shape.parts, variant);
      report.begin(what);
      ElementwiseRows<Prediction, Target, Loss::parameter_count> rows = {};
      rows.parameters = parameters.on_device(buffers);
      Prediction* x = buffers.prediction.put(prediction.data(), count, shift[0]);
      rows.prediction = x;
      rows.target = buffers.target.put(target.data(), count, shift[1]);
      rows.row_weight = buffers.weight.put(weight.data(), shape.rows, 0);
      rows.loss = buffers.loss.put<Real>(nullptr, losses.size(), 0);
      Prediction* dx =
          with_gradient && !in_place ? buffers.gradient.put<Prediction>(nullptr, count, shift[2]) : nullptr;
      rows.gradient = in_place ? x : dx;
      rows.rows = shape.rows;
      rows.width = shape.width;
      rows.parts = shape.parts;
      require(gpu::launch(nullptr, loss, rows), what);
      require(cudaDeviceSynchronize(), what);
      report.check<Real>("loss", buffers.loss, losses);
      if (with_gradient)
        report.check<Prediction>("gradient", in_place ? buffers.prediction : buffers.gradient, gradient);
    }
  }
}

// ---- cross entropy --------------------------------------------------------------------------------------------------

struct TestRows {
  int64_t rows, classes, rows_per_weight;
  bool by_index, clipped;
  bool from_sums;  // for the gradient kernel
};

// A row of logits of one of several kinds; `kind` 0 is for rows that are masked.
enum Kind {
  kTakenOut,
  kNormal,
  kOffset,
  kSomeInfinite,
  kAllInfinite,
  kHasNan,
  kHasInfinity,
  kLowest,
  kHuge,
  kWide,
  kPeak,
  kNearPower,
  kKinds
};

template <class Logit>
std::vector<double> logits_of(int kind, int64_t classes, Random& random) {
  std::vector<double> x(classes);
  const double largest = Traits<Logit>::largest;
  for (double& value : x) {
    value = random.normal() * (kind == kWide ? 40 : 3);
    if (kind == kTakenOut) value = kNan;
    if (kind == kOffset) value += std::is_same_v<Logit, float16> ? 1500 : 1e4;  // of float16 still 1 apart
    if (kind == kSomeInfinite && random.below(3) == 0) value = -kInfinity;
    if (kind == kAllInfinite) value = -kInfinity;
    if (kind == kLowest) value = -largest;
    if (kind == kNearPower) value = random.below(2) ? 65504 : 65280;  // of bfloat16 2^16 and the number before
    if (kind == kHuge) value = (random.below(2) ? 1 : -1) * largest * (random.below(2) ? 0.9 : 1);
  }
  if (classes > 0) {
    const int64_t at = random.below(classes);
    if (kind == kHasNan) x[at] = kNan;
    if (kind == kHasInfinity) x[at] = kInfinity;
    if (kind == kPeak) x[at] = 200;
  }
  for (double& value : x) value = wide(narrow<Logit>(value));
  return x;
}

template <class Logit, class Target>
struct Case {
  using Real = Accumulator<Logit>;
  std::vector<Logit> logits;
  std::vector<int32_t> index;
  std::vector<Target> probability;  // of the stored type; unused with class indices
  std::vector<Real> weight, given_max, given_log_sum, given_target_sum;
  std::vector<Expected> loss, max, log_sum, gradient;
  double ceiling;
};

// Fills in data and what is to come out; also of the gradient kernel, for which max, log_sum and target_sum are given.
template <class Logit, class Target>
Case<Logit, Target> make_case(const TestRows& shape, uint64_t seed) {
  using Real = Accumulator<Logit>;
  Random random{seed};
  Case<Logit, Target> c;
  const int64_t classes = shape.classes;
  c.ceiling = shape.clipped ? static_cast<Real>(-std::log(1e-7)) : kInfinity;
  const double slack = kSlack<Real>, unit = std::is_same_v<Real, double> ? 2.3e-16 : 1.2e-7;
  int kind = kNormal;
  double weight = 0;
  for (int64_t row = 0; row < shape.rows; row++) {
    if (row % shape.rows_per_weight == 0) {
      const int64_t which = (row / shape.rows_per_weight + seed) % 7;
      weight = which == 1 ? -0.0 : which == 3 ? 0.0 : random.normal();
      weight = static_cast<Real>(weight);
      c.weight.push_back(static_cast<Real>(weight));
    }
    const bool out = weight == 0 && std::signbit(weight);
    kind = out ? kTakenOut : random.below(2) ? kNormal : kOffset + static_cast<int>(random.below(kKinds - kOffset));
    const std::vector<double> x = logits_of<Logit>(kind, classes, random);
    for (double value : x) c.logits.push_back(narrow<Logit>(value));

    int32_t index = static_cast<int32_t>(random.below(std::max<int64_t>(classes, 1)));
    const int64_t bad = random.below(40);
    if (bad == 0) index = -1;
    if (bad == 1) index = static_cast<int32_t>(classes);
    if (bad == 2) index = std::numeric_limits<int32_t>::min();
    if (bad == 3) index = std::numeric_limits<int32_t>::max();
    if (random.below(8) == 0) index = 0;
    if (random.below(8) == 0) index = static_cast<int32_t>(classes) - 1;
    const bool valid = index >= 0 && index < classes;
    c.index.push_back(index);
    std::vector<double> a(classes, 0.0);
    double total = 0;
    if (shape.by_index) {
      if (valid) a[index] = 1;
    } else {
      for (double& p : a) total += p = random.below(4) == 0 ? 0 : random.uniform();
      const double scale = total > 0 ? (0.5 + random.uniform()) / total : 0;
      for (double& p : a) {
        const Target kept = narrow<Target>(p * scale);
        p = wide(kept);
        if (out) p = kNan;
        c.probability.push_back(out ? narrow<Target>(kNan) : kept);
      }
    }
    double target_sum = 0;
    for (double p : a) target_sum += p;

    double max = -kInfinity, sum = 0;
    bool any_nan = false;
    for (double value : x) {
      any_nan |= std::isnan(value);
      max = std::max(max, std::isnan(value) ? max : value);
    }
    const bool undefined = any_nan || std::isinf(max);
    for (double value : x) sum += std::exp(value - max);
    const double log_sum = undefined ? kNan : std::log(sum);

    // What is written of the row.
    double loss = 0, loss_size = 0;
    for (int64_t i = 0; i < classes; i++) {
      if (a[i] == 0) continue;
      double nll = log_sum - (x[i] - max);
      if (nll > std::numeric_limits<Real>::max()) nll = kInfinity;  // as where it is computed
      const double clipped = nll > c.ceiling ? c.ceiling : nll;
      loss += a[i] * clipped;
      loss_size +=
          std::fabs(a[i]) * (1 + std::fabs(clipped) + (std::isinf(x[i]) ? 0 : std::min(1e3, std::fabs(log_sum))));
    }
    if (shape.by_index ? !valid : any_nan || max == kInfinity) loss = kNan;  // no softmax: no loss, whatever the target
    c.loss.push_back(out ? Expected{0, 0} : Expected{loss, 2 * slack * loss_size + 1e-30});
    c.max.push_back(out         ? Expected{0, 0}
                    : undefined ? Expected{0, kInfinity}
                                : Expected{max, std::fabs(max) * 1e-15 + 1e-300});
    c.log_sum.push_back(out         ? Expected{0, 0}
                        : undefined ? Expected{0, kInfinity}
                                    : Expected{log_sum, slack * (1 + log_sum)});

    // What the gradient kernel is given, as rounded as it is.
    const bool in_no_slice = !valid && random.below(2) == 0;  // the label may be of another slice
    const double given_sum = shape.by_index ? valid || in_no_slice : static_cast<double>(static_cast<Real>(target_sum));
    c.given_max.push_back(static_cast<Real>(out ? kNan : max));
    c.given_log_sum.push_back(static_cast<Real>(out ? kNan : log_sum));
    c.given_target_sum.push_back(static_cast<Real>(out ? kNan : given_sum));
    const double given_log_sum = wide(c.given_log_sum.back());

    for (int64_t i = 0; i < classes; i++) {
      const auto expected = [&](double scale, double log_sum_of_row, bool zero) -> Expected {
        if (zero) return {0, 0};
        const double softmax = undefined ? kNan : std::exp(x[i] - max - log_sum_of_row) * scale;
        const double want = (softmax - a[i]) * weight;
        const double distance = std::isinf(x[i]) ? 0 : std::min(200.0, std::fabs(x[i] - max));
        const double error =
            std::fabs(weight) * (softmax * (slack + 2 * unit * distance) + unit * (softmax + std::fabs(a[i])));
        return {want, error + Traits<Logit>::rounding * std::fabs(want) + Traits<Logit>::smallest};
      };
      const bool zero = weight == 0 || (shape.by_index && !valid);
      c.gradient.push_back(shape.from_sums
                               ? expected(given_sum, given_log_sum, weight == 0 || (shape.by_index && given_sum == 0))
                               : expected(target_sum, log_sum, zero));
    }
  }
  return c;
}

// The variants that every shape is run in: which results are wanted, and where arrays begin.
struct Variant {
  bool stats, gradient, in_place;
  int logits_shift, target_shift, gradient_shift;
};
constexpr Variant kVariants[] = {{false, false, false, 0, 0, 0}, {true, false, false, 1, 1, 1},
                                 {false, true, false, 0, 0, 0},  {true, true, false, 1, 1, 1},
                                 {true, true, false, 0, 1, 3},   {false, true, true, 1, 0, 1},
                                 {false, true, true, 0, 0, 0}};

template <class Logit, class Target, class Rows>
auto with_inputs(Buffers& buffers, const Case<Logit, Target>& c, const TestRows& shape, const Variant& variant,
                 Rows rows) {
  Logit* logits = buffers.prediction.put(c.logits.data(), c.logits.size(), variant.logits_shift);
  rows.logits = logits;
  if constexpr (std::is_same_v<decltype(rows.target), ClassIndices>) {
    rows.target.index = buffers.target.put(c.index.data(), c.index.size(), 0);
  } else {
    rows.target.probability = buffers.target.put(c.probability.data(), c.probability.size(), variant.target_shift);
  }
  rows.row_weight = buffers.weight.put(c.weight.data(), c.weight.size(), 0);
  rows.gradient = variant.in_place   ? logits
                  : variant.gradient ? buffers.gradient.put<Logit>(nullptr, c.logits.size(), variant.gradient_shift)
                                     : nullptr;
  rows.rows = shape.rows;
  rows.classes = shape.classes;
  rows.rows_per_weight = shape.rows_per_weight;
  return rows;
}

constexpr int64_t kClasses[] = {1,    2,    3,    4,    5,     6,     8,     10,     12,    16,
                                24,   31,   33,   64,   100,   256,   257,   519,    1000,  1024,
                                1025, 4097, 8192, 8200, 32001, 50257, 50264, 100003, 128256};
constexpr int64_t kRows[] = {1, 2, 3, 7, 33, 1000, 20011};

// Of few sizes: a row of some lanes, of a warp, of a block in registers, of a cluster; short rows in tiles.
bool among_few(int64_t row_count, int64_t classes) {
  const bool long_row = classes == 1025 || classes == 8200 || classes == 50257;
  return long_row ? row_count == 2
                  : (classes == 2 || classes == 10 || classes == 33 || classes == 257) && row_count == 33;
}

// The same rows, but that those whose loss is no number, or so large that sums overflow, are masked. Each row
// has a weight of its own.
template <class Logit, class Target>
Case<Logit, Target> with_finite_losses(Case<Logit, Target> c, int64_t classes) {
  for (size_t row = 0; row < c.loss.size(); row++) {
    if (std::fabs(c.loss[row].value) < 1e30) continue;
    c.weight[row] = static_cast<Accumulator<Logit>>(-0.0);
    c.loss[row] = {0, 0};
    std::fill_n(c.gradient.begin() + row * classes, classes, Expected{0, 0});
  }
  return c;
}

// All parts of the sums of losses that a kernel has written, and what they come to.
template <class Real>
void check_parts(Buffers& buffers, Report& report, const std::vector<Expected>& losses) {
  Expected want{0, 1e-30};
  for (const Expected& loss : losses) {
    want.value += loss.value;
    want.tolerance += loss.tolerance + kSlack<Real> * std::fabs(loss.value);
  }
  std::vector<Real> got;
  Real poison;
  std::memset(&poison, kPoisonByte, sizeof(poison));
  if (!buffers.loss.get(got)) report.fail("sums were written beyond their ends");
  double sum = 0;
  for (const Real part : got) {
    if (std::memcmp(&part, &poison, sizeof(part)) == 0) report.fail("a part of the sums was not written");
    sum += part;
  }
  if (!agrees(sum, want)) {
    report.fail("the sums are " + std::to_string(sum) + ", expected " + std::to_string(want.value));
  }
}

// The sums of losses in so many parts, in place of the losses.
template <class Logit, class Target>
void check_sums(Buffers& buffers, Report& report, const Case<Logit, Target>& c, const TestRows& shape,
                const Variant& variant, int64_t parts, const char* what) {
  using Real = Accumulator<Logit>;
  auto rows = with_inputs(buffers, c, shape, variant, CrossEntropyRows<Logit, ClassIndices>{});
  rows.ceiling = static_cast<Real>(c.ceiling);
  rows.sums = buffers.loss.put<Real>(nullptr, parts, 0);
  rows.parts = parts;
  require(gpu::launch(nullptr, rows), what);
  require(cudaDeviceSynchronize(), what);
  check_parts<Real>(buffers, report, c.loss);
  if (variant.gradient) {
    report.check<Logit>("gradient", variant.in_place ? buffers.prediction : buffers.gradient, c.gradient);
  }
}

template <class Logit, class Target, bool by_index>
void check_cross_entropy(Buffers& buffers, const char* regime, bool gradient_kernel) {
  if (!is_checked<Logit>()) return;
  using Real = Accumulator<Logit>;
  using TypedTarget = std::conditional_t<by_index, ClassIndices, ClassProbabilities<Target>>;
  const std::string types = std::string(Traits<Logit>::name) + "/" + (by_index ? "indices" : Traits<Target>::name);
  Report report(std::string(gradient_kernel ? "cross entropy gradient " : "cross entropy ") + types + " " + regime);
  gpu::Device device;
  require(gpu::find_current_device(device), "device");
  int in_registers = 0, in_clusters = 0;
  uint64_t seed = 0;
  const auto check_shape = [&](int64_t row_count, int64_t classes) {
    seed++;
    const int64_t rows_per_weight = seed % 3 == 0 ? row_count : seed % 3 == 1 && row_count % 3 == 0 ? 3 : 1;
    const TestRows shape{row_count, classes, rows_per_weight, by_index, seed % 2 == 0, gradient_kernel};
    const Case<Logit, Target> c = make_case<Logit, Target>(shape, seed);
    for (size_t v = 0; v < std::size(kVariants); v++) {
      const Variant& variant = kVariants[v];
      if (gradient_kernel && !variant.gradient) continue;
      if ((classes * row_count > 1000000 || (few_sizes() && classes > 5000)) && v != 2 && v != 3) continue;
      char what[120];
      std::snprintf(what, sizeof(what), "rows %lld classes %lld rows_per_weight %lld variant %zu", (long long)row_count,
                    (long long)classes, (long long)rows_per_weight, v);
      report.begin(what);
      if (gradient_kernel) {
        auto rows = with_inputs(buffers, c, shape, variant, CrossEntropyGradientRows<Logit, TypedTarget>{});
        rows.max = buffers.max.put(c.given_max.data(), row_count, 0);
        rows.log_sum = buffers.log_sum.put(c.given_log_sum.data(), row_count, 0);
        rows.target_sum = buffers.target_sum.put(c.given_target_sum.data(), row_count, 0);
        require(gpu::launch(nullptr, rows), what);
        require(cudaDeviceSynchronize(), what);
      } else {
        auto rows = with_inputs(buffers, c, shape, variant, CrossEntropyRows<Logit, TypedTarget>{});
        rows.loss = buffers.loss.put<Real>(nullptr, row_count, 0);
        rows.max = variant.stats ? buffers.max.put<Real>(nullptr, row_count, 0) : nullptr;
        rows.log_sum = variant.stats ? buffers.log_sum.put<Real>(nullptr, row_count, 0) : nullptr;
        rows.ceiling = static_cast<Real>(c.ceiling);
        in_registers += gpu::registers_shape(rows).slots > 0;
        if constexpr (gpu::kHasClusterKernel<Logit>) in_clusters += gpu::cluster_shape(rows, device).blocks > 0;
        require(gpu::launch(nullptr, rows), what);
        require(cudaDeviceSynchronize(), what);
        report.check<Real>("loss", buffers.loss, c.loss);
        if (variant.stats) report.check<Real>("max", buffers.max, c.max);
        if (variant.stats) report.check<Real>("log_sum", buffers.log_sum, c.log_sum);
      }
      if (variant.gradient) {
        report.check<Logit>("gradient", variant.in_place ? buffers.prediction : buffers.gradient, c.gradient);
      }
      if constexpr (by_index) {
        if (gradient_kernel || variant.stats || classes > 300) continue;
        check_sums(buffers, report, c, shape, variant, 1, what);
        if (rows_per_weight > 1) continue;
        const auto finite = with_finite_losses(c, classes);
        for (const int64_t parts : {1, 2, 100}) check_sums(buffers, report, finite, shape, variant, parts, what);
      }
    }
  };
  for (const int64_t classes : kClasses) {
    for (const int64_t row_count : kRows) {
      if (few_sizes() && !among_few(row_count, classes)) continue;
      if (classes * row_count <= 300000 || row_count <= (classes > 100000 ? 2 : 7)) check_shape(row_count, classes);
    }
  }
  // Of 16 bits, so many that lanes hold them in shared memory where memory is fast.
  if (by_index && !gradient_kernel && sizeof(Logit) == 2) check_shape(few_sizes() ? 129 : 6000, 520);
  // More rows than a GPU has room for at once: every block goes through several of them.
  if (!few_sizes() && by_index && !gradient_kernel && sizeof(Logit) < 8) {
    check_shape(6000, 3000);
    check_shape(500, 32001);
    check_shape(150, 128256);
    check_shape(40, 262144);
    check_shape(2, 400003);  // that no cluster holds
  }
  if (!gradient_kernel) {
    report.note = "registers can take " + std::to_string(in_registers) + ", clusters " + std::to_string(in_clusters);
  }
}

// The launch recorded in a CUDA graph, and run from there twice.
void check_graph(Buffers& buffers, const char* regime) {
  Report report(std::string("CUDA graph ") + regime);
  for (const int64_t classes : {100, 50257, 128256}) {
    report.begin(std::to_string(classes) + " classes");
    const TestRows shape{2, classes, 1, true, false, false};
    const auto c = make_case<float, float>(shape, classes);
    auto rows = with_inputs(buffers, c, shape, kVariants[2], CrossEntropyRows<float, ClassIndices>{});
    rows.loss = buffers.loss.put<float>(nullptr, 2, 0);
    rows.ceiling = static_cast<float>(c.ceiling);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    require(cudaStreamCreate(&stream), "stream");
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    require(gpu::launch(stream, rows), "launch while capturing");
    require(cudaStreamEndCapture(stream, &graph), "end of capture");
    require(cudaGraphInstantiate(&executable, graph, 0), "graph");
    for (int i = 0; i < 2; i++) require(cudaGraphLaunch(executable, stream), "graph launch");
    require(cudaStreamSynchronize(stream), "graph run");
    report.check<float>("loss", buffers.loss, c.loss);
    report.check<float>("gradient", buffers.gradient, c.gradient);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

#include "divergence_check.cuh"
#include "options_case.cuh"
#include "options_check.cuh"

// ---- all of it ------------------------------------------------------------------------------------------------------

template <class Loss, class... Pair>
void check_all_pairs(Buffers& buffers, List<Pair...>) {
  (check_elementwise<Loss, typename Pair::Prediction, typename Pair::Target>(buffers), ...);
}

template <class... Pair>
void check_all_targets(Buffers& buffers, const char* regime, bool gradient_kernel, List<Pair...>) {
  check_cross_entropy<float, float, true>(buffers, regime, gradient_kernel);
  check_cross_entropy<bfloat16, float, true>(buffers, regime, gradient_kernel);
  check_cross_entropy<float16, float, true>(buffers, regime, gradient_kernel);
  check_cross_entropy<double, double, true>(buffers, regime, gradient_kernel);
  (check_cross_entropy<typename Pair::Prediction, typename Pair::Target, false>(buffers, regime, gradient_kernel), ...);
}

// Lanes that share a row take all of it, as few units each as can be, or some more where fewer then meet in a bank.
void check_walks_of_tiles() {
  using gpu::TileWalk;
  Report report("how lanes go along rows in tiles");
  const auto expect = [&](const TileWalk& walk, bool right) {
    char text[100];
    std::snprintf(text, sizeof(text), "%d units of %d bytes%s%s, %d lanes: %d", walk.units_of_row, walk.unit,
                  walk.in_pairs ? " in pairs" : "", walk.turns ? ", turned" : "", walk.lanes, walk.segment());
    report.begin(text);
    if (!right) report.fail("other segments would be better");
  };
  for (const int unit : {2, 4, 8, 16}) {
    for (int units = 1; units * unit <= gpu::kLongestTiledRow; units++) {
      for (const int lanes : {1, 2, 4}) {
        for (const bool turns : {false, true}) {
          const TileWalk walk{units, unit, lanes, false, turns};
          const int segment = walk.segment(), least = (units + lanes - 1) / lanes;
          const bool is_worth_it = segment * (8 + walk.meeting(segment)) <= least * (8 + walk.meeting(least));
          expect(walk, segment >= least && is_worth_it);
        }
      }
    }
  }
  for (int classes = 17; classes * 2 <= gpu::kLongestTiledRow; classes += 2) {
    for (const int lanes : {1, 2, 4}) {
      const TileWalk walk{classes, 4, lanes, true, false};
      expect(walk, walk.segment() * lanes >= classes / 2 && walk.segment() * lanes <= classes / 2 * 9 / 8 + 2 * lanes);
    }
  }
  const TileWalk bf16_of_100{50, 4, 2, false, false}, f32_of_37{37, 4, 2, false, false};
  expect(bf16_of_100, bf16_of_100.segment() == 25 && bf16_of_100.meeting(25) == 1 && bf16_of_100.meeting(32) == 2);
  expect(f32_of_37, f32_of_37.segment() == 19);
}

int run(const std::string& what) {
  {
    Buffers buffers;
    if (what == "elementwise") {
      for (const double value : {1e-7, 0.0}) {
        clip = value;
        check_all_pairs<BinaryCrossEntropy>(buffers, StoredPairs{});
        check_all_pairs<WeightedBinaryCrossEntropy>(buffers, StoredPairs{});
        check_all_pairs<FocalBinaryCrossEntropy>(buffers, StoredPairs{});
      }
      check_all_pairs<SquaredError>(buffers, StoredPairs{});
      check_all_pairs<AbsoluteError>(buffers, StoredPairs{});
      check_all_pairs<Huber>(buffers, StoredPairs{});
      check_all_pairs<LogCosh>(buffers, StoredPairs{});
      check_all_pairs<Quantile>(buffers, StoredPairs{});
    } else if (what == "divergences") {
      check_all_divergences<KullbackLeibler>(buffers, StoredPairs{});
      check_all_divergences<JensenShannon>(buffers, StoredPairs{});
    } else if (what == "options") {
      check_options<float, float, true>(buffers, "any");
      check_options<bfloat16, float, true>(buffers, "any");
      check_options<float16, float, true>(buffers, "any");
      check_options<double, double, true>(buffers, "any");
      check_options<float, float, false>(buffers, "any");
      check_options<bfloat16, float, false>(buffers, "any");
    } else if (what == "gradient") {
      check_all_targets(buffers, "", true, StoredPairs{});
    } else {
      if (what == "tiles") check_walks_of_tiles();
      if (what != "teams") {
        check_graph(buffers, what.c_str());
        check_all_targets(buffers, what.c_str(), false, StoredPairs{});
      }
      if (what == "streaming" || what == "teams" || what == "tiles") {  // of options too
        check_options<float, float, true>(buffers, what);
        check_options<bfloat16, float, true>(buffers, what);
        check_options<float16, float, true>(buffers, what);
      }
    }
  }
  return Report::all_passed ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    setenv("JAXLOSS_CROSS_ENTROPY_KERNEL", argv[1], 1);
    return run(argv[1]);
  }
  bool passed = true;
  std::vector<pid_t> children;
  for (const char* what : {"elementwise", "divergences", "gradient", "options", "any", "tiles", "registers", "cluster",
                           "streaming", "teams"}) {
    const pid_t child = fork();
    if (child == 0) {
      execl("/proc/self/exe", argv[0], what, static_cast<char*>(nullptr));
      std::perror("execl");
      _exit(1);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    passed &= WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  std::printf(passed ? "ALL PASSED\n" : "SOME FAILED\n");
  return passed ? 0 : 1;
}
